"""PromptTuning: the LightningModule that trains a soft prompt in front of a frozen backbone."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.modules.label_embeddings import flat_rows, initial_rows, stored_rows, warn_of_unused
from prompt_transfer.modules.objectives import Classification
from prompt_transfer.modules.trained import TrainedModule
from prompt_transfer.prompts.initializers import FromPrompt, Initializer, Vocabulary
from prompt_transfer.prompts.prompt import Prompt, library_versions
from prompt_transfer.prompts.reparameterizations import Plain, Reparameterization
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError


class PromptTuning(TrainedModule):
    """A soft prompt [P, H] trained in front of a frozen backbone, which stays bit-equal.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, a GGUF file, or a Hub id.
        prompt_length: P, number of prompt tokens.
        init: initializer of the prompt; default: embeddings of random vocabulary tokens.
        reparameterization: trained instead of the prompt itself; folded into a plain prompt on export.
        label_embeddings: also train a row of the LM head for each class, in place of its label words' rows, which it
            starts from; stored in the prompt file.
        options: those of `TrainedModule`.
    """

    def __init__(
        self,
        backbone: str = "roberta-nano",
        prompt_length: int = 20,
        init: Initializer | None = None,
        reparameterization: Reparameterization | None = None,
        label_embeddings: bool = False,
        **options: Any,
    ) -> None:
        if prompt_length < 1:
            raise UserError(f"prompt_length is {prompt_length}: a prompt needs at least one token")
        super().__init__(backbone, **options)
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
        self.trains_labels = label_embeddings
        # Trained rows of the LM head [K, C, H']; None without label embeddings.
        self.label_rows: torch.nn.Parameter | None = None
        # The prompt file whose label embeddings are used in evaluation.
        self.label_source: Prompt | None = None
        if label_embeddings:
            self.save_hyperparameters({"label_embeddings": True})

    # Set-up ----------------------------------------------------------------------------------------------------

    @property
    def is_built(self) -> bool:
        return self.reparameterization.is_built

    def begin(self, seed: int) -> None:
        """Initialize the prompt with the seed of the run."""
        self.init = self.init.for_seed(seed)
        self.build(*self.start(self.init, seed))
        if self.trains_labels:
            self._own_labels(initial_rows(self.objective, self.backbone))

    def _own_labels(self, rows: Tensor) -> None:
        self.label_rows = torch.nn.Parameter(rows.detach().clone().float().to(self.device))
        if self.tasks and isinstance(self.objective, Classification):
            self.objective.use_label_rows(self.label_rows)

    def connect(self, tasks: list[Task]) -> None:
        """Build the objective and metrics of `tasks`."""
        super().connect(tasks)
        if self.label_rows is not None and isinstance(self.objective, Classification):
            self.objective.use_label_rows(self.label_rows)
        if self.label_source is None or self.label_source.label_embeddings is None:
            return
        warn_of_unused(self.label_source, "the prompt", self.tasks)
        if any(self.label_source.labels_for(task.name, task.stored_words) is not None for task in self.tasks):
            like = initial_rows(self.objective, self.backbone)
            assert isinstance(self.objective, Classification)
            self.objective.use_label_rows(*stored_rows([self.label_source], self.tasks, like))

    def use_label_words(self) -> None:
        """Score by the label words' own rows of the LM head, without label embeddings of a prompt file."""
        self.label_source = None
        if isinstance(self.objective, Classification):
            self.objective.use_label_rows(None)

    def start(self, init: Initializer, seed: int) -> tuple[Tensor, torch.Generator]:
        """Return an initial prompt [P, H] and the generator for further random numbers."""
        # A generator of its own makes the initial prompt depend on the seed alone.
        generator = torch.Generator().manual_seed(seed)
        words = [word for task in self.tasks for word in task.label_words]
        shape = (self.prompt_length, self.backbone.hidden_size)
        return init(self.backbone, shape, generator, words), generator

    def build(self, initial: Tensor, generator: torch.Generator | None = None) -> None:
        """Build the trained parameters from the prompt `initial` [P, H]."""
        self.prompt_length = initial.shape[0]
        self.register_buffer("initial_prompt", initial.detach().clone().float(), persistent=True)
        self.reparameterization.build(initial.float(), self.backbone, generator or torch.Generator().manual_seed(0))
        self.reparameterization.to(self.device)

    def restore(self, state: dict[str, Tensor]) -> None:
        self.build(state["initial_prompt"])
        if "label_rows" in state:
            self._own_labels(torch.zeros_like(state["label_rows"]))

    # The forward pass ------------------------------------------------------------------------------------------

    def current_prompt(self) -> Tensor:
        """Return the current prompt [P, H], with its gradient."""
        return self.reparameterization()

    def forward(self, batch: dict[str, Tensor], prompt: Tensor | None = None) -> Tensor:
        """Return class logits [B, C] at the answer slot, C the most classes of any task; -inf beyond a task's classes.

        Args:
            batch: see `prompt_transfer.data.batches`.
            prompt: [P, H]; default: the module's own.

        Raises:
            UserError: the tasks have no classes.
        """
        if not isinstance(self.objective, Classification):
            raise UserError(f"{self.tasks[0].name} has no classes: it generates text; use `objective.predict`")
        return self.objective.logits(self.current_prompt() if prompt is None else prompt, batch)

    @property
    def files(self) -> list[str]:
        """File names of the run's prompts, without suffix."""
        return ["prompt"]

    def trained(self) -> list[torch.nn.Parameter]:
        own = [] if self.label_rows is None else [self.label_rows]
        return [*(p for p in self.reparameterization.parameters() if p.requires_grad), *own]

    def summed_losses(self, batch: dict[str, Tensor], members: list[int]) -> Tensor:
        return self.objective.losses(self.current_prompt(), batch).sum()[None]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log norms that help to diagnose training."""
        if self.logs_this_step:
            self.log_dict(norms("train", self.reparameterization, self.initial_prompt))

    # Files -----------------------------------------------------------------------------------------------------

    def prompt(self, name: str = "prompt") -> Prompt:
        """Return the current prompt, folded, with the metadata known to the module.

        Args:
            name: a key of `named_scores`.
        """
        prompt = self.packed(self.reparameterization, self.init, self.initial_prompt)
        if self.label_rows is not None:
            prompt.label_embeddings = flat_rows(self.label_rows.detach().float().cpu(), self.tasks)
        return prompt

    def packed(self, reparameterization: Reparameterization, init: Initializer, initial: Tensor) -> Prompt:
        """Return a prompt of this module with the metadata that all its prompts share."""
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
            "label_words": json.dumps({task.name: task.stored_words for task in tasks}),
            "templates": json.dumps(
                {task.name: self.backbone.shown_format(task.format, task.pairs, task.cue) for task in tasks}
            ),
            "init": init.describe(),
            "reparameterization": reparameterization.describe(),
            "learning_rate": "" if self.optimization.optimizer else repr(self.hparams.learning_rate),
            "revision": self.backbone.revision or "",
            "commit": self.backbone.commit or "",
            **{f"gguf_{key}": self.backbone.gguf[key] for key in ("sha256", "quantization") if self.backbone.gguf},
            "versions": library_versions(),
        }
        if isinstance(init, FromPrompt):
            metadata["source_prompt"] = ",".join(init.prompt)
        return Prompt(reparameterization.fold().float().cpu(), metadata, initial.float().cpu())


def norms(prefix: str, reparameterization: Reparameterization, initial: Tensor) -> dict[str, Tensor]:
    """Return norms by log name: gradient, prompt token (mean), and distance from the `initial` prompt [P, H]."""
    gradients = [p.grad.norm() for p in reparameterization.parameters() if p.grad is not None]
    with torch.no_grad():
        prompt = reparameterization()
        return {
            f"{prefix}/gradient_norm": torch.stack(gradients).norm(),
            f"{prefix}/prompt_norm": prompt.norm(dim=1).mean(),
            f"{prefix}/distance_from_initial": (prompt - initial).norm(),
        }
