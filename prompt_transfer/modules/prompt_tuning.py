"""PromptTuning: the LightningModule that trains a soft prompt in front of a frozen backbone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.data.contract import Encode
from prompt_transfer.modules.label_embeddings import flat_rows, initial_rows, stored_rows, warn_of_unused
from prompt_transfer.modules.objectives import Classification
from prompt_transfer.modules.trained import TrainedModule
from prompt_transfer.prompts.initializers import FromPrompt, Initializer, Vocabulary
from prompt_transfer.prompts.methods import get_method
from prompt_transfer.prompts.prompt import Prompt, library_versions
from prompt_transfer.prompts.reparameterizations import Plain, Reparameterization
from prompt_transfer.tasks.definition import KEY, definitions
from prompt_transfer.tasks.task import DEFAULT_CUE, Task
from prompt_transfer.utils.errors import UserError

# The task of a data module that names none, apart from its label words.
OWN: dict[str, Any] = {"name": "own", "type": "other", "text_a": "text", "cue": DEFAULT_CUE}


class PromptTuning(TrainedModule):
    """A soft prompt trained in front of a frozen backbone, which stays bit-equal.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, a GGUF file, or a Hub id.
        prompt_length: P, number of prompt tokens.
        method: `prompt` (embeddings [P, H] in front of the text) or `deep_prompt` (keys and values [L, 2, P, kv_heads,
            head_dim] before those of every layer: prefix tuning, P-tuning v2). A deep prompt does not see the text,
            so its attention is always `shared`.
        init: initializer of the prompt; default: random vocabulary tokens, their embeddings or their keys and values.
        reparameterization: trained instead of the prompt itself; folded into a plain prompt on export.
        label_words: one word per class, for data modules and loaders that name no task.
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
        label_words: list[str] | None = None,
        label_embeddings: bool = False,
        method: str = "prompt",
        **options: Any,
    ) -> None:
        if prompt_length < 1:
            raise UserError(f"prompt_length is {prompt_length}: a prompt needs at least one token")
        # The default learning rate, which the base class asks for, depends on it.
        self.method = get_method(method)
        if (attention := self.method.attention(options.get("attention", "full"))) != "full":
            options["attention"] = attention
        super().__init__(backbone, **options)
        self.own_task = None if label_words is None else Task(**OWN, label_words=_different(label_words))
        self.init = init or Vocabulary()
        self.reparameterization = reparameterization or Plain()
        self.method.check(self.backbone, self.reparameterization)
        self.save_hyperparameters(
            {
                "method": method,
                "prompt_length": prompt_length,
                **({} if label_words is None else {"label_words": list(label_words)}),
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

    @property
    def default_learning_rate(self) -> float:
        """Learning rate if none is given: that of the method on the backbone's family."""
        return self.method.learning_rate(self.backbone)

    # Set-up ----------------------------------------------------------------------------------------------------

    def run_tasks(self) -> list[Task]:
        """Return the tasks of the run: those of the data module, or the one of `label_words`."""
        if self.own_task is None:
            return super().run_tasks()
        data = self.trainer.datamodule
        if getattr(data, "tasks", None) or getattr(data, "task", None):
            raise UserError(
                f"label_words are given twice: the data module {type(data).__name__} names its task, so leave out "
                "those of the model (--model.label_words)"
            )
        return [self.own_task]

    def encode(
        self,
        texts: Sequence[str],
        labels: Sequence[Any] | None = None,
        texts_b: Sequence[str] | None = None,
        max_length: int | None = None,
    ) -> dict[str, Tensor]:
        """Return texts as a batch (`prompt_transfer.data.contract`), with the classes of `labels` if given."""
        return self.collate(max_length=max_length).texts(texts, labels, texts_b)

    def collate(
        self, text: str = "text", label: str = "label", text_b: str | None = None, max_length: int | None = None
    ) -> Encode:
        """Return the collate function of a DataLoader of dicts with these keys.

        Raises:
            UserError: the task is not known yet.
        """
        tasks = self.tasks or ([] if self.own_task is None else [self.own_task])
        if len(tasks) != 1:
            raise UserError(
                "to encode texts the model needs to know its one task: give PromptTuning(label_words=[...])"
            )
        return Encode(self.encoder, tasks[0], text, label, text_b, max_length)

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
        if isinstance(self.objective, Classification):
            # Without rows of its own a prompt must not keep those of the prompt scored before it.
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
        """Return the vectors [P, W] of an initial prompt, and the generator for further random numbers."""
        # A generator of its own makes the initial prompt depend on the seed alone.
        generator = torch.Generator().manual_seed(seed)
        words = [word for task in self.tasks for word in task.label_words]
        made = self.method.initial(init, self.backbone, self.prompt_length, generator, words)
        return self.method.to_vectors(made), generator

    def build(self, initial: Tensor, generator: torch.Generator | None = None) -> None:
        """Build the trained parameters from the vectors `initial` [P, W] of a prompt."""
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
        """Return the current prompt in the shape of its file, with its gradient."""
        return self.shaped(self.reparameterization())

    def shaped(self, vectors: Tensor) -> Tensor:
        """Return a prompt's vectors [P, W] in the shape of its file, [P, H] or [L, 2, P, kv_heads, head_dim]."""
        return self.method.from_vectors(vectors, self.backbone)

    def forward(self, batch: dict[str, Tensor], prompt: Tensor | None = None) -> Tensor:
        """Return class logits [B, C] at the answer slot, C the most classes of any task; -inf beyond a task's classes.

        Args:
            batch: see `prompt_transfer.data.batches`.
            prompt: [P, H], or a deep prompt; default: the module's own.

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
            "method": self.method.name,
            "backbone": self.backbone.id,
            "fingerprint": self.backbone.fingerprint,
            "family": self.backbone.family.name,
            "layout": self.backbone.layout.name,
            "attention": self.backbone.attention,
            "dtype": self.backbone.dtype_name,
            "head": self.backbone.head,
            "task": ",".join(task.name for task in tasks),
            **({KEY: defined} if (defined := definitions(tasks)) else {}),
            "label_words_policy": self.hparams.label_words_policy or "",
            **self.data_facts,
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
        values, start = (self.shaped(each.float().cpu()) for each in (reparameterization.fold(), initial))
        return Prompt(values, metadata, start)


def _different(words: Sequence[str]) -> tuple[str, ...]:
    """Return label words after a check that they are two or more different texts."""
    if isinstance(words, str) or len(words) < 2 or len({*words}) < len(words) or not all(map(_is_word, words)):
        raise UserError(f"label_words must be a list of two or more different words, one a class, not {words!r}")
    return tuple(words)


def _is_word(word: object) -> bool:
    return isinstance(word, str) and bool(word.strip())


def norms(prefix: str, reparameterization: Reparameterization, initial: Tensor) -> dict[str, Tensor]:
    """Return norms by log name: gradient, prompt token (mean), and distance from the `initial` prompt [P, W]."""
    gradients = [p.grad.norm() for p in reparameterization.parameters() if p.grad is not None]
    with torch.no_grad():
        prompt = reparameterization()
        return {
            f"{prefix}/gradient_norm": torch.stack(gradients).norm(),
            f"{prefix}/prompt_norm": prompt.norm(dim=1).mean(),
            f"{prefix}/distance_from_initial": (prompt - initial).norm(),
        }
