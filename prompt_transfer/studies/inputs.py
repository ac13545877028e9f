"""Inputs of studies that compare prompts: prompt files of one backbone, and a transfer matrix."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from prompt_transfer.prompts.io.published import TASKS
from prompt_transfer.prompts.listing import readable_prompts
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt, vectors_of
from prompt_transfer.prompts.tensor_file import sizes
from prompt_transfer.tasks.definition import stored_tasks
from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.utils.errors import UserError


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one backbone and shape, ordered by task type, task and path.

    Attributes:
        prompts: N prompts.
        names: paths below the folder, without suffix.
        tasks, types: task and task type of each prompt; "unknown" for a task missing from the registry.
        notes: which prompts were skipped, and why.
    """

    prompts: list[Prompt]
    names: list[str]
    tasks: list[str]
    types: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def embeddings(self) -> Tensor:
        """All prompts, float32 `[N, P, H]`; of deep prompts their vectors `[N, P, W]` (`Prompt.vectors`)."""
        return torch.stack([prompt.vectors for prompt in self.prompts])

    @property
    def initial(self) -> Tensor | None:
        """The same before training; None unless every prompt file holds them."""
        found = [vectors_of(prompt.initial) for prompt in self.prompts if prompt.initial is not None]
        return torch.stack(found) if len(found) == len(self.prompts) else None

    @property
    def data_sizes(self) -> list[int] | None:
        """Number of training examples per prompt; None unless every prompt records it."""
        found = [prompt.metadata.get("train_rows", "") for prompt in self.prompts]
        return [int(text) for text in found] if all(text.isascii() and text.isdecimal() for text in found) else None

    @property
    def label_words(self) -> list[list[str]] | None:
        """Label words per prompt, [] for a task without; None if no prompt has any."""
        found = []
        for prompt, task in zip(self.prompts, self.tasks, strict=True):
            try:
                words = json.loads(prompt.metadata.get("label_words") or "{}").get(task, [])
                found.append([str(word) for own in words for word in (own if isinstance(own, list) else [own])])
            except (ValueError, AttributeError, TypeError):
                raise UserError(f"{prompt.path} is damaged: its label_words are not a JSON object by task") from None
        return found if any(found) else None


def load_prompts(
    folder: str | Path,
    backbone: str | None = None,
    at_least: int = 3,
    remedy: str = "choose one with --backbone NAME",
) -> PromptSet:
    """Load all prompts below `folder` that belong to exactly one task.

    Skips random prompts, prompts of several tasks, and projected prompts if there are trained ones.

    Args:
        folder: searched recursively.
        backbone: load only prompts with this backbone in their metadata.
        at_least: minimum number of prompts.
        remedy: advice in the error about prompts of several backbones.

    Raises:
        UserError: a file cannot be read, too few prompts remain, or they have different backbones or shapes.
    """
    if not Path(folder).is_dir():
        raise UserError(f"no such folder: {folder}; give one that holds prompt files with --prompts DIR")
    rows = [row for row in readable_prompts(folder) if backbone is None or row["backbone"] == backbone]
    prompts = [Prompt.load(row["path"]) for row in rows]
    notes = []

    trained = [prompt for prompt in prompts if prompt.metadata.get("projected") != "true"]
    for why, keep in (
        ("random", lambda prompt: prompt.metadata.get("random") != "true"),
        ("not of exactly one task", lambda prompt: prompt.metadata.get("task", ",").count(",") == 0),
        ("projected, not trained", lambda prompt: not trained or prompt.metadata.get("projected") != "true"),
    ):
        kept = [prompt for prompt in prompts if keep(prompt)]
        if len(kept) < len(prompts):
            notes.append(f"{len(prompts) - len(kept)} of the prompts left out: {why}")
        prompts = kept
    if len(prompts) < at_least:
        of = f" for the backbone {backbone}" if backbone else ""
        needed = {1: "one", 3: "three"}.get(at_least, str(at_least))
        raise UserError(f"{folder} holds {len(prompts)} prompts of one task each{of}; this needs {needed} or more")
    _check_one_backbone(prompts, folder, remedy)
    order = {name: index for index, name in enumerate(_by_type())}
    keyed = []
    for prompt in prompts:
        task, name = prompt.metadata["task"], str(Path(str(prompt.path)).relative_to(folder).with_suffix(""))
        keyed.append(((order.get(task, len(order)), task, name), prompt, name, task, _type(task, prompt)))
    keyed.sort(key=lambda entry: entry[0])
    return PromptSet(
        [entry[1] for entry in keyed],
        [entry[2] for entry in keyed],
        [entry[3] for entry in keyed],
        [entry[4] for entry in keyed],
        notes,
    )


def _by_type() -> list[str]:
    """Return the registered tasks grouped by type."""
    types: dict[str, list[str]] = {}
    for name in task_names():
        types.setdefault(get_task(name).type, []).append(name)
    return [name for group in types.values() for name in group]


def _type(task: str, prompt: Prompt) -> str:
    if task in task_names():
        return get_task(task).type
    try:
        # A user's own task: defined by the prompt, or by its YAML file if that still exists.
        if task in (defined := stored_tasks(prompt.metadata, prompt.path)):
            return defined[task].type
        return get_task(json.loads(prompt.metadata.get("data_task", "[]"))[0]).type
    except (UserError, ValueError, LookupError, TypeError):
        return UNKNOWN


def _check_one_backbone(prompts: list[Prompt], folder: str | Path, remedy: str) -> None:
    def values(key: str) -> set[str]:
        return {prompt.method if key == "method" else prompt.metadata.get(key) or UNKNOWN for prompt in prompts}

    prints, names = values("fingerprint"), values("backbone")
    # Equal fingerprints mean the same backbone, even under different names.
    if len(names) > 1 and (UNKNOWN in prints or len(prints) > 1):
        text = ", ".join(sorted(names))
        raise UserError(f"{folder} holds prompts for the backbones {text}; {remedy}")
    if len(prints - {UNKNOWN}) > 1:
        raise UserError(
            f"{folder} holds prompts for several backbones that are all called {names.pop()} (their fingerprints "
            "differ); put them into separate folders"
        )
    for key in ("method", "layout", "attention"):
        if len(several := values(key) - {UNKNOWN}) > 1:
            text = " and ".join(sorted(several))
            raise UserError(f"{folder} holds prompts with {key} {text}; put them into separate folders")
    shapes = sorted({tuple(prompt.values.shape) for prompt in prompts})
    if len(shapes) > 1:
        text = ", ".join(sizes(shape) for shape in shapes)
        raise UserError(f"{folder} holds prompts of the shapes {text}; only prompts of one shape can be compared")


def read_matrix(path: str | Path) -> pd.DataFrame:
    """Read a transfer matrix: target tasks in rows, source tasks in columns, float scores, NaN if missing.

    Task names of release 1.0 (`movierationales`) are mapped to those of the registry (`movie_rationales`).

    Raises:
        UserError: the file is missing, is not such a table, or names a task twice.
    """
    try:
        frame = pd.read_csv(path, index_col=0).astype(float)
    except FileNotFoundError:
        raise UserError(f"no transfer matrix {path}; `prompt-transfer transfer` writes matrix.csv") from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is not a transfer matrix (targets in rows, sources in columns, scores): {reason}"
        ) from None
    frame.index = pd.Index([TASKS.get(str(name), str(name)) for name in frame.index])
    frame.columns = pd.Index([TASKS.get(str(name), str(name)) for name in frame.columns])
    for axis, names in (("row", frame.index), ("column", frame.columns)):
        if names.has_duplicates:
            raise UserError(f"{path} has more than one {axis} {names[names.duplicated()][0]!r}; keep one of them")
    return frame
