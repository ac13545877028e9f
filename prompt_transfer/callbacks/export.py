"""Keeps the best prompts of a run as prompt files."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.errors import UserError
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts.prompt import Prompt


class PromptExport(Callback):
    """Writes `path` whenever the validation score is better than ever before in the run.

    Of prompts that are trained at once each has a file of its own beside it (`prompt-seed0.safetensors`), and `path` is
    the best of all. A run that ends without any validation leaves its last prompt, marked as not scored. The best
    scores are part of the checkpoint, so a resumed run does not replace a better prompt with a worse one.

    Args:
        path: the prompt file.
        metadata: string facts to store besides those that the module knows (seed, data source).
    """

    def __init__(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        self.path = Path(path)
        self.metadata = metadata or {}
        # Name of the prompt -> its best score and the step of it.
        self.best: dict[str, tuple[float, int]] = {}

    @property
    def best_score(self) -> float | None:
        """The best of all."""
        return max((score for score, _ in self.best.values()), default=None)

    @property
    def best_step(self) -> int | None:
        """The step at which a prompt first had the best score of all."""
        return min((step for score, step in self.best.values() if score == self.best_score), default=None)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        module = _checked(pl_module)
        for name, scores in module.named_scores(trainer.callback_metrics, "validation").items():
            value, overall = scores["score"], self.best_score
            if name in self.best and value <= self.best[name][0]:
                continue
            self.best[name] = (value, trainer.global_step)
            facts = {"split": "validation", "score": repr(value), "scores": json.dumps(scores)}
            self._write(trainer, module, name, overall is None or value > overall, facts)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.best and trainer.global_step > 0:
            module = _checked(pl_module)
            for name in module.files:
                self._write(trainer, module, name, name == module.files[0], {})

    def _write(self, trainer: L.Trainer, module: PromptTuning, name: str, best: bool, scored: dict[str, str]) -> None:
        if not trainer.is_global_zero:
            return
        try:
            prompt = module.prompt(name)
        except UserError as error:
            raise UserError(
                f"the prompt was not written at step {trainer.global_step}: {error} (--model.learning_rate)"
            ) from error
        metrics = sorted({task.metric for task in module.tasks})
        facts = {
            "metric": ",".join(metrics),
            "steps": str(trainer.global_step),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **scored,
        }
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, TaskDataModule):
            facts["train_rows"] = str(sum(splits["train"]["rows"] for splits in data.describe()["splits"].values()))
        # What the module knows of a prompt (the seed of one of several) wins over what holds for the run.
        whole = Prompt(prompt.embeddings, {**self.metadata, **prompt.metadata, **facts}, prompt.initial)
        own = self.path.with_stem(self.path.stem + name.removeprefix("prompt"))
        for path in dict.fromkeys([own, self.path] if best else [own]):
            whole.save(path)

    def state_dict(self) -> dict[str, Any]:
        return {"best": {name: list(found) for name, found in self.best.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = {name: (score, step) for name, (score, step) in state_dict["best"].items()}


def _checked(module: L.LightningModule) -> PromptTuning:
    if not isinstance(module, PromptTuning):
        raise UserError(f"PromptExport writes prompts of PromptTuning, not of {type(module).__name__}")
    return module
