"""Neurons in a Lightning run: captured or masked while a prompt is validated or tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from prompt_transfer.modules.prompt_ensemble import PromptEnsemble
from prompt_transfer.modules.prompted import PromptedModule
from prompt_transfer.neurons import files
from prompt_transfer.neurons.capture import NeuronCapture
from prompt_transfer.neurons.hooks import FfnHooks
from prompt_transfer.neurons.mask import NeuronMask
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir


class _EvaluationHooks(Callback):
    """Base of callbacks whose hooks are active during each evaluation and removed however it ends."""

    def __init__(self) -> None:
        self._hooks: FfnHooks | None = None

    def make(self, module: PromptedModule) -> FfnHooks:
        """Return the hooks for an evaluation."""
        raise NotImplementedError

    def finish(self, trainer: L.Trainer, module: PromptedModule, hooks: FfnHooks) -> None:
        """Process the hooks after a completed evaluation."""

    def _start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if not isinstance(module, PromptedModule) or isinstance(module, PromptEnsemble):
            raise UserError(f"{type(self).__name__} supports one prompt at a time, not {type(module).__name__}")
        self._stop()
        self._hooks = self.make(module).__enter__()

    def _end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        hooks = self._stop()
        if hooks is not None:
            assert isinstance(module, PromptedModule)
            self.finish(trainer, module, hooks)

    def _stop(self) -> FfnHooks | None:
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.__exit__(None, None, None)
        return hooks

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stop()


class CaptureNeurons(_EvaluationHooks):
    """Neuron statistics at the answer slot over the evaluated examples, as written by `neurons capture --tasks`.

    `STEP.safetensors` contains `mean`, `active` (the share of examples) [L, F], `before` and for gated FFNs `gate`.
    With several processes, the sums are combined by one all-reduce and process 0 writes.

    Args:
        folder: output folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = check_writable_dir(folder)

    def make(self, module: PromptedModule) -> NeuronCapture:
        return NeuronCapture(module.backbone)

    def finish(self, trainer: L.Trainer, module: PromptedModule, hooks: FfnHooks) -> None:
        assert isinstance(hooks, NeuronCapture)
        hooks.all_reduce()
        if not trainer.is_global_zero:
            return
        means = {name: values[0] for name, values in hooks.means().items()}
        means["mean"] = means.pop("activations")
        facts = {
            "backbone": module.backbone.fingerprint,
            "prompt": files.digest(module.current_prompt()),
            "task": ",".join(task.name for task in module.tasks),
            "examples": str(int(hooks.counts[0])),
        }
        path = self.folder / f"{trainer.global_step:08d}.safetensors"
        path.unlink(missing_ok=True)
        files.add(path, means, facts)


class MaskNeurons(_EvaluationHooks):
    """Neuron mask that applies in validation and test, not in training.

    Args:
        mask: bool [L, F].
        options: those of `NeuronMask`: method, means, deviation, seed.
    """

    def __init__(self, mask: torch.Tensor, **options: Any) -> None:
        super().__init__()
        self.mask, self.options = mask, options

    def make(self, module: PromptedModule) -> NeuronMask:
        return NeuronMask(module.backbone, self.mask, **self.options)
