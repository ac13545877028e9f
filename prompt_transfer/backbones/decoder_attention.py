"""Attention of T5's decoder at its first step, which scores the label words with one query per example.

Keys and values of the encoder states cost two H x H products for each of the P + T states in every layer: a seventh of
the model's work, for a single query. With one query the products can be reordered (`attention.attend_absorbed`). In
self-attention, a token that sees only itself has attention weight 1, so its output is its own value. Both equal the
original modules up to rounding.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from prompt_transfer.backbones.attention import attend_absorbed
from prompt_transfer.backbones.family import Family
from prompt_transfer.backbones.substitutes import replace


class AttentionSubstitute(nn.Module):
    """A replacement for an attention module of a decoder.

    Args:
        whole: the original module, whose projections are used; they have no bias in any T5.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

    def is_first_step(self, hidden_states: Tensor, past_key_values: Any) -> bool:
        """Return whether there is a single token, no key/value cache and no dropout.

        With a cache, in `generate`, keys and values are reused by many steps; dropout applies to attention weights that
        the replacement does not compute.
        """
        return hidden_states.shape[1] == 1 and past_key_values is None and not self.training


class AbsorbedKVAttention(AttentionSubstitute):
    """Cross-attention without keys and values if there is one query per example."""

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Return the original's output: attention output [B, 1, H] and position bias (None in cross-attention)."""
        whole = self.whole
        # Replacements such as adapters must be called, so only plain linear layers are absorbed.
        plain = type(whole.k) is nn.Linear and type(whole.v) is nn.Linear
        if key_value_states is None or not plain or not self.is_first_step(hidden_states, past_key_values):
            return whole(
                hidden_states, mask=mask, key_value_states=key_value_states, past_key_values=past_key_values, **kwargs
            )
        size, heads, width = len(hidden_states), whole.n_heads, whole.key_value_proj_dim
        query = whole.q(hidden_states).view(size, heads, 1, width)
        values = attend_absorbed(whole, query, key_value_states, whole.k.weight, whole.v.weight, mask, whole.scaling)
        return whole.o(values.reshape(size, 1, heads * width)), kwargs.get("position_bias"), None


class SingleTokenAttention(AttentionSubstitute):
    """Self-attention without queries and keys if there is one token."""

    def forward(
        self, hidden_states: Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, None]:
        """Return the original's output, without the position bias [1, A, 1, 1], which a single token never uses."""
        whole = self.whole
        if not self.is_first_step(hidden_states, past_key_values):
            return whole(hidden_states, past_key_values=past_key_values, **kwargs)
        return whole.o(whole.v(hidden_states)), kwargs.get("position_bias"), None


def substitute(model: PreTrainedModel, family: Family) -> None:
    """Replace the attention modules of every decoder layer of a sequence-to-sequence model."""
    for path, substitute_type in (
        (family.cross_attention, AbsorbedKVAttention),
        (family.self_attention, SingleTokenAttention),
    ):
        if path is None:
            continue
        for layer in range(model.config.num_decoder_layers):
            place = path.format(i=layer)
            replace(model, place, substitute_type(model.get_submodule(place)))
