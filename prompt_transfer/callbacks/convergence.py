"""Convergence of a run: its evaluations and their cumulative cost, as a file in the run folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from prompt_transfer.data.baselines import trivial_score
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.prompted import PromptedModule
from prompt_transfer.utils.files import write_text_atomic

COLUMNS = ("prompt", "step", "samples", "seconds", "metric", "value", "majority")


class ConvergenceSpeed(Callback):
    """CSV file with one row per evaluation and prompt, written atomically to `path`.

    Columns:
        prompt: name of the prompt file without its suffix.
        step, samples: optimizer steps, and examples trained on over all processes.
        seconds: wall-clock time since `started`, including loading, preparation, training, waiting, checkpoints and
            evaluations (also the row's own). Resumed runs add the time of earlier processes up to their checkpoint.
        metric, value: the metric that selects prompts, on the validation split; the mean over several tasks.
        majority: the same metric of the majority class; for generation tasks, of the lead baseline.

    The rows are part of the checkpoint. A resumed run continues with those of its checkpoint, whatever the file
    contains, which avoids duplicate and missing rows. Process 0 writes.

    Args:
        path: the CSV file.
        from_start: also evaluate before the first step.
        started: `time.monotonic()` at the start of the run; None: at the creation of this callback.
    """

    def __init__(self, path: str | Path, from_start: bool = False, started: float | None = None) -> None:
        self.path = Path(path)
        self.from_start = from_start
        self.rows: list[list[Any]] = []
        self.samples = 0
        self._since = time.monotonic() if started is None else started
        self._majority: float | None = None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run so far."""
        return time.monotonic() - self._since

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not in `on_train_start`, where other callbacks (the progress bar) are not ready yet.
        if not self.from_start or trainer.global_step or self.rows:
            return
        # The same calls as in Lightning's training epoch loop.
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.samples += int(batch["global_count"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, PromptedModule)
        if self._majority is None:
            data: Any = trainer.datamodule
            counted = [index for index, task in enumerate(pl_module.tasks) if pl_module.selects(task)]
            # Unknown for the rows of other data modules.
            known = isinstance(data, TaskDataModule)
            found = [trivial_score(data, "validation", index) if known else float("nan") for index in counted]
            self._majority = sum(found) / len(found)
        metric = ",".join(sorted({task.metric for task in pl_module.tasks}))
        seconds = round(self.seconds, 3)
        for name, scores in pl_module.named_scores(trainer.callback_metrics, "validation").items():
            value = scores["score"]
            self.rows.append([name, trainer.global_step, self.samples, seconds, metric, value, self._majority])
        if trainer.is_global_zero:
            lines = [",".join(COLUMNS), *(",".join(_cell(value) for value in row) for row in self.rows)]
            write_text_atomic(self.path, "\n".join(lines) + "\n")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "samples": self.samples, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.samples = [list(row) for row in state_dict["rows"]], state_dict["samples"]
        # The start-up time of this process counts as well.
        self._since -= state_dict["seconds"]


def _cell(value: Any) -> str:
    text = repr(value) if isinstance(value, float) else str(value)
    return f'"{text}"' if "," in text else text
