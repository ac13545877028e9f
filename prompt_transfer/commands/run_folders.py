"""Files of a run folder, written without damage to an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Callback

from prompt_transfer.commands.lightning import CONFIG_FILE, RESULTS_FILE
from prompt_transfer.tracking.mlflow_run import ID_FILE as MLFLOW_ID_FILE
from prompt_transfer.tracking.run import ID_FILE
from prompt_transfer.utils.files import LOCK, write_text_atomic
from prompt_transfer.utils.provenance import check_same_data, write_provenance

PROMPT_FILE, PROJECTOR_FILE, LAST = "prompt.safetensors", "projector.safetensors", "checkpoints/last.ckpt"
CONVERGENCE_FILE = "convergence.csv"


class RunFolder(Callback):
    """A callback that writes configuration and provenance, and with `--overwrite` removes the old run.

    It acts at the start of training, after all checks: a rejected command changes nothing.
    """

    def __init__(self, folder: Path, text: str, overwrite: bool) -> None:
        self.folder, self.text, self.overwrite = folder, text, overwrite

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule
        digests, resumed = data.digests(), trainer.global_step > 0
        if resumed:
            check_same_data(self.folder, digests)
        if self.overwrite:
            # By name, to keep the user's own files.
            several = [path.name for kind in ("seed", "lr") for path in self.folder.glob(f"prompt-{kind}*.safetensors")]
            for name in (
                LAST,
                PROMPT_FILE,
                PROJECTOR_FILE,
                *several,
                CONVERGENCE_FILE,
                RESULTS_FILE,
                ID_FILE,
                MLFLOW_ID_FILE,
                "logs/metrics.csv",
            ):
                (self.folder / name).unlink(missing_ok=True)
        write_text_atomic(self.folder / CONFIG_FILE, self.text)
        facts = {"device": str(trainer.strategy.root_device), "processes": trainer.world_size}
        config = yaml.safe_load(self.text)
        write_provenance(self.folder, "fit", config, digests, resumed, step=trainer.global_step, **facts)


def has_files(folder: Path) -> bool:
    """Return whether `folder` has any file other than a lock."""
    return folder.is_dir() and any(path.name != LOCK for path in folder.iterdir())


def is_run(folder: Path) -> bool:
    """Return whether `folder` is a run of `fit`; a run killed in its first seconds has only logs."""
    names = {path.name for path in folder.iterdir()} - {LOCK}
    return names <= {"logs"} or bool({CONFIG_FILE, PROMPT_FILE, PROJECTOR_FILE} & names) or (folder / LAST).is_file()
