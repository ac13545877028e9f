"""The folder of a run: what lies in it, and how a run begins there without losing another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Callback

from prompt_transfer.commands.lightning import CONFIG_FILE, RESULTS_FILE
from prompt_transfer.tracking.run import ID_FILE
from prompt_transfer.utils.files import LOCK, write_text_atomic
from prompt_transfer.utils.provenance import check_same_data, write_provenance

PROMPT_FILE, PROJECTOR_FILE, LAST = "prompt.safetensors", "projector.safetensors", "checkpoints/last.ckpt"
CONVERGENCE_FILE = "convergence.csv"


class RunFolder(Callback):
    """Writes configuration and provenance, and with `--overwrite` removes the old run: once all has proved to be sound.

    At the start of training data, checkpoint and options have been checked, so that a refused command changes nothing.
    """

    def __init__(self, folder: Path, text: str, overwrite: bool) -> None:
        self.folder, self.text, self.overwrite = folder, text, overwrite

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule
        digests, goes_on = data.digests(), trainer.global_step > 0
        if goes_on:
            check_same_data(self.folder, digests)
        if self.overwrite:
            # By name: what else lies there is not ours to remove.
            several = [path.name for kind in ("seed", "lr") for path in self.folder.glob(f"prompt-{kind}*.safetensors")]
            for name in (
                LAST,
                PROMPT_FILE,
                PROJECTOR_FILE,
                *several,
                CONVERGENCE_FILE,
                RESULTS_FILE,
                ID_FILE,
                "logs/metrics.csv",
            ):
                (self.folder / name).unlink(missing_ok=True)
        write_text_atomic(self.folder / CONFIG_FILE, self.text)
        facts = {"device": str(trainer.strategy.root_device), "processes": trainer.world_size}
        config = yaml.safe_load(self.text)
        write_provenance(self.folder, "fit", config, digests, goes_on, step=trainer.global_step, **facts)


def has_files(folder: Path) -> bool:
    """Whether anything lies in `folder` but the lock of a process."""
    return folder.is_dir() and any(path.name != LOCK for path in folder.iterdir())


def is_run(folder: Path) -> bool:
    """Whether `fit` made what lies in `folder`; a run killed in its first seconds has logs alone."""
    names = {path.name for path in folder.iterdir()} - {LOCK}
    return names <= {"logs"} or bool({CONFIG_FILE, PROMPT_FILE, PROJECTOR_FILE} & names) or (folder / LAST).is_file()
