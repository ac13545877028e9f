"""The rows of each task that a run uses: splits, limits and held-out tasks."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_transfer.data.checks import shared_rows, text_keys
from prompt_transfer.data.shots import Shots, draw
from prompt_transfer.data.sources import Source, TaskData, load_task
from prompt_transfer.data.table_files import RawSplit
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
        source, root, seed, label_words: as in `prompt_transfer.data.sources.load_task`; source None: see
            `default_source`.
        limits: split -> rows to use of each task (a random subset by seed), None for all.
        held_out: names of tasks that are not trained on.
        revision: revision of the hub repository; None: the registry's.
        shots: examples of each class in training and validation (a subset by seed, after limits); None: all.
        own: task -> rows that were read already.

    Raises:
        UserError: a revision for a source other than the hub, a duplicate task, a source that lacks a task, or no task
            left to train on.
    """

    registry: list[Task]
    source: Source | None
    root: str | None
    seed: int
    label_words: str
    limits: dict[str, int | None]
    held_out: frozenset[str] = frozenset()
    revision: str | None = None
    shots: Shots | None = None
    own: Mapping[str, Mapping[str, RawSplit]] = field(default_factory=dict)
    _drawn: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
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
        self.source = self.source or default_source(self.registry, self.own)
        if self.revision is not None and self.source != "hub":
            raise UserError(f"--data.revision {self.revision} is for hub repositories: use --data.source hub")
        for task in self.registry:
            if task.name not in self.own:
                _check_source(task, self.source)
        if self.source in ("hub", "builtin") and names <= self.own.keys():
            raise UserError(f"--data.source {self.source}: {', '.join(names)} has its own rows, leave the source out")
        paper = self.label_words == "paper"
        self.tasks = [task.paper_variant() if paper else task for task in self.registry]

    @property
    def data(self) -> list[TaskData]:
        """Each task with all its rows."""
        if not self._data:
            options: dict[str, Any] = {
                "label_words": self.label_words, "revision": self.revision, "root": self.root, "seed": self.seed
            }  # fmt: skip
            source: Any = self.source
            self._data = [load_task(task, source, given=self.own.get(task.name), **options) for task in self.registry]
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
            UserError: an unknown split, limited training rows of one class, or a class with too few rows for `shots`.
        """
        check_split(split)
        limit = self._limit(split, task_index)
        chosen = self._limited(self.data[task_index].split(split), limit)
        if (count := self._shots(split, task_index)) is not None:
            return chosen.select(self._draw(chosen, split, task_index, count))
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

    def _shots(self, split: str, task_index: int) -> int | None:
        if self.shots is None or (split == "train" and self.tasks[task_index].name in self.held_out):
            return None
        return self.shots.of(split)

    def _draw(self, rows: Dataset, split: str, task_index: int, count: int) -> np.ndarray:
        if (split, task_index) not in self._drawn:
            task = self.tasks[task_index]
            labels = np.zeros(len(rows)) if task.has_example_scores else np.asarray(rows["label"][:])
            self._drawn[split, task_index] = draw(task, split, labels.astype(np.int64), count, self.seed)
        return self._drawn[split, task_index]

    def facts(self, split: str, task_index: int) -> dict[str, Any]:
        """Return JSON values that identify the selected rows, for cache keys."""
        data, limit = self.data[task_index], self._limit(split, task_index)
        limited = limit is not None and limit < len(data.split(split))
        facts = {"data": data.fingerprint, "split": split, "subset": [limit, self.seed] if limited else None}
        count = self._shots(split, task_index)
        return facts if count is None else {**facts, "shots": [count, self.seed]}

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


def default_source(tasks: Sequence[Task], own: Collection[str] = ()) -> Source:
    """Return the source without `--data.source`: local for tasks that name a folder, else builtin.

    Args:
        tasks: the tasks.
        own: names of those whose rows are given.
    """
    others = [task for task in tasks if task.name not in own]
    return "local" if all(task.local is not None for task in others) else "builtin"


def _check_source(task: Task, source: str) -> None:
    if source not in ("hub", "local", "builtin"):
        raise UserError(f"unknown source {source!r}; --data.source is hub, local or builtin")
    if task.builtin and source != "builtin":
        raise UserError(f"task {task.name} is built in; use --data.source builtin")
    if not task.builtin and source == "builtin":
        local = "--data.source local" + ("" if task.local else " --data.root FOLDER")
        use = f"--data.source hub, or {local}" if task.hub else local
        raise UserError(f"task {task.name} is not built in; use {use}")
