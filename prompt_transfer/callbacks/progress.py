"""Live view of a run: steps, time left, score and best score, as a bar in a terminal and as lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.console import Console, RenderableType
from rich.progress import ProgressColumn, Task
from rich.text import Text

from prompt_transfer.callbacks.export import BestExport
from prompt_transfer.modules.prompted import PromptedModule
from prompt_transfer.utils.progress import duration, is_watched


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


def _callbacks(trainer: Any) -> list[Any]:
    return list(trainer.callbacks)


class _Speed(ProcessingSpeedColumn):
    """Iterations per second; empty while unknown, instead of 0.00it/s."""

    def render(self, task: Task) -> RenderableType:
        return super().render(task) if task.speed else Text("")


class StepProgress(RichProgressBar):
    """Lightning's rich bar on standard error, over the steps of the whole run if it has a budget of steps."""

    def __init__(self) -> None:
        super().__init__(leave=False, console_kwargs={"stderr": True})

    @property
    def total_train_batches(self) -> int | float:
        budget = self.trainer.max_steps
        return budget if budget > 0 else super().total_train_batches

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        running = self.train_progress_bar_id is not None
        if running and trainer.max_steps > 0:
            return  # the bar goes on through the epochs
        super().on_train_epoch_start(trainer, pl_module)
        if trainer.max_steps > 0 and trainer.global_step and self.progress is not None:
            # A resumed run starts here; its earlier steps say nothing about its speed.
            assert self.train_progress_bar_id is not None
            self.progress.reset(self.train_progress_bar_id, completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        place = trainer.global_step - 1 if trainer.max_steps > 0 else batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, place)

    def _get_train_description(self, current_epoch: int) -> str:
        return "training" if self.trainer.max_steps > 0 else f"epoch {current_epoch}"

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        return [
            _Speed(column.style) if isinstance(column, ProcessingSpeedColumn) else column
            for column in super().configure_columns(trainer)
        ]

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
        # The metrics of the last validation are in the score.
        losses = {name: value for name, value in metrics.items() if "loss" in name}
        return {**{name: f"{value:.3f}" for name, value in found.items()}, **losses}


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
        step, budget = trainer.global_step, trainer.max_steps
        parts = [f"step {step}" + (f"/{budget}" if budget > 0 else "")]
        parts += [f"{name} {value:.3f}" for name, value in scores(trainer, pl_module).items()]
        if 0 < step < budget and step > self._first:
            left = (time.monotonic() - self._began) / (step - self._first) * (budget - step)
            parts.append(f"{duration(left)} left")
        print(", ".join(parts), file=sys.stderr, flush=True)
