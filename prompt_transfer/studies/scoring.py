"""Scoring many prompts on a task's examples in one pass, and the answer files that make a study resumable.

Shape letters: K prompts of a batch, D texts of a batch, N prompts, n examples of a task.
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
from torch import Tensor

from prompt_transfer.backbones.answers import PromptBank
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.data.batches import batch_bounds, collate, cross_prompts
from prompt_transfer.data.tokens import named_rows
from prompt_transfer.modules.label_embeddings import initial_rows, stored_rows
from prompt_transfer.modules.objectives import ChoiceScoring, Classification, Objective, make_objective
from prompt_transfer.studies.entries import Entry
from prompt_transfer.studies.targets import Target
from prompt_transfer.tasks.metrics import text_scores
from prompt_transfer.utils.errors import SettingsChangedError, UserError
from prompt_transfer.utils.files import atomic_path

# Positions of a forward pass. Larger batches leave a CPU's cache: 16,000 are 10 % slower than 4,000 (roberta-nano).
MAX_TOKENS = {"cpu": 4096, "cuda": 131_072}
MAX_TEXTS = 256
SAVE_SECONDS = 10.0

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


class Scorer:
    """Batched evaluation of a study's prompts on one backbone; prompt keys and values are computed once for all tasks.

    Args:
        backbone: already on the target device.
        entries: the prompts; prompts of equal length share one bank.
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
        """Return the positions that an example needs in addition to its text."""
        written = target.task.max_target_length if target.task.has_example_scores else 0
        return self.backbone.encoder(self.longest).extra_positions + written

    def batches(self, target: Target, missing: NDArray[np.bool_], max_tokens: int) -> list[Batch]:
        """Return the batches to compute, (prompt numbers, example numbers) of at most `max_tokens` positions each.

        Each text is combined with as many prompts as the budget allows: batches then hold few texts of similar length.

        Args:
            missing: [N, n], True for answers to compute.
        """
        positions = (target.table.lengths + self.extra(target)) * target.table.copies
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
        """Yield each batch with its answers [K, D].

        Raises:
            UserError: a prompt gives non-finite logits, for which argmax would still return a class.
        """
        objective = make_objective(self.backbone, [target.task]).to(self.device)
        pad = self.backbone.encoder(self.longest).pad_token_id
        priors = self._priors(target, objective, pad)
        for prompts, rows in batches:
            texts = {name: value.to(self.device) for name, value in collate(target.table, rows, pad).items()}
            found = np.empty((len(prompts), len(rows)), dtype=np.float32)
            for number, (mine, bank) in enumerate(self._banks):
                here, places = _overlap(prompts, mine)
                if not len(here):
                    continue
                batch = cross_prompts(texts, torch.from_numpy(places).to(self.device))
                if isinstance(objective, Classification):
                    objective.prior = priors[number]
                    self._use_label_rows(objective, mine)
                if isinstance(objective, Classification | ChoiceScoring):
                    choices = objective.choices(bank, batch)
                    chosen = choices.cpu().numpy()
                    self._refuse_broken(target, prompts[here], rows, chosen.reshape(len(here), len(rows)) < 0)
                    if isinstance(objective, ChoiceScoring):
                        chosen = objective.scores_of(batch, choices)[:, 0].cpu().numpy()
                else:
                    right = [target.references[row] for row in rows] * len(here)
                    chosen = text_scores(target.task.metric, objective.predict(bank, batch)["texts"], right)
                found[here] = chosen.reshape(len(here), len(rows))
            yield (prompts, rows), found

    def _priors(self, target: Target, objective: Objective, pad: int) -> list[Tensor | None]:
        """Return the prior of each bank's prompts (`Classification.prior_of`), None without calibration."""
        if not target.calibrated or target.content_free is None or not isinstance(objective, Classification):
            return [None] * len(self._banks)
        table = target.content_free()
        free = {name: value.to(self.device) for name, value in collate(table, np.arange(len(table)), pad).items()}
        found: list[Tensor | None] = []
        for mine, bank in self._banks:
            self._use_label_rows(objective, mine)
            found.append(objective.prior_of(bank, free))
        return found

    def _use_label_rows(self, objective: Classification, mine: NDArray[np.int64]) -> None:
        """Score by the label embeddings of the prompts `mine` where they apply to the task."""
        files = [self.entries[number].file for number in mine.tolist()]
        used = [None if file is None else file.labels_for(task.name, task.stored_words) for file in files
                for task in objective.tasks]  # fmt: skip
        if all(rows is None for rows in used):
            objective.use_label_rows(None)
        else:
            like = initial_rows(objective, self.backbone)
            objective.use_label_rows(*stored_rows(files, objective.tasks, like))

    def _refuse_broken(
        self, target: Target, prompts: NDArray[np.int64], rows: NDArray[np.int64], broken: NDArray[np.bool_]
    ) -> None:
        """Raise UserError for the first prompt with a non-finite answer; `broken` is [prompts, examples]."""
        if not broken.any():
            return
        number = int(broken.any(axis=1).argmax())
        name = self.entries[prompts[number]].name
        which = named_rows(target.table.ids[rows[broken[number]]], [target.task.name])
        raise UserError(
            f"the answers of the prompt {name} to {which} ({target.split}) are NaN or Inf: remove it from the "
            f"folder, or try --dtype float32 (now {self.backbone.dtype_name})"
        )


def _overlap(wanted: NDArray[np.int64], mine: NDArray[np.int64]) -> Batch:
    """Return the positions of the common numbers in `wanted` and in `mine`."""
    _, here, places = np.intersect1d(wanted, mine, assume_unique=True, return_indices=True)
    return here, places


class AnswerFile:
    """The known answers to a task, NaN where missing, stored by prompt digest.

    Each process writes a file of its own atomically; `read` merges the files of all processes.

    Args:
        folder: answer folder of a study.
        target: the task.
        facts: settings that affect the answers; a file made with other settings is an error.
        rank: number of this process.
    """

    def __init__(self, folder: Path, target: Target, facts: dict[str, Any], rank: int = 0) -> None:
        self.folder, self.target, self.rank = folder, target, rank
        self.facts = json.loads(json.dumps({**facts, **target.facts}))
        self.name = re.sub(r"[^\w-]", "_", target.task.name)
        self.values: dict[str, NDArray[np.float32]] = {}

    @classmethod
    def read(cls, folder: Path, target: Target, facts: dict[str, Any], rank: int = 0) -> AnswerFile:
        """Read the answers in `folder`; arguments as those of the class.

        Raises:
            UserError: a file is damaged.
            SettingsChangedError: a file was written with other settings.
        """
        answers = cls(folder, target, facts, rank)
        for path in answers.paths():
            answers._merge(path)
        return answers

    def paths(self) -> list[Path]:
        """Return the existing answer files of the task, of all processes."""
        return sorted(self.folder.glob(f"{self.name}.*.npz"))

    def _merge(self, path: Path) -> None:
        try:
            with np.load(path) as file:
                facts, digests, values = json.loads(str(file["facts"])), file["prompts"].tolist(), file["values"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read ({error}); remove it to compute its cells again") from error
        other = sorted(key for key in facts | self.facts if facts.get(key) != self.facts.get(key))
        if other:
            raise SettingsChangedError(
                f"{self.folder.parent} holds scores of {self.target.task.name} that were made with other settings "
                f"({', '.join(other)}): give another --output, or remove that folder"
            )
        for digest, row in zip(digests, values, strict=True):
            known = self.values.get(digest)
            self.values[digest] = row if known is None else np.where(np.isnan(known), row, known)

    def matrix(self, entries: Sequence[Entry]) -> NDArray[np.float32]:
        """Return the answers [N, n] of some prompts, NaN where unknown."""
        unknown = np.full(len(self.target), np.nan, dtype=np.float32)
        return np.stack([self.values.get(entry.digest, unknown) for entry in entries])

    def save(self) -> None:
        """Write all known answers to this process's file."""
        with atomic_path(self.folder / f"{self.name}.{self.rank}.npz") as temporary:
            content = np.stack(list(self.values.values()))
            np.savez(temporary, facts=json.dumps(self.facts), prompts=list(self.values), values=content)

    def fill(
        self,
        entries: Sequence[Entry],
        answers: Iterator[tuple[Batch, NDArray[np.float32]]],
        costs: Sequence[int],
    ) -> Iterator[int]:
        """Store answers of `entries` as they arrive, saving every few seconds and at the end.

        Yields:
            The cost of each finished batch, from `costs` (one per batch).
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
            # Saves on interrupts too: only a kill loses the answers since the last save.
            if fresh:
                self.save()
