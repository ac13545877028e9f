"""Many prompts on the rows of a task in one pass, and the file in which the answers survive a kill.

Shape letters: K prompts of a batch, D texts of a batch, N prompts, n rows of a task.
"""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prompt_transfer.backbones.answers import PromptBank
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.data.batches import batch_bounds, collate, cross_prompts
from prompt_transfer.data.tokens import named_rows
from prompt_transfer.modules.objectives import Classification, make_objective
from prompt_transfer.studies.entries import Entry
from prompt_transfer.studies.targets import Target
from prompt_transfer.tasks.metrics import text_scores
from prompt_transfer.utils.errors import SettingsChangedError, UserError
from prompt_transfer.utils.files import atomic_path

# Positions of a forward pass. On a CPU more of them leave the cache and cost 10 % (roberta-nano, 4,000 against 16,000).
MAX_TOKENS = {"cpu": 4096, "cuda": 131_072}
MAX_TEXTS = 256
SAVE_SECONDS = 10.0

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


class Scorer:
    """The prompts of a study behind one backbone; keys and values of prompts are computed once for all tasks.

    Args:
        backbone: on the device that computes.
        entries: the prompts; those of one length stand in one bank.
    """

    def __init__(self, backbone: FrozenBackbone, entries: Sequence[Entry]) -> None:
        self.backbone, self.device = backbone, backbone.device
        self.entries = entries
        self.longest = max(len(entry.embeddings) for entry in entries)
        self._banks: list[tuple[NDArray[np.int64], PromptBank]] = []
        lengths = np.array([len(entry.embeddings) for entry in entries])
        for length in np.unique(lengths):
            mine = np.flatnonzero(lengths == length)
            rows = torch.stack([entries[number].embeddings for number in mine.tolist()]).to(self.device)
            self._banks.append((mine, backbone.record(rows)))

    def extra(self, target: Target) -> int:
        """Positions that an example takes beside its text."""
        written = target.task.max_target_length if target.task.is_generation else 0
        return self.backbone.encoder(self.longest).extra_positions + written

    def batches(self, target: Target, missing: NDArray[np.bool_], max_tokens: int) -> list[Batch]:
        """What is to be computed: (prompts, rows), each of at most `max_tokens` positions.

        All prompts stand before each text where the budget allows, so that a batch has few texts and of one length.

        Args:
            missing: [N, n].
        """
        positions = target.table.lengths + self.extra(target)
        found: list[Batch] = []
        patterns, pattern_of = np.unique(missing, axis=1, return_inverse=True)
        for number, pattern in enumerate(patterns.T):
            prompts, rows = np.flatnonzero(pattern), np.flatnonzero(pattern_of.ravel() == number)
            if not len(prompts):
                continue
            rows = rows[np.argsort(-target.table.lengths[rows], kind="stable")]
            for start, end in pairwise(batch_bounds(positions[rows] * len(prompts), MAX_TEXTS, max_tokens)):
                texts = rows[start:end]
                together = max(1, int(max_tokens // (len(texts) * positions[texts].max())))
                found += [(prompts[first : first + together], texts) for first in range(0, len(prompts), together)]
        return found

    @torch.inference_mode()
    def answers(self, target: Target, batches: Sequence[Batch]) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
        """Each batch with its answers [K, D].

        Raises:
            UserError: a prompt whose logits are not finite: the largest of them would be an answer like any other.
        """
        objective = make_objective(self.backbone, [target.task]).to(self.device)
        pad = self.backbone.encoder(self.longest).pad_token_id
        for prompts, rows in batches:
            texts = {name: value.to(self.device) for name, value in collate(target.table, rows, pad).items()}
            found = np.empty((len(prompts), len(rows)), dtype=np.float32)
            for mine, bank in self._banks:
                here, places = _overlap(prompts, mine)
                if not len(here):
                    continue
                batch = cross_prompts(texts, torch.from_numpy(places).to(self.device))
                if isinstance(objective, Classification):
                    chosen = objective.choices(bank, batch).cpu().numpy()
                    self._refuse_broken(target, prompts[here], rows, chosen.reshape(len(here), len(rows)) < 0)
                else:
                    right = [target.references[row] for row in rows] * len(here)
                    chosen = text_scores(target.task.metric, objective.predict(bank, batch)["texts"], right)
                found[here] = chosen.reshape(len(here), len(rows))
            yield (prompts, rows), found

    def _refuse_broken(
        self, target: Target, prompts: NDArray[np.int64], rows: NDArray[np.int64], broken: NDArray[np.bool_]
    ) -> None:
        """Raise a UserError for the first prompt with a broken answer; `broken` is [prompts, rows]."""
        if not broken.any():
            return
        number = int(broken.any(axis=1).argmax())
        name = self.entries[prompts[number]].name
        which = named_rows(target.table.ids[rows[broken[number]]], [target.task.name])
        raise UserError(
            f"the answers behind the prompt {name} to {which} ({target.split}) are NaN or Inf: take it out of the "
            f"folder, or try --dtype float32 (it is {self.backbone.dtype_name})"
        )


def _overlap(wanted: NDArray[np.int64], mine: NDArray[np.int64]) -> Batch:
    """Where in `wanted` the numbers of `mine` are, and where in `mine` those are."""
    _, here, places = np.intersect1d(wanted, mine, assume_unique=True, return_indices=True)
    return here, places


class AnswerFile:
    """The answers to a task that are known so far, NaN where missing; kept by prompt, whatever its name is.

    Each process writes a file of its own, whole or not at all; reading puts all of them together.

    Args:
        folder: of the answers of a study.
        target: the task.
        facts: what decides the answers beside the prompt; other facts in a file are an error.
        rank: number of this process.
    """

    def __init__(self, folder: Path, target: Target, facts: dict[str, Any], rank: int = 0) -> None:
        self.folder, self.target, self.rank = folder, target, rank
        self.facts = json.loads(json.dumps({**facts, **target.facts}))
        self.name = re.sub(r"[^\w-]", "_", target.task.name)
        self.values: dict[str, NDArray[np.float32]] = {}
        for path in self.paths():
            self._read(path)

    def paths(self) -> list[Path]:
        """The files there are."""
        return sorted(self.folder.glob(f"{self.name}.*.npz"))

    def _read(self, path: Path) -> None:
        try:
            with np.load(path) as file:
                facts, digests, values = json.loads(str(file["facts"])), file["prompts"].tolist(), file["values"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read ({error}); remove it, and its cells are computed again") from error
        other = sorted(key for key in facts | self.facts if facts.get(key) != self.facts.get(key))
        if other:
            raise SettingsChangedError(
                f"{self.folder.parent} holds scores of {self.target.task.name} that were made otherwise (other "
                f"{', '.join(other)}): give another --output, or remove that folder"
            )
        for digest, row in zip(digests, values, strict=True):
            known = self.values.get(digest)
            self.values[digest] = row if known is None else np.where(np.isnan(known), row, known)

    def matrix(self, entries: Sequence[Entry]) -> NDArray[np.float32]:
        """Answers [N, n] of some prompts, as far as they are known."""
        unknown = np.full(len(self.target), np.nan, dtype=np.float32)
        return np.stack([self.values.get(entry.digest, unknown) for entry in entries])

    def save(self) -> None:
        """Write all that is known."""
        with atomic_path(self.folder / f"{self.name}.{self.rank}.npz") as temporary:
            content = np.stack(list(self.values.values()))
            np.savez(temporary, facts=json.dumps(self.facts), prompts=list(self.values), values=content)

    def fill(
        self,
        entries: Sequence[Entry],
        answers: Iterator[tuple[Batch, NDArray[np.float32]]],
        costs: Sequence[int],
    ) -> Iterator[int]:
        """Take in answers to `entries` as they come; they are saved every few seconds and in the end.

        Yields:
            Of `costs`, one a batch, that of each batch that is done.
        """
        saved, fresh = time.monotonic(), False
        try:
            for (batch, found), cost in zip(answers, costs, strict=True):
                prompts, rows = batch
                for number, row in zip(prompts, found, strict=True):
                    digest = entries[number].digest
                    if digest not in self.values:
                        self.values[digest] = np.full(len(self.target), np.nan, dtype=np.float32)
                    self.values[digest][rows] = row
                fresh = True
                if time.monotonic() - saved >= SAVE_SECONDS:
                    self.save()
                    saved, fresh = time.monotonic(), False
                yield cost
        finally:
            # Also when it is interrupted; only a kill loses what came since the last time.
            if fresh:
                self.save()
