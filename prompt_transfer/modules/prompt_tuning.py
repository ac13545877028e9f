"""PromptTuning: the LightningModule that trains a soft prompt in front of a frozen backbone."""

from __future__ import annotations

import json
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from transformers import get_scheduler

from prompt_transfer.backbones.encoder import TextEncoder
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.errors import UserError
from prompt_transfer.modules.objectives import Classification
from prompt_transfer.modules.prompted import PromptedModule
from prompt_transfer.prompts.initializers import FromPrompt, Initializer, Vocabulary
from prompt_transfer.prompts.prompt import Prompt, library_versions
from prompt_transfer.prompts.reparameterizations import Plain, Reparameterization
from prompt_transfer.task import LABEL_WORDS_POLICIES

# A batch, and the numbers of the prompts that see it.
Pass = tuple[dict[str, Tensor], list[int]]
# Those of transformers that need nothing but their length.
SCHEDULES = ("linear", "constant", "constant_with_warmup", "cosine", "polynomial", "inverse_sqrt")


class PromptTuning(PromptedModule):
    """Trains `prompt_length` x H numbers; the backbone stays bit-equal.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a hub id.
        prompt_length: P, rows of the prompt.
        layout: of an encoder `prefix` (prompt, answer slot, text; the default) or `mask_first` (release 1.0 of Su et
            al.); other kinds of backbones have one layout each.
        attention: `full` (the prompt sees the text) or `shared` (it sees only itself; faster).
        init: how the prompt starts; default: embeddings of random vocabulary tokens.
        reparameterization: what is trained in place of the prompt itself; folded into a plain prompt on export.
        optimizer: default AdamW without weight decay.
        learning_rate: of the default optimizer; default: that of the backbone's family.
        schedule: name of a transformers schedule (`linear`, `constant_with_warmup`, `cosine`, ...) over all steps.
        warmup_steps: optimizer steps of that schedule's warm-up.
        scheduler: a scheduler of your own, stepped every optimizer step, in place of `schedule`.
        dtype: of the backbone's weights (`float32`, `bfloat16`, `float16`); prompt and optimizer are float32 always.
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

    def __init__(
        self,
        backbone: str = "roberta-nano",
        prompt_length: int = 20,
        layout: str | None = None,
        attention: str = "full",
        init: Initializer | None = None,
        reparameterization: Reparameterization | None = None,
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
        if prompt_length < 1:
            raise UserError(f"prompt_length is {prompt_length}: a prompt needs at least one token")
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
        self.init = init or Vocabulary()
        self.reparameterization = reparameterization or Plain()
        self._optimizer, self._scheduler = optimizer, scheduler
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
                "prompt_length": prompt_length,
                "layout": self.backbone.layout.name,
                "attention": attention,
                "init": self.init.describe(),
                "reparameterization": self.reparameterization.describe(),
                "learning_rate": learning_rate or self.backbone.family.learning_rate,
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
        self.prompt_length = prompt_length
        # Only what is trained is saved (`state_dict`), so the backbone is missing from every checkpoint.
        self.strict_loading = False

    # Set-up ----------------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> TextEncoder:
        """What the datamodule tokenises with."""
        return self.backbone.encoder(self.prompt_length)

    def setup(self, stage: str) -> None:
        """Learn the tasks of the datamodule and make the initial prompt."""
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise UserError(
                f"--trainer.precision {self.trainer.precision} would cast the prompt and its optimizer too; "
                "use --model.dtype bfloat16 for the backbone's weights"
            )
        self.connect(self.trainer.datamodule.tasks)
        if not self.is_built:
            self.begin(int(torch.initial_seed() % 2**63))

    @property
    def is_built(self) -> bool:
        """Whether there is something to train."""
        return self.reparameterization.is_built

    def begin(self, seed: int) -> None:
        """Make the initial prompt of the run, whose seed is `seed`."""
        self.init = self.init.for_seed(seed)
        self.build(*self.start(self.init, seed))

    def start(self, init: Initializer, seed: int) -> tuple[Tensor, torch.Generator]:
        """An initial prompt [P, H], and the generator for what else is drawn."""
        # Its own generator: the start of a prompt depends on the seed alone, not on what was drawn before.
        generator = torch.Generator().manual_seed(seed)
        words = [word for task in self.tasks for word in task.label_words]
        shape = (self.prompt_length, self.backbone.hidden_size)
        return init(self.backbone, shape, generator, words), generator

    def build(self, initial: Tensor, generator: torch.Generator | None = None) -> None:
        """Start from the prompt `initial` [P, H]."""
        self.prompt_length = initial.shape[0]
        self.register_buffer("initial_prompt", initial.detach().clone().float(), persistent=True)
        self.reparameterization.build(initial.float(), self.backbone, generator or torch.Generator().manual_seed(0))
        self.reparameterization.to(self.device)

    # The forward pass ------------------------------------------------------------------------------------------

    def current_prompt(self) -> Tensor:
        """The prompt [P, H] as it is now, with its gradient."""
        return self.reparameterization()

    def forward(self, batch: dict[str, Tensor], prompt: Tensor | None = None) -> Tensor:
        """Class logits [B, C] at the answer slot, C the most classes of any task; -inf where a task has fewer.

        Args:
            batch: see `prompt_transfer.data.batches`.
            prompt: [P, H] in place of the module's own.

        Raises:
            UserError: the tasks have no classes.
        """
        if not isinstance(self.objective, Classification):
            raise UserError(f"{self.tasks[0].name} has no classes: its answers are texts (`objective.predict`)")
        return self.objective.logits(self.current_prompt() if prompt is None else prompt, batch)

    @property
    def files(self) -> list[str]:
        """Names of the files of the run's prompts, without the suffix."""
        return ["prompt"]

    def trained(self) -> list[torch.nn.Parameter]:
        """The parameters that a step trains."""
        return [p for p in self.reparameterization.parameters() if p.requires_grad]

    def passes(self, batches: list[dict[str, Tensor]]) -> list[Pass]:
        """The forward passes over some batches: each a batch and the numbers of the prompts that see it."""
        return [(batch, [0]) for batch in batches]

    def summed_losses(self, batch: dict[str, Tensor], members: list[int]) -> Tensor:
        """The sum of the examples' losses behind each prompt [N], 0 for those that are not among `members`."""
        return self.objective.losses(self.current_prompt(), batch).sum()[None]

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
        self.trainer.datamodule.batch_done(batch["position"])
        self.log_losses(torch.stack(totals).sum(dim=0), batch["global_count"])
        return loss

    def log_losses(self, losses: Tensor, count: int) -> None:
        """Log the losses [N] of a step over `count` examples."""
        self.log("train/loss", losses[0], prog_bar=True, batch_size=count, sync_dist=True)

    @property
    def logs_this_step(self) -> bool:
        """Whether the loggers write at the end of this step: when its number is a multiple."""
        return (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norms that tell why a prompt does not train."""
        if self.logs_this_step:
            self.log_dict(norms("train", self.reparameterization, self.initial_prompt))

    # Optimizer -------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[Any]:
        """What the optimizer is made for."""
        return self.trained()

    def configure_optimizers(self) -> dict[str, Any]:
        parameters = self.parameter_groups()
        if self._optimizer is None:
            # Weight decay would pull a prompt to zero, where no word embedding is; release 1.0 has none either.
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
            self.build(state["initial_prompt"])
        expected = {name: tensor.shape for name, tensor in self.state_dict().items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        if expected != found:
            other = sorted(name for name in expected | found if expected.get(name) != found.get(name))
            raise UserError(
                f"this checkpoint does not fit the options given with it ({', '.join(other)} differ): go on with the "
                "prompt length and reparameterization that it was trained with, or start anew with --overwrite"
            )
        torch.set_rng_state(checkpoint["rng"].cpu())
        if torch.cuda.is_available() and checkpoint.get("cuda_rng"):
            torch.cuda.set_rng_state_all([state.cpu() for state in checkpoint["cuda_rng"]])

    def prompt(self, name: str = "prompt") -> Prompt:
        """The prompt as it is now, folded, with the metadata that the module knows.

        Args:
            name: as in `named_scores`.
        """
        return self.packed(self.reparameterization, self.init, self.initial_prompt)

    def packed(self, reparameterization: Reparameterization, init: Initializer, initial: Tensor) -> Prompt:
        """A prompt that is trained here, with what all prompts of the module share."""
        tasks = self.tasks
        metadata = {
            "backbone": self.backbone.id,
            "fingerprint": self.backbone.fingerprint,
            "family": self.backbone.family.name,
            "layout": self.backbone.layout.name,
            "attention": self.backbone.attention,
            "dtype": self.backbone.dtype_name,
            "head": self.backbone.head,
            "task": ",".join(task.name for task in tasks),
            "label_words": json.dumps({task.name: list(task.label_words) for task in tasks}),
            "init": init.describe(),
            "reparameterization": reparameterization.describe(),
            "learning_rate": "" if self._optimizer else repr(self.hparams.learning_rate),
            "revision": self.backbone.revision or "",
            "versions": library_versions(),
        }
        if isinstance(init, FromPrompt):
            metadata["source_prompt"] = ",".join(init.prompt)
        return Prompt(reparameterization.fold().float().cpu(), metadata, initial.float().cpu())


def norms(prefix: str, reparameterization: Reparameterization, initial: Tensor) -> dict[str, Tensor]:
    """Norm of the gradient, of a prompt row, and of the way from the `initial` prompt [P, H], by names to log."""
    gradients = [p.grad.norm() for p in reparameterization.parameters() if p.grad is not None]
    with torch.no_grad():
        prompt = reparameterization()
        return {
            f"{prefix}/gradient_norm": torch.stack(gradients).norm(),
            f"{prefix}/prompt_norm": prompt.norm(dim=1).mean(),
            f"{prefix}/distance_from_initial": (prompt - initial).norm(),
        }
