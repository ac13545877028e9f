"""Base of the LightningModules that train in front of a frozen backbone: steps, optimizer, checkpoints."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from prompt_transfer.backbones.config import BackboneConfig, is_emulated
from prompt_transfer.backbones.encoder import TextEncoder
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.data.description import prompt_facts
from prompt_transfer.modules.optimization import OptimizationConfig
from prompt_transfer.modules.prompted import PromptedModule
from prompt_transfer.tasks.task import LABEL_WORDS_POLICIES
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.nonfinite import FirstNonFinite, largest

# A batch and the numbers of the prompts that are applied to it.
Pass = tuple[dict[str, Tensor], list[int]]
# Saved under another name, or not at all: permission to run code is not inherited from a checkpoint.
_NOT_SAVED = ("name", "dropout", "trust_remote_code")


class TrainedModule(PromptedModule):
    """Base of modules that train parameters (`trained`) in front of a frozen backbone, which stays bit-equal.

    A subclass sets `prompt_length` and builds its parameters in `begin`, or in `restore` from a checkpoint.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, a GGUF file, or a Hub id.
        optimizer: default: AdamW without weight decay.
        learning_rate: of the default optimizer; default: that of the backbone's family, for projectors 1e-3.
        schedule: name of a transformers schedule (`linear`, `constant_with_warmup`, `cosine`, ...) over all steps.
        warmup_steps: optimizer steps of that schedule's warm-up.
        scheduler: a custom scheduler, stepped every optimizer step; replaces `schedule`.
        label_words_policy: for label words of several tokens; overrides the tasks' own policy: `error`, `first`
            (token), `mean`, or `sequence` (score the whole label text: causal and seq2seq backbones).
        num_beams: beams for generated text; 1 is greedy decoding.
        backbone_dropout: use the backbone's dropout in training.
        backbone_options: the other fields of `BackboneConfig`.
    """

    prompt_length: int
    # Used in messages.
    trained_name = "prompt"

    def __init__(
        self,
        backbone: str = "roberta-nano",
        optimizer: OptimizerCallable | None = None,
        learning_rate: float | None = None,
        schedule: str = "linear",
        warmup_steps: int = 0,
        scheduler: LRSchedulerCallable | None = None,
        label_words_policy: str | None = None,
        num_beams: int = 1,
        backbone_dropout: bool = False,
        **backbone_options: Any,
    ) -> None:
        super().__init__()
        self.optimization = OptimizationConfig(optimizer, learning_rate, schedule, warmup_steps, scheduler)
        if label_words_policy is not None and label_words_policy not in LABEL_WORDS_POLICIES:
            raise UserError(
                f"unknown label_words_policy {label_words_policy!r}: choose one of {', '.join(LABEL_WORDS_POLICIES)}"
            )
        if num_beams < 1:
            raise UserError(f"num_beams is {num_beams}: give 1 (greedy decoding) or more")
        # Metadata of the prompt that come from the data.
        self.data_facts: dict[str, str] = {}
        # Places are positions of training batches in the data order.
        self.watched = FirstNonFinite()
        # Position of the current batch, and its optimizer step, counted from 1.
        self._position = self._step = 0
        # jsonargparse resolves `backbone_options` through this call: it makes the fields flags of the command line.
        config = BackboneConfig(backbone, dropout=backbone_dropout, **backbone_options)
        self.backbone = FrozenBackbone(config)
        # Plain types only, because Lightning loads checkpoints with weights_only.
        self.save_hyperparameters(
            {
                "backbone": backbone,
                "backbone_dropout": backbone_dropout,
                **{name: value for name, value in asdict(config).items() if name not in _NOT_SAVED},
                "layout": self.backbone.layout.name,
                "learning_rate": learning_rate or self.default_learning_rate,
                "schedule": schedule,
                "warmup_steps": warmup_steps,
                "label_words_policy": label_words_policy,
                "num_beams": num_beams,
            }
        )
        # The backbone is missing from every checkpoint (`state_dict`).
        self.strict_loading = False

    @property
    def default_learning_rate(self) -> float:
        """Learning rate if none is given: that of the backbone's family."""
        return self.backbone.family.learning_rate

    # Set-up ----------------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> TextEncoder:
        """The encoder that the datamodule tokenizes with."""
        return self.backbone.encoder(self.prompt_length)

    def setup(self, stage: str) -> None:
        """Connect the tasks of the datamodule and build the trained parameters."""
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise UserError(
                f"--trainer.precision {self.trainer.precision} would also cast the trained parameters and "
                "their optimizer; use --model.dtype bfloat16 for the backbone's weights"
            )
        # The module is not on its device yet.
        device = self.trainer.strategy.root_device
        if self.trainer.is_global_zero and is_emulated(self.backbone.dtype_name, device):
            warnings.warn(
                f"this processor has no instructions for {self.backbone.dtype_name}: float32 is faster here",
                stacklevel=2,
            )
        self.watched.reset()
        self.connect(self.run_tasks())
        self.data_facts = prompt_facts(self.trainer.datamodule) if self.has_own_batches else {}
        if not self.is_built:
            self.begin(int(torch.initial_seed() % 2**63))

    @property
    def is_built(self) -> bool:
        """Whether the trained parameters exist."""
        raise NotImplementedError

    def begin(self, seed: int) -> None:
        """Initialize the trained parameters with the seed of the run."""
        raise NotImplementedError

    def restore(self, state: dict[str, Tensor]) -> None:
        """Allocate parameters that fit the state of a checkpoint."""
        raise NotImplementedError

    # Steps -----------------------------------------------------------------------------------------------------

    def trained(self) -> list[torch.nn.Parameter]:
        """Return the parameters that a step trains."""
        raise NotImplementedError

    def passes(self, batches: list[dict[str, Tensor]]) -> list[Pass]:
        """Return the forward passes of a step: each a batch and the numbers of the prompts that are applied to it."""
        return [(batch, [0]) for batch in batches]

    def summed_losses(self, batch: dict[str, Tensor], members: list[int]) -> Tensor:
        """Return each prompt's summed loss [N], 0 for prompts that are not in `members`."""
        raise NotImplementedError

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the mean loss over the examples of all ranks; several forward passes only save memory."""
        parameters, batch = self.trained(), self.complete(batch)
        count = batch["global_count"] / self.trainer.world_size
        passes = self.passes(batch["micro_batches"])
        *early, last = passes
        # Repetitions without effect: sharded layers are gathered by all processes at once.
        repeats = self._most_passes(len(passes)) - len(passes)
        early = [passes[0]] * repeats + early
        gradients = [torch.zeros_like(p) for p in parameters] if early else []
        totals: list[Tensor] = []
        for number, part in enumerate(early):
            losses = self.summed_losses(*part) / count * (number >= repeats)
            found = torch.autograd.grad(losses.sum(), parameters, materialize_grads=True)
            for sum_, gradient in zip(gradients, found, strict=True):
                sum_ += gradient
            totals.append(losses.detach())
        losses = self.summed_losses(*last) / count
        totals.append(losses.detach())
        loss = losses.sum()
        if early:
            # A term of value zero that carries the gradients of the earlier micro-batches, whose graphs are freed.
            carried = torch.stack([(g * p).sum() for g, p in zip(gradients, parameters, strict=True)]).sum()
            loss = loss + carried - carried.detach()
        self._position, self._step = batch["position"], self.trainer.global_step + 1
        if hasattr(self.trainer.datamodule, "batch_done"):
            self.trainer.datamodule.batch_done(self._position)
        whole = torch.stack(totals).sum(dim=0)
        self.watched.observe("loss", whole, self._position)
        self.log_losses(whole, batch["global_count"])
        return loss

    def _most_passes(self, own: int) -> int:
        """Return the largest number of passes of any process if the backbone is sharded, else this process's `own`."""
        if self.gather is None or not self.backbone.is_sharded:
            return own
        return int(self.gather(torch.tensor(own, device=self.device)).max())

    def log_losses(self, losses: Tensor, count: int) -> None:
        """Log the losses [N] of a step over `count` examples."""
        self.log("train/loss", losses[0], prog_bar=True, batch_size=count, sync_dist=True)

    @property
    def logs_this_step(self) -> bool:
        """Whether the loggers write at the end of this step."""
        every = self.trainer.log_every_n_steps
        return every > 0 and (self.trainer.global_step + 1) % every == 0

    # Non-finite values ------------------------------------------------------------------------------------------

    def largest_gradients(self) -> Tensor:
        """Return the largest absolute gradient of each prompt [N]."""
        return largest([p.grad for p in self.trained() if p.grad is not None])[None]

    def broken_prompts(self) -> list[int]:
        """Return the numbers of the prompts that contain NaN or Inf."""
        with torch.no_grad():
            return [] if bool(torch.isfinite(self.current_prompt()).all()) else [0]

    def on_after_backward(self) -> None:
        # Overflows are normal in fp16: the step is skipped and the loss scale lowered.
        if self.trainer.precision != "16-mixed":
            self.watched.observe("gradient", self.largest_gradients(), self._position)
        if self.logs_this_step:
            self.stop_nonfinite()

    def on_validation_start(self) -> None:
        super().on_validation_start()
        if self.trainer.state.fn == "fit":
            self.stop_nonfinite()
            for number in self.broken_prompts():
                self.handle_nonfinite(
                    number, f"step {self.trainer.global_step}: the {self.prompt_label(number)} holds NaN or Inf"
                )

    def on_train_end(self) -> None:
        self.stop_nonfinite()

    def stop_nonfinite(self) -> None:
        """Call `handle_nonfinite` for each prompt with a non-finite loss or gradient in any step so far."""
        for number, (quantity, position) in self.watched.found(self.gather).items():
            step = self._step - (self._position - position)
            label = self.prompt_label(number)
            rows = ""
            if hasattr(self.trainer.datamodule, "trained_examples"):
                rows = f" (training {self.row_numbers(self.trainer.datamodule.trained_examples(position))})"
            self.handle_nonfinite(number, f"step {step}: the {quantity} of the {label} is NaN or Inf{rows}")

    def prompt_label(self, number: int) -> str:
        """Return the name of prompt `number` in messages."""
        return self.trained_name

    def handle_nonfinite(self, number: int, trouble: str) -> None:
        if self.trainer.state.fn != "fit":
            super().handle_nonfinite(number, trouble)
        kept = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        more = f"; the last good checkpoint is kept: {kept}" if kept else ""
        raise UserError(f"{trouble}: lower --model.learning_rate, or try --model.dtype float32{more}")

    # Optimizer -------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[Any]:
        """Return the parameters or parameter groups of the optimizer."""
        return self.trained()

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimization.make_optimizer(self.parameter_groups(), self.hparams.learning_rate)
        scheduler = self.optimization.make_scheduler(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Files -----------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the state without the backbone."""
        state = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if not key.startswith("backbone.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A broken state must not replace the last good checkpoint.
        self.stop_nonfinite()
        checkpoint["rng"] = torch.get_rng_state()
        if torch.cuda.is_available():
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state_all()
        checkpoint["fingerprint"] = self.backbone.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("fingerprint") != self.backbone.fingerprint:
            raise UserError(
                f"this checkpoint was trained on {checkpoint['hyper_parameters'].get('backbone')}, "
                f"another backbone than {self.backbone.id}: resume with that backbone"
            )
        state = checkpoint["state_dict"]
        if not self.is_built:
            self.restore(state)
        expected = {name: tensor.shape for name, tensor in self.state_dict().items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        if expected != found:
            other = sorted(name for name in expected | found if expected.get(name) != found.get(name))
            raise UserError(
                f"this checkpoint does not match the given options ({', '.join(other)} differ): resume with the prompt "
                "length and reparameterization, or projector, of its training, or start from scratch with --overwrite"
            )
        torch.set_rng_state(checkpoint["rng"].cpu())
        if torch.cuda.is_available() and checkpoint.get("cuda_rng"):
            torch.cuda.set_rng_state_all([state.cpu() for state in checkpoint["cuda_rng"]])
