"""PromptTuning: the LightningModule that trains a soft prompt in front of a frozen backbone."""

from __future__ import annotations

import json

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from prompt_transfer.modules.objectives import Classification
from prompt_transfer.modules.trained import TrainedModule
from prompt_transfer.prompts.initializers import FromPrompt, Initializer, Vocabulary
from prompt_transfer.prompts.prompt import Prompt, library_versions
from prompt_transfer.prompts.reparameterizations import Plain, Reparameterization
from prompt_transfer.utils.errors import UserError


class PromptTuning(TrainedModule):
    """Trains `prompt_length` x H numbers; the backbone stays bit-equal.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, a GGUF file, or a hub id.
        prompt_length: P, rows of the prompt.
        layout: of an encoder `prefix` (prompt, answer slot, text; the default) or `mask_first` (release 1.0 of Su et
            al.); of a causal backbone `start_answer_last` (the tokenizer's start token before the text; the default
            where it adds one) or `answer_last` (no start token).
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
        if prompt_length < 1:
            raise UserError(f"prompt_length is {prompt_length}: a prompt needs at least one token")
        super().__init__(
            backbone=backbone,
            layout=layout,
            attention=attention,
            optimizer=optimizer,
            learning_rate=learning_rate,
            schedule=schedule,
            warmup_steps=warmup_steps,
            scheduler=scheduler,
            dtype=dtype,
            head=head,
            label_words_policy=label_words_policy,
            num_beams=num_beams,
            backbone_dropout=backbone_dropout,
            gradient_checkpointing=gradient_checkpointing,
            compile=compile,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        self.init = init or Vocabulary()
        self.reparameterization = reparameterization or Plain()
        self.save_hyperparameters(
            {
                "prompt_length": prompt_length,
                "init": self.init.describe(),
                "reparameterization": self.reparameterization.describe(),
            }
        )
        self.prompt_length = prompt_length

    # Set-up ----------------------------------------------------------------------------------------------------

    @property
    def is_built(self) -> bool:
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

    def restore(self, state: dict[str, Tensor]) -> None:
        self.build(state["initial_prompt"])

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
        return [p for p in self.reparameterization.parameters() if p.requires_grad]

    def summed_losses(self, batch: dict[str, Tensor], members: list[int]) -> Tensor:
        return self.objective.losses(self.current_prompt(), batch).sum()[None]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norms that tell why a prompt does not train."""
        if self.logs_this_step:
            self.log_dict(norms("train", self.reparameterization, self.initial_prompt))

    # Files -----------------------------------------------------------------------------------------------------

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
            "commit": self.backbone.commit or "",
            **{f"gguf_{key}": self.backbone.gguf[key] for key in ("sha256", "quantization") if self.backbone.gguf},
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
