"""A T5 decoder's cross-attention for one query an example, without keys and values of the encoder's states.

A label word is read off the first step of the decoder. Keys and values for it would be two products of H x H numbers
for each of the P + T states, in every layer: a seventh of the model's work, for a query that reads each state once.
With one query the products can change places: `q (E Wk)' = (q Wk') E'` and `w (E Wv) = (w E) Wv`, where E [P + T, H]
are the states and w the weights, so that Wk and Wv meet one row an example and head. The same function to rounding.

Shape letters: B batch, H hidden, A heads, D numbers a head, K = P + T encoder states.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from prompt_transfer.backbones.attention import attend
from prompt_transfer.backbones.families import Family
from prompt_transfer.backbones.substitutes import replace


class OneQueryAttention(nn.Module):
    """In place of a cross-attention module: itself, but cheaper where there is one query.

    Args:
        whole: the module it stands for, of which it uses the four projections; they have no bias in any T5.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

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
        # With a cache (in `generate`) keys and values serve many steps; dropout falls on weights that this never sees.
        if key_value_states is None or hidden_states.shape[1] != 1 or past_key_values is not None or self.training:
            return whole(
                hidden_states, mask=mask, key_value_states=key_value_states, past_key_values=past_key_values, **kwargs
            )
        size, heads, width = len(hidden_states), whole.n_heads, whole.key_value_proj_dim
        query = whole.q(hidden_states).view(size, heads, 1, width)
        # [A, D, H]: what makes the keys (values) of each head.
        to_keys, to_values = (layer.weight.view(heads, width, -1) for layer in (whole.k, whole.v))
        asked = (query.transpose(0, 1).flatten(1, 2) @ to_keys).transpose(0, 1)
        states = key_value_states.unsqueeze(1)
        # The heads stand where queries stand: all of them read the same states.
        read, _ = attend(whole, asked.unsqueeze(1), states, states, mask, scaling=whole.scaling, is_causal=False)
        read = read.squeeze(2)
        values = (read.transpose(0, 1) @ to_values.transpose(1, 2)).transpose(0, 1)
        return whole.o(values.reshape(size, 1, heads * width)), kwargs.get("position_bias"), None


def substitute(model: PreTrainedModel, family: Family) -> None:
    """Put it in every layer of the decoder of a sequence-to-sequence model."""
    if family.cross_attention is None:
        return
    for layer in range(model.config.num_decoder_layers):
        path = family.cross_attention.format(i=layer)
        replace(model, path, OneQueryAttention(model.get_submodule(path)))
