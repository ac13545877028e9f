"""Backbones that use transformers' own forward pass over prompt and text together, without replaced modules.

Used for families whose attention is not a registered attention function (`Family.plain`), and for families without a
row (`generic.py`). Positions are the model's defaults: texts are padded on the right, which does not shift any token.

Logits come from the model's own forward, with the module before the LM head patched to return given states. This keeps
the model's logit biases, scales and soft caps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from prompt_transfer.backbones import writing
from prompt_transfer.backbones.answers import KINDS, Answers, CausalAnswers, MaskedAnswers, Prompts, Seq2SeqAnswers
from prompt_transfer.backbones.family import Family
from prompt_transfer.backbones.kernels.frozen_linear import SharedRows
from prompt_transfer.backbones.last_layer import Positions, gather_positions
from prompt_transfer.backbones.stack import InputPart, Stack
from prompt_transfer.utils.errors import UserError


@dataclass
class _GivenStates(BaseModelOutput):
    """Output of the module before the LM head; every attribute except the states is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return None


@contextmanager
def _returns(module: nn.Module, output: Any) -> Iterator[None]:
    """Patch `module` to return `output` for any input."""
    before = module.__dict__.get("forward")
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@contextmanager
def _generating(family: Family) -> Iterator[None]:
    """Convert transformers' generation errors into UserError."""
    try:
        yield
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise UserError(
            f"transformers cannot generate from embeddings with a {family.name} model "
            f"({str(error).splitlines()[0][:150]}): use a backbone of another family for this task"
        ) from error


class PlainStack(Stack):
    """The body of a model, run by transformers' own forward pass."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        super().__init__(model, family)
        names = inspect.signature(self.body.forward).parameters
        self.options = {"use_cache": False} if "use_cache" in names else {}

    def run_alone(self, part: InputPart, at: Positions | None = None, shared: SharedRows | None = None) -> Tensor:
        """Compute hidden states as `Stack.run_alone` does; `shared` is ignored."""
        hidden = self.body(inputs_embeds=part.embeddings, attention_mask=part.mask, **self.options).last_hidden_state
        return hidden if at is None else gather_positions(hidden, at, 1)


class PlainAnswers(Answers):
    """Base class for plain backbones; recomputes the prompt with every batch."""

    stack_type = PlainStack

    @property
    def prompt_sees_only_itself(self) -> bool:
        """Always False: the prompt is recomputed with every batch."""
        return False

    def logits(self, states: Tensor) -> Tensor:
        """Compute the logits [..., V] of the whole vocabulary from answer states [..., H]."""
        flat = states.reshape(1, -1, states.shape[-1])
        with _returns(self._before_head(), _GivenStates(last_hidden_state=flat)):
            logits: Tensor = self._apply_head(flat)
        return logits.view(*states.shape[:-1], logits.shape[-1])

    def _before_head(self) -> nn.Module:
        return self.stack.body

    def _apply_head(self, states: Tensor) -> Tensor:
        return self.model(inputs_embeds=states).logits


class PlainMaskedAnswers(PlainAnswers, MaskedAnswers):
    """Answers of a masked LM, in `full` mode."""


class PlainCausalAnswers(PlainAnswers, CausalAnswers):
    """Answers of a causal LM that runs prompt and text together; equivalent to a recorded prompt."""

    def _text_states(self, prompts: Prompts, text: InputPart, at: Tensor) -> Tensor:
        places = at + prompts.length
        whole = self.prompt_part(prompts.per_example(len(text.mask))).joined(text)
        with self.answering(places[:, 0], prompts):
            return self.stack.run_alone(whole, places)

    def generate(self, prompts: Prompts, batch: dict[str, Tensor], max_new_tokens: int, num_beams: int) -> Tensor:
        self.refuse_calls_per_length()
        text = self.text_part(batch, prompts.length)
        whole = self.prompt_part(prompts.per_example(len(text.mask))).joined(text)

        def alone(rows: Tensor, length: int) -> Tensor:
            return self._generate_unpadded(
                whole.embeddings[rows, :length], whole.mask[rows, :length], max_new_tokens, num_beams
            )

        # Generate per length: families handle padding differently.
        return writing.per_length(whole.mask.sum(dim=1), alone, self.pad_token_id)

    def _generate_unpadded(self, embeddings: Tensor, mask: Tensor, max_new_tokens: int, num_beams: int) -> Tensor:
        with _generating(self.family):
            settings = writing.settings(self.model, self.pad_token_id, max_new_tokens, num_beams)
            generated = self.model.generate(None, settings, inputs_embeds=embeddings, attention_mask=mask)
            return self.pad_after_end(generated)


class PlainSeq2SeqAnswers(PlainAnswers, Seq2SeqAnswers):
    """Answers of a seq2seq LM, in `full` mode."""

    def _decoded(self, ids: Tensor, encoded: Tensor, mask: Tensor, prompts: Prompts) -> Tensor:
        with self.answering(torch.zeros_like(ids[:, 0]), prompts):
            output = self.model.get_decoder()(
                input_ids=ids, encoder_hidden_states=encoded, encoder_attention_mask=mask, use_cache=False
            )
        states: Tensor = output.last_hidden_state
        return states

    def generate(self, prompts: Prompts, batch: dict[str, Tensor], max_new_tokens: int, num_beams: int) -> Tensor:
        with _generating(self.family):
            return super().generate(prompts, batch, max_new_tokens, num_beams)

    def _before_head(self) -> nn.Module:
        return self.model.get_decoder()

    def _apply_head(self, states: Tensor) -> Tensor:
        ids = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
        return self.model(encoder_outputs=_GivenStates(last_hidden_state=states), decoder_input_ids=ids).logits


PLAIN_KINDS: dict[str, Callable[..., PlainAnswers]] = {
    "masked_lm": PlainMaskedAnswers,
    "causal_lm": PlainCausalAnswers,
    "seq2seq_lm": PlainSeq2SeqAnswers,
}


def answers_of(family: Family) -> Callable[..., Answers]:
    """Return the answers class of a family."""
    return PLAIN_KINDS[family.kind] if family.plain else KINDS[family.kind]


def refuse_shared(name: str, family: Family, attention: str) -> None:
    """Raise UserError for `shared` attention with a plain family.

    Causal families are exempt: `shared` equals `full`.
    """
    if family.plain and family.kind != "causal_lm" and attention == "shared":
        raise UserError(
            f"{name} ({family.name}) does not support the attention mode 'shared': use --model.attention full (and "
            "--model.method prompt)"
        )
