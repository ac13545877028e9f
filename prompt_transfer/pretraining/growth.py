"""Initialization of a larger model from a smaller one (bert2BERT, Chen et al. 2022, after Net2Net).

An encoder grows in width: every new unit copies an old one, and weights that read copies are divided by their number,
which preserves sums. It grows in depth by new top layers with zero output. If every unit is copied equally often, the
larger model computes the same function; otherwise the norm layers see slightly different statistics. A T5 grows by
attention heads, whose output is zero before training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, RobertaForMaskedLM


def unit_map(old: int, new: int, generator: torch.Generator) -> Tensor:
    """Return the old unit that each new one copies [new]: all old units first, then random ones, spread evenly."""
    copies = [torch.arange(old)]
    while sum(map(len, copies)) < new:
        copies.append(torch.randperm(old, generator=generator))
    return torch.cat(copies)[:new]


def head_map(old: int, new: int, size: int, generator: torch.Generator) -> Tensor:
    """Return the unit map [new * size] of attention heads, which are copied as a whole."""
    heads = unit_map(old, new, generator)
    return (heads[:, None] * size + torch.arange(size)).flatten()


def _shares(units: Tensor) -> Tensor:
    """Return the weight of each copy in a sum [new]: one over the number of copies of its unit."""
    return 1 / torch.bincount(units)[units].float()


def _linear(new: nn.Linear, old: nn.Linear, outputs: Tensor, inputs: Tensor) -> None:
    new.weight.copy_(old.weight[outputs][:, inputs] * _shares(inputs))
    new.bias.copy_(old.bias[outputs])


def _norm(new: nn.LayerNorm, old: nn.LayerNorm, units: Tensor) -> None:
    new.weight.copy_(old.weight[units])
    new.bias.copy_(old.bias[units])


@torch.no_grad()
def grow(small: RobertaForMaskedLM, large: RobertaForMaskedLM, seed: int = 0) -> None:
    """Initialize `large` from the weights of `small`.

    Args:
        small: a model with the same vocabulary and head size, and no larger in any size.
        large: changed in place.
        seed: seed of the choice of units that are copied more often.

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
            # Adds zero, and normalizes like the layer below.
            _norm(new.attention.output.LayerNorm, old.output.LayerNorm, hidden)
            for dense in (new.attention.output.dense, new.output.dense):
                dense.weight.zero_()
                dense.bias.zero_()
    _linear(large.lm_head.dense, small.lm_head.dense, hidden, hidden)
    _norm(large.lm_head.layer_norm, small.lm_head.layer_norm, hidden)
    # The output layer is tied to the word embeddings, which cannot be divided; so its input is.
    large.lm_head.layer_norm.weight.mul_(_shares(hidden))
    large.lm_head.layer_norm.bias.mul_(_shares(hidden))
    large.lm_head.bias.copy_(small.lm_head.bias)
    large.lm_head.decoder.bias.copy_(small.lm_head.bias)


@torch.no_grad()
def add_heads(small: PreTrainedModel, large: PreTrainedModel) -> None:
    """Initialize a T5 from one with as many or fewer attention heads; both compute the same function.

    New heads have random queries, keys and values, and zero output. The head size is unchanged, so the heads of a T5
    together may be wider than the model (v1.1 small, with 6 heads of 64 in a width of 512, is narrower).

    Args:
        small: the source model.
        large: a model whose other sizes are the same; changed in place.

    Raises:
        ValueError: other sizes differ.
    """
    source, target = small.state_dict(), large.state_dict()
    if source.keys() != target.keys() or small.config.d_kv != large.config.d_kv:
        raise ValueError("heads are added to a model of the same layers and the same size of heads")
    old, width = small.config.num_heads, large.config.d_model
    for name, weight in target.items():
        # The dimension of the heads, and the size of a head there.
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
            # Values of norm 1, and attention logits of deviation 1, which a T5 does not scale.
            weight.normal_(std=width**-0.5 * (1.0 if ".v." in name else math.sqrt(size) ** -0.5))
        weight.narrow(axis, 0, kept.shape[axis]).copy_(kept)
    large.load_state_dict(target)
