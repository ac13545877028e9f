"""Baselines that need no model: the majority class, and the lead of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prompt_transfer.data.choices import constant_choice
from prompt_transfer.data.sources import TaskData
from prompt_transfer.tasks.metrics import class_metric, example_scores

if TYPE_CHECKING:
    from datasets import Dataset

    from prompt_transfer.data.datamodule import TaskDataModule


def trivial_answers(task: TaskData, rows: Dataset) -> list[str]:
    """Return the lead baseline: the first words of each row's first text, as many as the mean training target has.

    The number of words is the mean over the first targets of all training rows, rounded, at least one. For
    summarization this is the usual baseline; for questions it is the score of answering without reading.

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
    """Return the baseline's score in the task's main metric: the majority class, or the lead of each text.

    Args:
        data: the data module, with its rows loaded.
        split: split to score.
        index: index of the task.

    Returns:
        A fraction; for accuracy the share of the majority class.
    """
    task = data.tasks[index]
    if task.is_generation:
        rows = data.selection.rows(split, index)
        answers = trivial_answers(data.data[index], rows)
        return float(example_scores(task, answers, rows["target"][:])[task.metric].mean())
    return majority_class(data, split, index)[task.metric]


def majority_class(data: TaskDataModule, split: str, index: int = 0) -> dict[str, float]:
    """Return the score of always answering the split's majority class, for every metric; options as `trivial_score`.

    Multiple choice: of always choosing the option at the position that is best on the split (`constant_choice`).
    """
    task = data.tasks[index]
    if task.is_choice:
        table = data.tokens(split)
        assert table.options is not None
        scores = constant_choice(table.options, np.flatnonzero(table.task_ids == index)).mean(axis=0)
        return {name: float(value) for name, value in zip(task.metrics, scores, strict=False)}
    groups = data.selection.rows(split, index)["group"][:] if task.group is not None else None
    if groups is not None:
        true = np.asarray(data.selection.rows(split, index)["label"][:])
        always = np.full_like(true, int(np.bincount(true).argmax()))
        return {name: class_metric(name, always, true, task.num_classes, groups) for name in task.metrics}
    counts = np.array(data.label_counts(split, index))
    labels = np.arange(len(counts)).repeat(counts)
    answers = np.full_like(labels, int(counts.argmax()))
    return {name: class_metric(name, answers, labels, len(counts)) for name in data.tasks[index].metrics}
