"""Atomic checkpoints, a final validation, and current options after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from prompt_transfer.utils.files import atomic_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint I/O whose files are complete or absent.

    Lightning moves files from the system's temporary folder. Across file systems that is a copy, and a kill during the
    copy would destroy the last good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class FinalValidation(Callback):
    """Validation after the last step, even if it is no multiple of the validation interval.

    Otherwise the steps since the last validation would be neither scored nor kept.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        last_step = trainer.max_steps is not None and 0 < trainer.max_steps <= trainer.global_step
        epochs = trainer.max_epochs or 0
        last_batch = trainer.is_last_batch and 0 < epochs <= trainer.current_epoch + 1
        if last_step or last_batch:
            # Lightning validates once more when a run stops.
            trainer.should_stop = True


class GivenOptimizerOptions(Callback):
    """Optimizer options that override those of the checkpoint after a resume.

    Restoring an optimizer also restores its learning rate: `--resume --model.learning_rate X` would be saved in the
    configuration but not used. Moments and the position in the schedule are kept.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            return
        wanted: Any = pl_module.configure_optimizers()
        scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
        for group, fresh in zip(trainer.optimizers[0].param_groups, wanted["optimizer"].param_groups, strict=True):
            if group["initial_lr"]:
                group["lr"] *= fresh["initial_lr"] / group["initial_lr"]
            group.update({key: value for key, value in fresh.items() if key not in ("params", "lr")})
        scheduler.base_lrs = list(wanted["lr_scheduler"]["scheduler"].base_lrs)
