"""A larger encoder that starts from what a smaller one has learnt (bert2BERT, Chen et al. 2022, after Net2Net).

Width: every new unit is the copy of an old one, and whoever reads copies divides by their number, so that sums come out
the same. Depth: new layers on top whose outputs are zero and which pass on what they get. Where each unit is copied
equally often the larger model computes the same function; otherwise the norm layers see slightly other statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import RobertaForMaskedLM


def unit_map(old: int, new: int, generator: torch.Generator) -> Tensor:
    """Which old unit each new one copies [new]: the old ones first, then a random choice, none much oftener."""
    copies = [torch.arange(old)]
    while sum(map(len, copies)) < new:
        copies.append(torch.randperm(old, generator=generator))
    return torch.cat(copies)[:new]


def head_map(old: int, new: int, size: int, generator: torch.Generator) -> Tensor:
    """The same for the units of attention heads, which are copied as a whole: [new * size]."""
    heads = unit_map(old, new, generator)
    return (heads[:, None] * size + torch.arange(size)).flatten()


def _shares(units: Tensor) -> Tensor:
    """What each copy contributes to a sum: one over how often its unit is copied [new]."""
    return 1 / torch.bincount(units)[units].float()


def _linear(new: nn.Linear, old: nn.Linear, outputs: Tensor, inputs: Tensor) -> None:
    new.weight.copy_(old.weight[outputs][:, inputs] * _shares(inputs))
    new.bias.copy_(old.bias[outputs])


def _norm(new: nn.LayerNorm, old: nn.LayerNorm, units: Tensor) -> None:
    new.weight.copy_(old.weight[units])
    new.bias.copy_(old.bias[units])


@torch.no_grad()
def grow(small: RobertaForMaskedLM, large: RobertaForMaskedLM, seed: int = 0) -> None:
    """Give `large` what `small` has learnt.

    Args:
        small: with the same vocabulary, the same size of heads, and at most as many of everything.
        large: changed in place.
        seed: which units are copied more often.

    Raises:
        ValueError: the sizes do not allow it.
    """
    a, b = small.config, large.config
    size = a.hidden_size // a.num_attention_heads
    fits = a.vocab_size == b.vocab_size and size == b.hidden_size // b.num_attention_heads
    pairs = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    if not fits or any(getattr(a, name) > getattr(b, name) for name in pairs):
        raise ValueError("growing needs one vocabulary, one size of attention heads, and nothing that shrinks")
    generator = torch.Generator().manual_seed(seed)
    hidden = unit_map(a.hidden_size, b.hidden_size, generator)
    source, target = small.roberta.embeddings, large.roberta.embeddings
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        table = getattr(source, name).weight
        getattr(target, name).weight[: len(table)] = table[:, hidden]
    _norm(target.LayerNorm, source.LayerNorm, hidden)
    layers = small.roberta.encoder.layer
    for index, new in enumerate(large.roberta.encoder.layer):
        old = layers[min(index, len(layers) - 1)]
        heads = head_map(a.num_attention_heads, b.num_attention_heads, size, generator)
        neurons = unit_map(a.intermediate_size, b.intermediate_size, generator)
        for name in ("query", "key", "value"):
            _linear(getattr(new.attention.self, name), getattr(old.attention.self, name), heads, hidden)
        _linear(new.attention.output.dense, old.attention.output.dense, hidden, heads)
        _linear(new.intermediate.dense, old.intermediate.dense, neurons, hidden)
        _linear(new.output.dense, old.output.dense, hidden, neurons)
        _norm(new.attention.output.LayerNorm, old.attention.output.LayerNorm, hidden)
        _norm(new.output.LayerNorm, old.output.LayerNorm, hidden)
        if index >= len(layers):
            # Adds nothing yet, and norms as the layer below has done.
            _norm(new.attention.output.LayerNorm, old.output.LayerNorm, hidden)
            for dense in (new.attention.output.dense, new.output.dense):
                dense.weight.zero_()
                dense.bias.zero_()
    _linear(large.lm_head.dense, small.lm_head.dense, hidden, hidden)
    _norm(large.lm_head.layer_norm, small.lm_head.layer_norm, hidden)
    # The output layer is the table of word embeddings, whose copies cannot be divided; so what meets them is.
    large.lm_head.layer_norm.weight.mul_(_shares(hidden))
    large.lm_head.layer_norm.bias.mul_(_shares(hidden))
    large.lm_head.bias.copy_(small.lm_head.bias)
    large.lm_head.decoder.bias.copy_(small.lm_head.bias)
