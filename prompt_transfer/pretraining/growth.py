"""A larger model that starts from what a smaller one has learnt (bert2BERT, Chen et al. 2022, after Net2Net).

An encoder grows in width: every new unit is the copy of an old one, and whoever reads copies divides by their number,
so that sums come out the same. And in depth: new layers on top whose outputs are zero and which pass on what they get.
Where each unit is copied equally often the larger model computes the same function; otherwise the norm layers see
slightly other statistics. A T5 grows by attention heads, which add nothing before they are trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, RobertaForMaskedLM


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


@torch.no_grad()
def add_heads(small: PreTrainedModel, large: PreTrainedModel) -> None:
    """Give a T5 what one of as many or fewer attention heads has learnt; both compute the same.

    New heads have random queries, keys and values, and their outputs count nothing. Heads keep their size, so a T5 may
    have more of them than fit into its width (as v1.1 small, of 6 heads of 64 in a width of 512, has fewer).

    Args:
        small: the one that has learnt.
        large: of the same sizes else; changed in place.

    Raises:
        ValueError: other sizes differ.
    """
    source, target = small.state_dict(), large.state_dict()
    if source.keys() != target.keys() or small.config.d_kv != large.config.d_kv:
        raise ValueError("heads are added to a model of the same layers and the same size of heads")
    old, width = small.config.num_heads, large.config.d_model
    for name, weight in target.items():
        # Which dimension goes over heads, and how many numbers each has there.
        axis, size = (
            (1, 1) if "relative_attention_bias" in name else (int(name.endswith(".o.weight")), small.config.d_kv)
        )
        kept = source[name]
        if kept.shape == weight.shape:
            weight.copy_(kept)
            continue
        grows = name.split(".")[-2] in ("q", "k", "v", "o", "relative_attention_bias")
        if not grows or kept.shape[axis] != old * size or kept.shape[1 - axis] != weight.shape[1 - axis]:
            raise ValueError(f"{name} has other sizes")
        if weight.shape[axis] < kept.shape[axis]:
            raise ValueError("heads are added, not taken away")
        if axis:
            weight.zero_()
        else:
            # Values of length 1; logits of deviation 1 for queries and keys, which a T5 does not scale.
            weight.normal_(std=width**-0.5 * (1.0 if ".v." in name else math.sqrt(size) ** -0.5))
        weight.narrow(axis, 0, kept.shape[axis]).copy_(kept)
    large.load_state_dict(target)
