"""Report of the examples that a few-shot run trains and selects on."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from prompt_transfer.data.datamodule import TaskDataModule


class FewShotReport(Callback):
    """Prints, at the start of a few-shot run, the number of examples of each class in training and validation.

    Args:
        seeds: number of seeds that are trained at once; they share the examples.
    """

    def __init__(self, seeds: int = 1) -> None:
        self.seeds = seeds

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: Any = trainer.datamodule
        if trainer.is_global_zero and isinstance(data, TaskDataModule) and data.selection.shots is not None:
            print(*few_shot_lines(data), sep="\n")
            if self.seeds > 1:
                print(f"the {self.seeds} seeds share these examples; --data.seed draws others")


def few_shot_lines(data: TaskDataModule) -> list[str]:
    """Return a line for each task with its classes' counts in training and validation."""
    lines = [f"few-shot examples (--data.seed {data.seed})"]
    for index, task in enumerate(data.tasks):
        parts = []
        for split in ("train", "validation"):
            total, counts = len(data.selection.rows(split, index)), data.label_counts(split, index)
            each = ", ".join(f"{count} {word}" for count, word in zip(counts, task.label_words, strict=False))
            parts.append(f"{split} {total}" + (f" ({each})" if each else ""))
        lines.append(f"  {task.name}: {'; '.join(parts)}")
    return lines
