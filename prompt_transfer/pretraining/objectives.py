"""The base class of the architectures that are pretrained here, and helpers for their objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prompt_transfer.pretraining.corpus_batches import IGNORED
from prompt_transfer.pretraining.options import ModelSizes, PretrainingOptions
from prompt_transfer.utils.errors import UserError

# Objectives of reading (`reading.py`), in addition to an architecture's own.
READING = ("copy", "cloze")


class Architecture(ABC):
    """An architecture: a fresh model of given sizes, its objectives, and their losses.

    Shape letters: B batch, T text tokens, S target tokens, H hidden.

    Attributes:
        name: the value of `--model.architecture`.
        body: path of the module from ids to hidden states (encoders and GPT-2).
        head: path of the LM head.
        transform: path of the LM head's dense layer, for the informed start (encoders only).
        objectives: the objectives in `objective`; the held-out loss is reported for the first.
        generative: True if the model writes text, as reading needs.
    """

    name: str
    body: str = ""
    head: str = "lm_head"
    transform: str | None = None
    objectives: tuple[str, ...]
    generative: bool = False

    @abstractmethod
    def build(self, sizes: ModelSizes) -> PreTrainedModel:
        """Return a model with random weights."""

    def check(self, options: PretrainingOptions) -> None:
        """Raise UserError if the architecture does not support an option."""
        if options.reading and not self.generative:
            raise UserError(f"--model.reading is for gpt2 and t5, which write: {self.name} does not")
        for option in ("copying_heads", "matching_heads", "evidence"):
            if getattr(options, option):
                raise UserError(f"--model.{option} is for t5, whose decoder reads an encoder, not for {self.name}")
        if options.head_size:
            raise UserError(f"--model.head_size is for t5: heads of a {self.name} share its hidden size")

    @abstractmethod
    def objective(self, options: PretrainingOptions, step: int, progress: float) -> str:
        """Return the objective of a training step, one of `objectives` or `READING`."""

    def switch(self, model: PreTrainedModel, previous: str, objective: str) -> None:  # noqa: B027 - an optional hook
        """Prepare `model` for a step whose objective may differ from the previous step's."""

    @abstractmethod
    def states(self, model: PreTrainedModel, batch: dict[str, Tensor], objective: str) -> tuple[Tensor, Tensor]:
        """Return the hidden states `[B, T, H]` and the labels `[B, T]`, `IGNORED` where nothing is predicted."""

    def loss(
        self, model: PreTrainedModel, batch: dict[str, Tensor], objective: str, states: Tensor | None = None
    ) -> Tensor:
        """Return the mean cross entropy in nats over the predicted tokens.

        Args:
            model: a model of this architecture.
            batch: a batch of `CorpusBatches` or `ReadingBatches`.
            objective: one of `objectives` or `READING`.
            states: hidden states of a T5's decoder `[B, S, H]`, if already computed.
        """
        found, labels = self.states(model, batch, objective)
        return nn.functional.cross_entropy(*self.predictions(model, found, labels))

    def predictions(self, model: PreTrainedModel, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the float32 logits `[N, V]` and labels `[N]` of the N predicted tokens."""
        wanted = labels != IGNORED
        return model.get_submodule(self.head)(states[wanted]).float(), labels[wanted]

    def count_tokens(self, batch: dict[str, Tensor], objective: str) -> int:
        """Return the number of tokens that the model reads and writes in a step."""
        return int(batch.get(f"{objective}_mask", batch["attention_mask"]).sum())


def next_tokens(ids: Tensor, mask: Tensor) -> Tensor:
    """Return the following token of each position [B, T], `IGNORED` at the last one."""
    labels = torch.where(mask[:, 1:].bool(), ids[:, 1:], IGNORED)
    return nn.functional.pad(labels, (0, 1), value=IGNORED)


def causal_mask(mask: Tensor) -> Tensor:
    """Return the causal attention mask, bool [B, 1, T, T], over the tokens of `mask` [B, T]."""
    length = mask.shape[1]
    below = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return below & mask[:, None, None, :].bool()


def additive_mask(mask: Tensor) -> Tensor:
    """Return a bool mask as the values that eager attention adds to its scores."""
    return torch.where(mask, 0.0, torch.finfo(torch.float32).min)
