"""What a score of written texts is compared with: answers that need no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prompt_transfer.data.sources import TaskData

if TYPE_CHECKING:
    from datasets import Dataset


def trivial_answers(task: TaskData, rows: Dataset) -> list[str]:
    """The lead baseline: the first words of each row's first text, as many as a target of the training split has.

    How many that is, is the mean over the first targets of all training rows, rounded, and at least one. For summaries
    it is the usual baseline (the first line says most); for questions it tells what answering without reading is worth.

    Args:
        task: a generation task with its splits (`TaskDataModule.data`).
        rows: N rows of any split, with the column ``text_a``.

    Returns:
        N texts, words joined by single blanks; score them with `prompt_transfer.metrics.example_scores`.
    """
    words = [len(targets[0].split()) for targets in task.split("train")["target"][:]]
    count = max(1, round(float(np.mean(words))))
    return [" ".join(text.split()[:count]) for text in rows["text_a"][:]]
