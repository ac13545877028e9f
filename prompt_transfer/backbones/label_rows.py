"""Trained rows that replace those of label words in the LM head (soft verbalizer).

Shape letters: B batch, H' width of the LM head's input, C classes, U scored tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.utils.errors import UserError


def head_rows(backbone: FrozenBackbone, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows [U, H'] of the LM head and their biases [U] (0 if it has none) for some tokens, float32.

    Raises:
        UserError: a backbone without a row in the registry of families, whose LM head is not known.
    """
    if backbone.head == "embedding":
        rows = backbone._table[token_ids].float()
        return rows, rows.new_zeros(len(rows))
    if backbone.family.plain:
        raise UserError(
            f"{backbone.id} ({backbone.family.name}) runs in transformers' own forward pass, which cannot replace rows "
            "of its LM head: leave out --model.label_embeddings"
        )
    layer = backbone._output
    rows = layer.weight[token_ids].detach().float()
    bias = rows.new_zeros(len(rows)) if layer.bias is None else layer.bias[token_ids].detach().float()
    return rows, bias


def score_rows(backbone: FrozenBackbone, states: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """Compute float32 logits [B, C] of given rows of the LM head.

    Args:
        backbone: the backbone.
        states: answer states [B, H].
        rows: [B, C, H'], the rows of each example's classes.
        bias: [B, C].
    """
    rows, bias = rows.to(states.dtype), bias.to(states.dtype)
    if backbone.head == "embedding":
        return (torch.einsum("bh,bch->bc", states, rows) + bias).float()
    with backbone._output.given(rows, bias):
        return backbone._logits(states)
