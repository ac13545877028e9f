"""What LightningModules share that train something in front of a frozen backbone: steps, optimizer, checkpoints."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from transformers import get_scheduler

from prompt_transfer.backbones.encoder import TextEncoder
from prompt_transfer.backbones.frozen import FrozenBackbone, is_emulated
from prompt_transfer.modules.prompted import PromptedModule
from prompt_transfer.tasks.task import LABEL_WORDS_POLICIES
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.nonfinite import FirstNonFinite, largest

# A batch, and the numbers of the prompts that see it.
Pass = tuple[dict[str, Tensor], list[int]]
# Those of transformers that need nothing but their length.
SCHEDULES = ("linear", "constant", "constant_with_warmup", "cosine", "polynomial", "inverse_sqrt")


class TrainedModule(PromptedModule):
    """Trains what a subclass gives as `trained`; the backbone stays bit-equal.

    A subclass sets `prompt_length`, and builds what it trains in `begin`, or in `restore` from a checkpoint.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, a GGUF file, or a hub id.
        layout: of an encoder `prefix` (prompt, answer slot, text; the default) or `mask_first` (release 1.0 of Su et
            al.); of a causal backbone `start_answer_last` (the tokenizer's start token before the text; the default
            where it adds one) or `answer_last` (no start token).
        attention: `full` (the prompt sees the text) or `shared` (it sees only itself; faster).
        optimizer: default AdamW without weight decay.
        learning_rate: of the default optimizer; default: `default_learning_rate`.
        schedule: name of a transformers schedule (`linear`, `constant_with_warmup`, `cosine`, ...) over all steps.
        warmup_steps: optimizer steps of that schedule's warm-up.
        scheduler: a scheduler of your own, stepped every optimizer step, in place of `schedule`.
        dtype: of the backbone's weights (`float32`, `bfloat16`, `float16`); what is trained is float32 always.
        head: `lm`, or `embedding` for checkpoints without an LM head.
        label_words_policy: for label words of several tokens, in place of the tasks' own: `error`, `first` (token),
            `mean`, or `sequence` (the whole label text is scored: causal and seq2seq backbones).
        num_beams: beams of texts that are written; 1 writes greedily.
        backbone_dropout: use the backbone's dropout in training.
        gradient_checkpointing: for long inputs: keep only the layers' inputs and compute the rest again in the backward
            pass. Where single examples fit, `--data.max_tokens` saves memory at no cost.
        compile: compile the backbone's layers (`torch.compile`).
        revision: of a hub repository.
        trust_remote_code: run model code that comes with a checkpoint.
    """

    prompt_length: int
    # What a run trains, for messages.
    what = "prompt"

    def __init__(
        self,
        backbone: str = "roberta-nano",
        layout: str | None = None,
        attention: str = "full",
        optimizer: OptimizerCallable | None = None,
        learning_rate: float | None = None,
        schedule: str = "linear",
        warmup_steps: int = 0,
        scheduler: LRSchedulerCallable | None = None,
        dtype: str = "float32",
        head: str = "lm",
        label_words_policy: str | None = None,
        num_beams: int = 1,
        backbone_dropout: bool = False,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if optimizer is not None and learning_rate is not None:
            raise UserError("learning_rate is that of the default optimizer: with --model.optimizer give its own lr")
        if learning_rate is not None and not learning_rate > 0:
            raise UserError(f"learning_rate is {learning_rate}: give a number above 0 (null: the family's default)")
        if warmup_steps < 0:
            raise UserError(f"warmup_steps is {warmup_steps}: give 0 or more")
        if schedule not in SCHEDULES:
            raise UserError(f"unknown schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")
        if label_words_policy is not None and label_words_policy not in LABEL_WORDS_POLICIES:
            raise UserError(
                f"unknown label_words_policy {label_words_policy!r}: choose one of {', '.join(LABEL_WORDS_POLICIES)}"
            )
        if num_beams < 1:
            raise UserError(f"num_beams is {num_beams}: 1 writes greedily, more search")
        self._optimizer, self._scheduler = optimizer, scheduler
        # Places are positions of training batches.
        self.watched = FirstNonFinite()
        # The batch at hand, and the number from 1 of its optimizer step.
        self._position = self._step = 0
        self.backbone = FrozenBackbone(
            backbone,
            layout=layout,
            attention=attention,
            dtype=dtype,
            head=head,
            dropout=backbone_dropout,
            gradient_checkpointing=gradient_checkpointing,
            compile=compile,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        # Plain types only: Lightning loads checkpoints with weights_only.
        self.save_hyperparameters(
            {
                "backbone": backbone,
                "layout": self.backbone.layout.name,
                "attention": attention,
                "learning_rate": learning_rate or self.default_learning_rate,
                "schedule": schedule,
                "warmup_steps": warmup_steps,
                "dtype": dtype,
                "head": head,
                "label_words_policy": label_words_policy,
                "num_beams": num_beams,
                "backbone_dropout": backbone_dropout,
                "gradient_checkpointing": gradient_checkpointing,
                "compile": compile,
                "revision": revision,
            }
        )
        # Only what is trained is saved (`state_dict`), so the backbone is missing from every checkpoint.
        self.strict_loading = False

    @property
    def default_learning_rate(self) -> float:
        """Learning rate where none is given."""
        return self.backbone.family.learning_rate

    # Set-up ----------------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> TextEncoder:
        """What the datamodule tokenises with."""
        return self.backbone.encoder(self.prompt_length)

    def setup(self, stage: str) -> None:
        """Learn the tasks of the datamodule and make what is trained."""
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise UserError(
                f"--trainer.precision {self.trainer.precision} would cast what is trained and its optimizer too; "
                "use --model.dtype bfloat16 for the backbone's weights"
            )
        # The module itself is moved to its device only after this.
        device = self.trainer.strategy.root_device
        if self.trainer.is_global_zero and is_emulated(self.backbone.dtype_name, device):
            warnings.warn(
                f"this processor has no instructions for {self.backbone.dtype_name}: float32 will be faster here",
                stacklevel=2,
            )
        self.watched.reset()
        self.connect(self.trainer.datamodule.tasks)
        if not self.is_built:
            self.begin(int(torch.initial_seed() % 2**63))

    @property
    def is_built(self) -> bool:
        """Whether there is something to train."""
        raise NotImplementedError

    def begin(self, seed: int) -> None:
        """Make what is trained in the run whose seed is `seed`."""
        raise NotImplementedError

    def restore(self, state: dict[str, Tensor]) -> None:
        """Make room for the state of a checkpoint."""
        raise NotImplementedError

    # Steps -----------------------------------------------------------------------------------------------------

    def trained(self) -> list[torch.nn.Parameter]:
        """The parameters that a step trains."""
        raise NotImplementedError

    def passes(self, batches: list[dict[str, Tensor]]) -> list[Pass]:
        """The forward passes over some batches: each a batch and the numbers of the prompts that see it."""
        return [(batch, [0]) for batch in batches]

    def summed_losses(self, batch: dict[str, Tensor], members: list[int]) -> Tensor:
        """The sum of the examples' losses for each that is trained [N], 0 for those that are not among `members`."""
        raise NotImplementedError

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Mean loss over the examples of all ranks; several forward passes only save memory."""
        parameters = self.trained()
        count = batch["global_count"] / self.trainer.world_size
        *early, last = self.passes(batch["micro_batches"])
        gradients = [torch.zeros_like(p) for p in parameters]
        totals: list[Tensor] = []
        for part in early:
            losses = self.summed_losses(*part) / count
            found = torch.autograd.grad(losses.sum(), parameters, materialize_grads=True)
            for sum_, gradient in zip(gradients, found, strict=True):
                sum_ += gradient
            totals.append(losses.detach())
        losses = self.summed_losses(*last) / count
        totals.append(losses.detach())
        loss = losses.sum()
        if early:
            # A term of value zero whose gradient is that of the micro-batches whose graphs are gone already.
            carried = torch.stack([(g * p).sum() for g, p in zip(gradients, parameters, strict=True)]).sum()
            loss = loss + carried - carried.detach()
        self._position, self._step = batch["position"], self.trainer.global_step + 1
        self.trainer.datamodule.batch_done(self._position)
        whole = torch.stack(totals).sum(dim=0)
        self.watched.observe("loss", whole, self._position)
        self.log_losses(whole, batch["global_count"])
        return loss

    def log_losses(self, losses: Tensor, count: int) -> None:
        """Log the losses [N] of a step over `count` examples."""
        self.log("train/loss", losses[0], prog_bar=True, batch_size=count, sync_dist=True)

    @property
    def logs_this_step(self) -> bool:
        """Whether the loggers write at the end of this step: when its number is a multiple."""
        every = self.trainer.log_every_n_steps
        return every > 0 and (self.trainer.global_step + 1) % every == 0

    # Numbers that are not finite -------------------------------------------------------------------------------

    def largest_gradients(self) -> Tensor:
        """The largest absolute number in the gradient of each that is trained [N]."""
        return largest([p.grad for p in self.trained() if p.grad is not None])[None]

    def broken_prompts(self) -> list[int]:
        """Numbers of the prompts that hold NaN or Inf now."""
        with torch.no_grad():
            return [] if bool(torch.isfinite(self.current_prompt()).all()) else [0]

    def on_after_backward(self) -> None:
        # In fp16 an overflow is nothing unusual: the step is skipped and the loss scaled down.
        if self.trainer.precision != "16-mixed":
            self.watched.observe("gradient", self.largest_gradients(), self._position)
        if self.logs_this_step:
            self.stop_nonfinite()

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "fit":
            self.stop_nonfinite()
            for number in self.broken_prompts():
                self.handle_nonfinite(
                    number, f"step {self.trainer.global_step}: the {self.prompt_label(number)} holds NaN or Inf"
                )

    def on_train_end(self) -> None:
        self.stop_nonfinite()

    def stop_nonfinite(self) -> None:
        """Call `handle_nonfinite` for all whose loss or gradient was not finite in any step until now."""
        for number, (what, position) in self.watched.found(self.gather).items():
            rows = self.row_numbers(self.trainer.datamodule.trained_examples(position))
            step = self._step - (self._position - position)
            self.handle_nonfinite(
                number, f"step {step}: the {what} of the {self.prompt_label(number)} is NaN or Inf (training {rows})"
            )

    def prompt_label(self, number: int) -> str:
        """What is trained as number `number`, for messages."""
        return self.what

    def handle_nonfinite(self, number: int, trouble: str) -> None:
        if self.trainer.state.fn != "fit":
            super().handle_nonfinite(number, trouble)
        kept = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        more = f"; the last good checkpoint is kept: {kept}" if kept else ""
        raise UserError(f"{trouble}: lower --model.learning_rate, or try --model.dtype float32{more}")

    # Optimizer -------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[Any]:
        """What the optimizer is made for."""
        return self.trained()

    def configure_optimizers(self) -> dict[str, Any]:
        parameters = self.parameter_groups()
        if self._optimizer is None:
            # Weight decay would pull a prompt to zero, where no word embedding is; release 1.0 has none either, also
            # for projectors.
            optimizer = torch.optim.AdamW(parameters, lr=self.hparams.learning_rate, weight_decay=0.0)
        else:
            optimizer = self._optimizer(parameters)
        if self._scheduler is not None:
            scheduler = self._scheduler(optimizer)
        else:
            steps = self.trainer.estimated_stepping_batches
            if steps == float("inf"):
                raise UserError("give --trainer.max_steps or --trainer.max_epochs: the schedule must know its length")
            scheduler = get_scheduler(self.hparams.schedule, optimizer, self.hparams.warmup_steps, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Files -----------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Everything but the backbone."""
        state = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if not key.startswith("backbone.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # So that no checkpoint is replaced by one that cannot go on.
        self.stop_nonfinite()
        checkpoint["rng"] = torch.get_rng_state()
        if torch.cuda.is_available():
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state_all()
        checkpoint["fingerprint"] = self.backbone.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("fingerprint") != self.backbone.fingerprint:
            raise UserError(
                f"this checkpoint was trained on {checkpoint['hyper_parameters'].get('backbone')}, "
                f"another backbone than {self.backbone.id}"
            )
        state = checkpoint["state_dict"]
        if not self.is_built:
            self.restore(state)
        expected = {name: tensor.shape for name, tensor in self.state_dict().items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        if expected != found:
            other = sorted(name for name in expected | found if expected.get(name) != found.get(name))
            raise UserError(
                f"this checkpoint does not fit the options given with it ({', '.join(other)} differ): go on with the "
                "prompt length and reparameterization, or projector, that it was trained with, or start anew with "
                "--overwrite"
            )
        torch.set_rng_state(checkpoint["rng"].cpu())
        if torch.cuda.is_available() and checkpoint.get("cuda_rng"):
            torch.cuda.set_rng_state_all([state.cpu() for state in checkpoint["cuda_rng"]])
