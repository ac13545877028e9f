"""CSV log that a resumed run appends to; Lightning's CSV logger deletes the rows of earlier processes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from prompt_transfer.utils.files import atomic_path


class _Writer(ExperimentWriter):
    """Writer that touches no file before training begins, because a rejected command must not change the log."""

    def _check_log_dir_exists(self) -> None:
        """The base class deletes the old log here."""

    def log_hparams(self, params: dict[str, Any]) -> None:
        self.hparams.update(params)

    def begin(self, step: int) -> None:
        """Keep the rows of the first `step` steps; later steps are trained and logged again."""
        super().log_hparams({})
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        rows, names = self._rows()
        # A kill may have cut the last row short.
        kept = [row for row in rows if str(row.get("step")).isdigit() and int(row["step"]) < step]
        if kept:
            self.metrics_keys = list(names)
            self._rewrite_with_new_header(self.metrics_keys, kept)
        else:
            path.unlink()

    def _rows(self) -> tuple[list[dict[str, Any]], Sequence[str]]:
        with Path(self.metrics_file_path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return [row for row in reader if None not in row and None not in row.values()], reader.fieldnames or ()

    def _rewrite_with_new_header(self, fieldnames: list[str], rows: list[dict[str, Any]] | None = None) -> None:
        rows = self._rows()[0] if rows is None else rows
        with atomic_path(self.metrics_file_path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)


class RunLog(CSVLogger):
    """`logs/metrics.csv` in a run folder, continued by every process that resumes the run.

    Args:
        folder: the folder of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version="logs")

    _experiment: Any

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment


class LogFlush(Callback):
    """Callback that opens the log when training begins and flushes it before each checkpoint."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, RunLog):
                logger.experiment.begin(trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Lightning's count is one too low after resuming from a checkpoint of a last step between two validations.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            for logger in trainer.loggers:
                logger.save()
