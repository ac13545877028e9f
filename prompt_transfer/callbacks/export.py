"""Keeps the best prompt of a run as a prompt file."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.errors import UserError
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts.prompt import Prompt


class PromptExport(Callback):
    """Writes `path` whenever the validation score is better than ever before in the run.

    A run that ends without any validation leaves its last prompt, marked as not scored. The best score is part of
    the checkpoint, so a resumed run does not replace a better prompt with a worse one.

    Args:
        path: the prompt file.
        metadata: string facts to store besides those that the module knows (seed, data source).
    """

    def __init__(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        self.path = Path(path)
        self.metadata = metadata or {}
        self.best_score: float | None = None
        self.best_step: int | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = trainer.callback_metrics.get("validation/score")
        if score is None:
            return
        value = float(score)
        if self.best_score is not None and value <= self.best_score:
            return
        self.best_score, self.best_step = value, trainer.global_step
        scores = {
            name.removeprefix("validation/"): float(number)
            for name, number in trainer.callback_metrics.items()
            if name.startswith("validation/")
        }
        facts = {"split": "validation", "score": repr(value), "scores": json.dumps(scores)}
        self._write(trainer, pl_module, facts)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.best_score is None and trainer.global_step > 0:
            self.best_step = trainer.global_step
            self._write(trainer, pl_module, {})

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, scored: dict[str, str]) -> None:
        if not isinstance(pl_module, PromptTuning):
            raise UserError(f"PromptExport writes prompts of PromptTuning, not of {type(pl_module).__name__}")
        if not trainer.is_global_zero:
            return
        if not torch.isfinite(pl_module.reparameterization.fold()).all():
            raise UserError(
                f"the prompt holds NaN or Inf at step {trainer.global_step} and was not written: "
                "lower --model.learning_rate"
            )
        prompt = pl_module.prompt()
        metrics = sorted({task.metric for task in pl_module.tasks})
        facts = {
            "metric": ",".join(metrics),
            "steps": str(trainer.global_step),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **scored,
            **self.metadata,
        }
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, TaskDataModule):
            facts["train_rows"] = str(sum(splits["train"]["rows"] for splits in data.describe()["splits"].values()))
        Prompt(prompt.embeddings, {**prompt.metadata, **facts}, prompt.initial).save(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
