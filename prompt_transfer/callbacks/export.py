"""Callbacks that export the best prompt or projector of a run."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.cross_model_projector import CrossModelProjector
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.errors import UserError


class BestExport(Callback):
    """Base of callbacks that write `path` whenever the validation score improves.

    A run that ends without validation exports its final state, marked as not scored. The best scores are part of the
    checkpoint, which keeps a resumed run from replacing a better file with a worse one.

    Args:
        path: the file.
        metadata: strings to store in addition to the module's own (seed, data source).
    """

    def __init__(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        self.path = Path(path)
        self.metadata = metadata or {}
        # Name of the prompt or projector -> its best score and the step of that score.
        self.best: dict[str, tuple[float, int]] = {}

    @property
    def best_score(self) -> float | None:
        """The best score over all names."""
        return max((score for score, _ in self.best.values()), default=None)

    @property
    def best_step(self) -> int | None:
        """The first step with the best score."""
        return min((step for score, step in self.best.values() if score == self.best_score), default=None)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        module = self.checked(pl_module)
        for name, scores in module.named_scores(trainer.callback_metrics, "validation").items():
            value, overall = scores["score"], self.best_score
            if name in self.best and value <= self.best[name][0]:
                continue
            self.best[name] = (value, trainer.global_step)
            facts = {"split": "validation", "score": repr(value), "scores": json.dumps(scores)}
            self._write(trainer, module, name, overall is None or value > overall, facts)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.best and trainer.global_step > 0:
            module = self.checked(pl_module)
            names = self.names(module)
            for name in names:
                self._write(trainer, module, name, name == names[0], {})

    def _write(self, trainer: L.Trainer, module: Any, name: str, best: bool, scored: dict[str, str]) -> None:
        if not trainer.is_global_zero:
            return
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
        try:
            whole = self.make(module, name, facts)
        except UserError as error:
            kind = name.partition("-")[0]
            raise UserError(
                f"the {kind} was not written at step {trainer.global_step}: {error} (--model.learning_rate)"
            ) from error
        # Each prompt of an ensemble has a file of its own.
        own = self.path.with_stem(self.path.stem + "".join(name.partition("-")[1:]))
        for path in dict.fromkeys([own, self.path] if best else [own]):
            whole.save(path)

    def checked(self, module: L.LightningModule) -> Any:
        """Return the module if its type is supported.

        Raises:
            UserError: it is not.
        """
        raise NotImplementedError

    def names(self, module: Any) -> list[str]:
        """Return the names of the trained prompts or projectors, as in the module's `named_scores`."""
        raise NotImplementedError

    def make(self, module: Any, name: str, facts: dict[str, str]) -> Prompt | ProjectorFile:
        """Return the prompt or projector file to write, with its metadata.

        Raises:
            UserError: it contains non-finite values.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"best": {name: list(found) for name, found in self.best.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = {name: (score, step) for name, (score, step) in state_dict["best"].items()}


class PromptExport(BestExport):
    """Export of the best prompt of a run.

    Each prompt of an ensemble gets a file of its own next to `path` (`prompt-seed0.safetensors`); `path` is the best of
    all.
    """

    def checked(self, module: L.LightningModule) -> PromptTuning:
        if not isinstance(module, PromptTuning):
            raise UserError(f"PromptExport supports PromptTuning, not {type(module).__name__}")
        return module

    def names(self, module: PromptTuning) -> list[str]:
        # Without the stopped prompts of an ensemble.
        active = getattr(module, "active", None)
        return [name for number, name in enumerate(module.files) if active is None or number in active]

    def make(self, module: PromptTuning, name: str, facts: dict[str, str]) -> Prompt:
        prompt = module.prompt(name)
        # The module's metadata (the seed of an ensemble's prompt) overrides that of the run.
        facts = {**self.metadata, **prompt.metadata, **facts}
        return Prompt(prompt.embeddings, facts, prompt.initial, label_embeddings=prompt.label_embeddings)


class ProjectorExport(BestExport):
    """Export of the best projector of a run."""

    def checked(self, module: L.LightningModule) -> CrossModelProjector:
        if not isinstance(module, CrossModelProjector):
            raise UserError(f"ProjectorExport supports CrossModelProjector, not {type(module).__name__}")
        return module

    def names(self, module: CrossModelProjector) -> list[str]:
        return ["projector"]

    def make(self, module: CrossModelProjector, name: str, facts: dict[str, str]) -> ProjectorFile:
        file = module.projector_file()
        file.metadata = {**self.metadata, **file.metadata, **facts}
        file.tensors()
        return file
