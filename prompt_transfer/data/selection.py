"""The rows of each task that a run uses: splits, limits and held-out tasks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_transfer.data.checks import shared_rows, text_keys
from prompt_transfer.data.sources import Source, TaskData, load_task
from prompt_transfer.data.tokens import ID_BITS
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")


@dataclass
class Selection:
    """The rows of some tasks, loaded on first access.

    Args:
        registry: rows of the registry.
        source, root, seed, label_words: as in `prompt_transfer.data.sources.load_task`.
        limits: split -> rows to use of each task (a random subset by seed), None for all.
        held_out: names of tasks that are not trained on.
        revision: revision of the hub repository; None: the registry's.

    Raises:
        UserError: a revision for a source other than the hub, a duplicate task, a source that lacks a task, or no task
            left to train on.
    """

    registry: list[Task]
    source: Source
    root: str | None
    seed: int
    label_words: str
    limits: dict[str, int | None]
    held_out: frozenset[str] = frozenset()
    revision: str | None = None
    _data: list[TaskData] = field(default_factory=list)
    _known: dict[tuple[str, int], dict[int, list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.registry or len({task.name for task in self.registry}) < len(self.registry):
            raise UserError("--data.task needs a task, and each task once")
        names = {task.name for task in self.registry}
        if self.held_out and (not self.held_out < names):
            other = ", ".join(sorted(self.held_out - names))
            reason = f"{other} is none of --data.task" if other else "no task is left to train on"
            raise UserError(f"--data.held_out names tasks of --data.task that are not trained on: {reason}")
        if self.revision is not None and self.source != "hub":
            raise UserError(f"--data.revision {self.revision} is for hub repositories: use --data.source hub")
        for task in self.registry:
            _check_source(task, self.source)
        paper = self.label_words == "paper"
        self.tasks = [task.paper_variant() if paper else task for task in self.registry]

    @property
    def data(self) -> list[TaskData]:
        """Each task with all its rows."""
        if not self._data:
            options: tuple[Any, ...] = (self.source, self.root, self.seed, self.label_words, self.revision)
            self._data = [load_task(task, *options) for task in self.registry]
            self._warn_of_shared_rows()
        return self._data

    def _warn_of_shared_rows(self) -> None:
        """Warn of evaluation rows of a task that another task of the run trains on."""
        if len(self._data) == 1:
            return
        train, *others = [
            {task.name: text_keys(self.rows(split, index)) for index, task in enumerate(self.tasks)} for split in SPLITS
        ]
        for split, evaluated in zip(SPLITS[1:], others, strict=True):
            if found := shared_rows(evaluated, train):
                warnings.warn(f"{split} split: {'; '.join(found)}", stacklevel=2)

    def rows(self, split: str, task_index: int = 0) -> Dataset:
        """Return the rows of a split after limits, in source order.

        Raises:
            UserError: an unknown split, or limited training rows of one class.
        """
        check_split(split)
        limit = self._limit(split, task_index)
        chosen = self._limited(self.data[task_index].split(split), limit)
        if (
            limit
            and split == "train"
            and not self.tasks[task_index].has_example_scores
            and len(set(chosen["label"])) < 2
        ):
            raise UserError(
                f"task {self.tasks[task_index].name}: the {limit} training rows that are left are of one class; "
                "nothing can be learnt from them, use more"
            )
        return chosen

    def to_predict(self, split: str, task_index: int = 0) -> Dataset:
        """Return the rows of a split, labelled or not, in source order."""
        check_split(split)
        return self._limited(self.data[task_index].to_predict(split), self._limit(split, task_index))

    def _limited(self, rows: Dataset, limit: int | None) -> Dataset:
        if limit is None or limit >= len(rows):
            return rows
        # The first rows of a permutation: a larger limit contains the rows of a smaller one.
        return rows.select(np.sort(np.random.default_rng(self.seed).permutation(len(rows))[:limit]))

    def _limit(self, split: str, task_index: int) -> int | None:
        return 0 if split == "train" and self.tasks[task_index].name in self.held_out else self.limits[split]

    def facts(self, split: str, task_index: int) -> dict[str, Any]:
        """Return JSON values that identify the selected rows, for cache keys."""
        data, limit = self.data[task_index], self._limit(split, task_index)
        limited = limit is not None and limit < len(data.split(split))
        return {"data": data.fingerprint, "split": split, "subset": [limit, self.seed] if limited else None}

    def label_counts(self, split: str, task_index: int = 0) -> list[int]:
        """Return the number of rows of each class (C numbers) after limits; empty for generation."""
        task = self.tasks[task_index]
        if task.has_example_scores:
            return []
        labels = np.asarray(self.rows(split, task_index)["label"][:], dtype=np.int64)
        return np.bincount(labels, minlength=task.num_classes).tolist()

    def targets(self, split: str, ids: list[int]) -> list[list[str]]:
        """Return the reference texts of each of `ids` (from a batch of the split), for generation tasks."""
        check_split(split)
        found = []
        for key in ids:
            index, row = divmod(key, 1 << ID_BITS)
            found.append(self._answers(split, index)[row])
        return found

    def _answers(self, split: str, index: int) -> dict[int, list[str]]:
        """Return row number -> reference texts of a split; cached, since every evaluation batch needs it."""
        if (split, index) not in self._known:
            if not self.tasks[index].is_generation:
                raise ValueError(f"task {self.tasks[index].name} has classes, not target texts")
            rows = self.data[index].split(split)
            self._known[split, index] = dict(zip(rows["id"][:], rows["target"][:], strict=True))
        return self._known[split, index]


def check_split(split: str) -> None:
    """Raise UserError if the split is unknown."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")


def _check_source(task: Task, source: str) -> None:
    if source not in ("hub", "local", "builtin"):
        raise UserError(f"unknown source {source!r}; --data.source is hub, local or builtin")
    if task.builtin and source != "builtin":
        raise UserError(f"task {task.name} is built in; use --data.source builtin")
    if not task.builtin and source == "builtin":
        local = "--data.source local" + ("" if task.local else " --data.root FOLDER")
        use = f"--data.source hub, or {local}" if task.hub else local
        raise UserError(f"task {task.name} is not built in; use {use}")
