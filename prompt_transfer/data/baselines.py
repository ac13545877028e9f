"""What a score is compared with: answers that need no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prompt_transfer.data.sources import TaskData
from prompt_transfer.tasks.metrics import class_metric, example_scores

if TYPE_CHECKING:
    from datasets import Dataset

    from prompt_transfer.data.datamodule import TaskDataModule


def trivial_answers(task: TaskData, rows: Dataset) -> list[str]:
    """The lead baseline: the first words of each row's first text, as many as a target of the training split has.

    How many that is, is the mean over the first targets of all training rows, rounded, and at least one. For summaries
    it is the usual baseline (the first line says most); for questions it tells what answering without reading is worth.

    Args:
        task: a generation task with its splits (`TaskDataModule.data`).
        rows: N rows of any split, with the column ``text_a``.

    Returns:
        N texts, words joined by single blanks; score them with `prompt_transfer.tasks.metrics.example_scores`.
    """
    words = [len(targets[0].split()) for targets in task.split("train")["target"][:]]
    count = max(1, round(float(np.mean(words))))
    return [" ".join(text.split()[:count]) for text in rows["text_a"][:]]


def trivial_score(data: TaskDataModule, split: str, index: int = 0) -> float:
    """What answers without a model score in the task's own metric: the commonest class, or the lead of each text.

    Args:
        data: the data module, with its rows at hand.
        split: of whose used rows.
        index: of the task.

    Returns:
        A fraction; for accuracy it is the majority share.
    """
    task = data.tasks[index]
    if task.is_generation:
        rows = data.selection.rows(split, index)
        answers = trivial_answers(data.data[index], rows)
        return float(example_scores(task, answers, rows["target"][:])[task.metric].mean())
    return majority_class(data, split, index)[task.metric]


def majority_class(data: TaskDataModule, split: str, index: int = 0) -> dict[str, float]:
    """What answering the commonest class of a split scores there, in every metric of the task; options as above."""
    counts = np.array(data.label_counts(split, index))
    labels = np.arange(len(counts)).repeat(counts)
    answers = np.full_like(labels, int(counts.argmax()))
    return {name: class_metric(name, answers, labels, len(counts)) for name in data.tasks[index].metrics}
