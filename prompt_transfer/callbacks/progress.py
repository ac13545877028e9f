"""Progress bar over optimizer steps with the main metrics."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.console import RenderableType
from rich.progress import ProgressColumn, Task
from rich.text import Text


class _Speed(ProcessingSpeedColumn):
    """Iterations per second; empty while unknown, instead of 0.00it/s."""

    def render(self, task: Task) -> RenderableType:
        return super().render(task) if task.speed else Text("")


class StepProgress(RichProgressBar):
    """Lightning's rich bar on standard error, without a number of epochs, which a budget of steps does not have."""

    def __init__(self) -> None:
        super().__init__(leave=False, console_kwargs={"stderr": True})

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch}"

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        return [
            _Speed(column.style) if isinstance(column, ProcessingSpeedColumn) else column
            for column in super().configure_columns(trainer)
        ]

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        # Without the common prefixes, to fit the first metrics into 80 columns.
        return {
            name.removeprefix("train/").removeprefix("validation/"): (
                value if isinstance(value, str) else f"{float(value):.3f}"
            )
            for name, value in shown.items()
            if name != "v_num" and not name.endswith("/loss_epoch")
        }
