"""Backbones that run through the library's own forward: prompt and text together, nothing substituted.

For families whose attention is not a registered attention function (`Family.plain`) and for those without a row
(`generic.py`). Positions are the library's defaults: texts are padded on the right, so every token has the position
that it has without padding.

The LM head is the model itself with the module before the head replaced by one that returns given states. So whatever
a model does to its logits (biases, scales, caps) is kept.
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
    """Output of the module before the LM head, of which all but the states is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return None


@contextmanager
def _returns(module: nn.Module, output: Any) -> Iterator[None]:
    """Let `module` return `output`, whatever its input."""
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
    """Turn what transformers says of families that it cannot generate with into a UserError."""
    try:
        yield
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise UserError(
            f"transformers cannot generate from embeddings with a {family.name} model "
            f"({str(error).splitlines()[0][:150]}): use a backbone of another family for this task"
        ) from error


class PlainStack(Stack):
    """The body of a model as the library runs it."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        super().__init__(model, family)
        names = inspect.signature(self.body.forward).parameters
        self.options = {"use_cache": False} if "use_cache" in names else {}

    def run_alone(self, part: InputPart, at: Positions | None = None, same: SharedRows | None = None) -> Tensor:
        """As `Stack.run_alone`; `same` saves nothing here."""
        found = self.body(inputs_embeds=part.embeddings, attention_mask=part.mask, **self.options).last_hidden_state
        return found if at is None else gather_positions(found, at, 1)


class PlainAnswers(Answers):
    """What all kinds share: prompts are never computed alone."""

    stack_type = PlainStack

    @property
    def prompt_sees_only_itself(self) -> bool:
        """False: prompts are computed with each batch."""
        return False

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., V] of the whole vocabulary from answer states [..., H]."""
        rows = states.reshape(1, -1, states.shape[-1])
        with _returns(self._before_head(), _GivenStates(last_hidden_state=rows)):
            found: Tensor = self._from_rows(rows)
        return found.view(*states.shape[:-1], found.shape[-1])

    def _before_head(self) -> nn.Module:
        return self.stack.body

    def _from_rows(self, rows: Tensor) -> Tensor:
        return self.model(inputs_embeds=rows).logits


class PlainMaskedAnswers(PlainAnswers, MaskedAnswers):
    """An encoder, in `full` mode."""


class PlainCausalAnswers(PlainAnswers, CausalAnswers):
    """A causal model whose prompt is computed with each text: the same function as from recorded prompts."""

    def _behind(self, prompts: Prompts, text: InputPart, at: Tensor) -> Tensor:
        places = at + prompts.length
        whole = self.prompt_part(prompts.of_examples(len(text.mask))).joined(text)
        with self.answering(places[:, 0], prompts):
            return self.stack.run_alone(whole, places)

    def generate(self, prompts: Prompts, batch: dict[str, Tensor], max_new_tokens: int, num_beams: int) -> Tensor:
        text = self.text_part(batch, prompts.length)
        whole = self.prompt_part(prompts.of_examples(len(text.mask))).joined(text)
        lengths = whole.mask.sum(dim=1)
        written = lengths.new_full((len(lengths), max_new_tokens), self.pad_token_id)
        longest = 0
        # Texts of one length at a time: without padding nothing depends on how a family treats it.
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            found = self._continued(
                whole.embeddings[rows, :length], whole.mask[rows, :length], max_new_tokens, num_beams
            )
            written[rows, : found.shape[1]] = found
            longest = max(longest, found.shape[1])
        return written[:, :longest]

    def _continued(self, embeddings: Tensor, mask: Tensor, max_new_tokens: int, num_beams: int) -> Tensor:
        with _generating(self.family):
            settings = writing.settings(self.model, self.pad_token_id, max_new_tokens, num_beams)
            return self.written(self.model.generate(None, settings, inputs_embeds=embeddings, attention_mask=mask))


class PlainSeq2SeqAnswers(PlainAnswers, Seq2SeqAnswers):
    """A sequence-to-sequence model, in `full` mode."""

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

    def _from_rows(self, rows: Tensor) -> Tensor:
        ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)
        return self.model(encoder_outputs=_GivenStates(last_hidden_state=rows), decoder_input_ids=ids).logits


PLAIN_KINDS: dict[str, Callable[..., PlainAnswers]] = {
    "masked_lm": PlainMaskedAnswers,
    "causal_lm": PlainCausalAnswers,
    "seq2seq_lm": PlainSeq2SeqAnswers,
}


def answers_of(family: Family) -> Callable[..., Answers]:
    """Return the class that answers for a family."""
    return PLAIN_KINDS[family.kind] if family.plain else KINDS[family.kind]


def refuse_shared(name: str, family: Family, attention: str) -> None:
    """Raise UserError if `shared` attention is asked of a plain family in which it is not the same as `full`."""
    if family.plain and family.kind != "causal_lm" and attention == "shared":
        raise UserError(f"{name} ({family.name}) has no attention mode 'shared': use --model.attention full")
