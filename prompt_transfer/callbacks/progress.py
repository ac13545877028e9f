"""Live view of a run: steps, time left, score and best score, as a bar in a terminal and as lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from prompt_transfer.callbacks.export import BestExport
from prompt_transfer.modules.prompted import PromptedModule
from prompt_transfer.utils.progress import duration, is_watched

# Columns of the bar at most, and of the terminal from which losses are shown too.
BAR, WIDE = 40, 120


def progress_callback() -> ProgressBar:
    """Return the live view for standard error: a bar in a terminal, lines elsewhere."""
    return StepProgress() if is_watched(Console(stderr=True)) else StepLines()


def scores(trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
    """Return `score` of the last validation, the highest of several prompts, and `best` of the run so far."""
    if not isinstance(module, PromptedModule):
        return {}
    logged = module.named_scores(trainer.callback_metrics, "validation")
    last = [own["score"] for own in logged.values() if "score" in own]
    found = {"score": max(last)} if last else {}
    # The export keeps the best score, also through a resume.
    best = [callback.best_score for callback in _callbacks(trainer) if isinstance(callback, BestExport)]
    known = [score for score in best if score is not None]
    return found | ({"best": max(known)} if known else {})


def budget(trainer: L.Trainer) -> int:
    """Return the optimizer steps of a run by `max_steps` and `max_epochs`, whichever ends first; 0 for no limit."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 < steps < math.inf else 0


def _callbacks(trainer: Any) -> list[Any]:
    return list(trainer.callbacks)


class _Speed(ProcessingSpeedColumn):
    """Iterations per second; empty while unknown, instead of 0.00it/s."""

    def render(self, task: Task) -> RenderableType:
        return super().render(task) if task.speed else Text("")


class StepProgress(RichProgressBar):
    """Lightning's rich bar on standard error, over the steps of the whole run if it has a limit."""

    def __init__(self) -> None:
        super().__init__(leave=False, console_kwargs={"stderr": True})

    @property
    def total_train_batches(self) -> int | float:
        return budget(self.trainer) or super().total_train_batches

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        running = self.train_progress_bar_id is not None
        if running and budget(trainer):
            return  # the bar goes on through the epochs
        super().on_train_epoch_start(trainer, pl_module)
        if budget(trainer) and trainer.global_step and self.progress is not None:
            # A resumed run starts here; its earlier steps say nothing about its speed.
            assert self.train_progress_bar_id is not None
            self.progress.reset(self.train_progress_bar_id, completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        place = trainer.global_step - 1 if budget(trainer) else batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, place)

    def _get_train_description(self, current_epoch: int) -> str:
        return "training" if budget(self.trainer) else f"epoch {current_epoch}"

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        columns = [
            _Speed(column.style) if isinstance(column, ProcessingSpeedColumn) else column
            for column in super().configure_columns(trainer)
        ]
        for column in columns:
            column._table_column = Column(no_wrap=True)
            if isinstance(column, BarColumn):
                # On a narrow terminal the bar alone becomes shorter.
                column.bar_width, column._table_column = None, Column(max_width=BAR)
        return columns

    def _init_progress(self, trainer: L.Trainer) -> None:
        super()._init_progress(trainer)
        if self._metric_component is not None:
            self._metric_component._table_column = Column(no_wrap=True)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        # Without the common prefixes, to fit the first metrics into 80 columns.
        metrics = {
            name.removeprefix("train/").removeprefix("validation/"): (
                value if isinstance(value, str) else f"{float(value):.3f}"
            )
            for name, value in shown.items()
            if name != "v_num" and not name.endswith("/loss_epoch")
        }
        if trainer.state.fn != "fit" or not (found := scores(trainer, pl_module)):
            return metrics
        scored = {name: f"{value:.3f}" for name, value in found.items()}
        if self.progress is not None and self.progress.console.width < WIDE:
            return scored
        # The metrics of the last validation are in the score.
        losses = {name: value for name, value in metrics.items() if "loss" in name}
        return {**scored, **losses}


class StepLines(ProgressBar):
    """One line on standard error after each validation of a run: step, score, best score, time left."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = True
        self._began, self._first = time.monotonic(), 0

    def disable(self) -> None:
        self._shown = False  # called on all processes but the first

    def enable(self) -> None:
        self._shown = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began, self._first = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._shown or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        step, last = trainer.global_step, budget(trainer)
        parts = [f"step {step}" + (f"/{last}" if last else "")]
        parts += [f"{name} {value:.3f}" for name, value in scores(trainer, pl_module).items()]
        if self._first < step < last:
            left = (time.monotonic() - self._began) / (step - self._first) * (last - step)
            parts.append(f"{duration(left)} left")
        print(", ".join(parts), file=sys.stderr, flush=True)
