"""Few-shot subsets: K examples of each class; for generation tasks K examples in all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

# Validation examples of each class in few-shot runs: a number, as many as training examples, or all.
ValidationShots = int | Literal["same", "all"]


@dataclass(frozen=True)
class Shots:
    """Sizes of few-shot splits.

    A validation split of the training split's size is the usual setting (LM-BFF, Gao et al. 2021): selecting on a large
    one uses more labels than the few shots (Perez et al. 2021, *True few-shot learning*).

    Args:
        train: training examples of each class, or in all for generation tasks.
        validation: the same for the validation split; None: all.
    """

    train: int
    validation: int | None

    def of(self, split: str) -> int | None:
        """Return the number of examples of a split; None: all."""
        return {"train": self.train, "validation": self.validation}.get(split)


def parse_shots(shots: int | None, validation: ValidationShots, limit_train: int | None) -> Shots | None:
    """Return the sizes that the options ask for; None without `shots`.

    Raises:
        UserError: a number below 1, or options that exclude each other.
    """
    if shots is None:
        if validation not in ("same", "all"):
            raise UserError(
                f"--data.validation_shots {validation} is an option of few-shot runs: give --data.shots too"
            )
        return None
    for name, value in (("shots", shots), ("validation_shots", validation)):
        if not isinstance(value, str) and value < 1:
            raise UserError(f"--data.{name} must be 1 or more, not {value}")
    if limit_train is not None:
        raise UserError("--data.shots and --data.limit_train exclude each other: give one of them")
    if isinstance(validation, str):
        if validation not in ("same", "all"):
            raise UserError(f"--data.validation_shots must be a number, same or all, not {validation!r}")
        return Shots(shots, shots if validation == "same" else None)
    return Shots(shots, validation)


def draw(task: Task, split: str, labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the sorted places of `count` examples of each class; with a larger count all of them and more.

    Args:
        task: the task.
        split: train or validation, for messages.
        labels: the class of each example [n]; zeros for generation tasks, which have no classes.
        count: K.
        seed: seed of the permutation whose first examples of each class are taken.

    Raises:
        UserError: a class has fewer than `count` examples.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    classes = range(max(1, task.num_classes))
    counts = np.bincount(labels, minlength=len(classes))
    if (counts < count).any():
        raise UserError(_too_few(task, split, counts, count))
    return np.sort(np.concatenate([order[labels[order] == number][:count] for number in classes]))


def _too_few(task: Task, split: str, counts: NDArray[np.int64], count: int) -> str:
    least, option = int(counts.min()), "--data.shots" if split == "train" else "--data.validation_shots"
    less = f"{option} {least} or less" if least else ""
    every = "--data.validation_shots all" if split == "validation" else ""
    remedy = " or ".join(filter(None, (less, every))) or f"add examples, or leave out {option}"
    remedy = f"use {remedy}" if less or every else remedy
    if task.has_example_scores:
        return f"task {task.name}: {count} {split} examples are asked for, but there are {least}: {remedy}"
    short = [
        f"{word!r} has {number}"
        for word, number in zip(task.label_words, counts.tolist(), strict=True)
        if number < count
    ]
    shown = ", ".join(short[:5]) + (f" and {len(short) - 5} more" if len(short) > 5 else "")
    return f"task {task.name}: {count} {split} examples of each class are asked for, but class {shown}: {remedy}"
