"""Attention of a T5's decoder at its first step, off which a label word is read: one query an example.

Keys and values of the encoder's states would be two products of H x H numbers for each of the P + T states, in every
layer: a seventh of the model's work, for a query that reads each state once. With one query the products can change
places (`attention.attend_absorbed`). And a token that sees nothing but itself reads itself, whatever it asks for. The
same function to rounding.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from prompt_transfer.backbones.attention import attend_absorbed
from prompt_transfer.backbones.family import Family
from prompt_transfer.backbones.substitutes import replace


class AttentionSubstitute(nn.Module):
    """In place of an attention module of a decoder.

    Args:
        whole: the module it stands for, of which it uses the projections; they have no bias in any T5.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

    def is_first_step(self, hidden_states: Tensor, past_key_values: Any) -> bool:
        """Whether there is one token, and nothing before it or after it.

        With a cache (in `generate`) keys and values serve many steps; dropout falls on weights that this never sees.
        """
        return hidden_states.shape[1] == 1 and past_key_values is None and not self.training


class AbsorbedKVAttention(AttentionSubstitute):
    """A cross-attention module, but cheaper where there is one query."""

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """As the module it stands for: attention output [B, 1, H], the position bias (cross-attention has none)."""
        whole = self.whole
        if key_value_states is None or not self.is_first_step(hidden_states, past_key_values):
            return whole(
                hidden_states, mask=mask, key_value_states=key_value_states, past_key_values=past_key_values, **kwargs
            )
        size, heads, width = len(hidden_states), whole.n_heads, whole.key_value_proj_dim
        query = whole.q(hidden_states).view(size, heads, 1, width)
        values = attend_absorbed(whole, query, key_value_states, whole.k.weight, whole.v.weight, mask, whole.scaling)
        return whole.o(values.reshape(size, 1, heads * width)), kwargs.get("position_bias"), None


class SingleTokenAttention(AttentionSubstitute):
    """A self-attention module, but without queries and keys where there is one token."""

    def forward(
        self, hidden_states: Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, None]:
        """As the module it stands for; the position bias [1, A, 1, 1] is left out, since nobody needs it then."""
        whole = self.whole
        if not self.is_first_step(hidden_states, past_key_values):
            return whole(hidden_states, past_key_values=past_key_values, **kwargs)
        return whole.o(whole.v(hidden_states)), kwargs.get("position_bias"), None


def substitute(model: PreTrainedModel, family: Family) -> None:
    """Put them in every layer of the decoder of a sequence-to-sequence model."""
    for path, stand_in in (
        (family.cross_attention, AbsorbedKVAttention),
        (family.self_attention, SingleTokenAttention),
    ):
        if path is None:
            continue
        for layer in range(model.config.num_decoder_layers):
            place = path.format(i=layer)
            replace(model, place, stand_in(model.get_submodule(place)))
