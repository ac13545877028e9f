"""Rows of a user's own task, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

NAMES = ["film", "story", "man", "woman", "dog", "cat", "house", "city", "day", "night"]


def rows(count: int = 40, labels: tuple[Any, Any] = ("bad", "good"), text: str = "text") -> list[dict[str, Any]]:
    """Return rows with `text` and `label`; every second one is good, and no two texts are equal."""
    return [
        {text: f"the {NAMES[i % 10]} is {('bad', 'good')[i % 2]} {'very ' * (i // 10)}".strip(), "label": labels[i % 2]}
        for i in range(count)
    ]


def write_reviews(folder: Path, count: int = 200) -> Path:
    """Write `reviews.csv`, the table of the documentation's examples: film reviews labelled good or bad."""
    from prompt_transfer.data.datamodule import TaskDataModule

    found = TaskDataModule("builtin_movies").data[0].split("train").to_pandas()[:count]
    path = folder / "reviews.csv"
    words = found["label"].map({0: "bad", 1: "good"})
    pd.DataFrame({"text": found["text_a"], "label": words}).to_csv(path, index=False)
    return path
