"""Initialization of small language models from the corpus' word statistics.

A short run sees rare words too seldom to place them, and a model whose attention carries no information yet gets no
gradient on what to attend to: it stays at the loss of word frequencies for a long time. So the model starts as a
bag-of-words predictor: co-occurrence vectors as word embeddings, first-layer attention that adds the mean of the text
to each position, an LM head that compares with word embeddings, and log frequencies as its bias. In a T5 the
cross-attention adds the mean of the encoder's output.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prompt_transfer.pretraining.corpus_batches import Tokens
from prompt_transfer.pretraining.objectives import Architecture

# Norms relative to a normal initialization of deviation 0.02; tuned on the held-out loss before the first step.
WORD_NORM, POSITION_SHARE, VALUE_GAIN = 0.02, 0.3, 3.0
# Logit penalties of a T5's heads: per log distance, and for the masked direction. Then its residual stream: scale of
# the layers' outputs, and of sentinels, which carry no information about a text.
NEARNESS, AWAY = 2.0, 5.0
T5_LAYER_GAIN, T5_SPECIAL_NORM, T5_VALUE_GAIN = 0.2, 0.1, 3.0


def frequencies(streams: list[np.ndarray], vocab_size: int) -> Tensor:
    """Return the share of each token [V] in the streams, with add-one smoothing."""
    counts = np.ones(vocab_size)
    for stream in streams:
        counts += np.bincount(stream, minlength=vocab_size)
    return torch.from_numpy(counts / counts.sum()).float()


def cooccurrence_vectors(streams: list[np.ndarray], vocab_size: int, width: int, window: int = 8) -> Tensor:
    """Return word vectors [V, H]: truncated SVD of the positive pointwise mutual information of neighbours.

    Levy and Goldberg (2014) with context distribution smoothing 0.75; a neighbour at distance d counts 1 / sqrt(d).
    Centred on the mean over running text, so the mean of a text's vectors represents its topic.
    """
    counts = np.zeros(vocab_size * vocab_size, dtype=np.float32)
    for stream in streams:
        stream = stream.astype(np.int64)
        for distance in range(1, window + 1):
            pairs = stream[:-distance] * vocab_size + stream[distance:]
            counts += np.bincount(pairs, minlength=vocab_size**2).astype(np.float32) / distance**0.5
    matrix = torch.from_numpy(counts).view(vocab_size, vocab_size)
    matrix = matrix + matrix.T
    target = matrix.sum(1, keepdim=True)
    context = matrix.sum(0, keepdim=True) ** 0.75
    pmi = torch.log(matrix * context.sum() / (target * context).clamp_min(1e-12) + 1e-12).clamp_min_(0)
    u, s, _ = torch.svd_lowrank(pmi, q=width, niter=3)
    vectors = u * s.sqrt()
    return vectors - frequencies(streams, vocab_size) @ vectors


def sinusoids(count: int, width: int) -> Tensor:
    """Return the position embeddings [count, width] of Vaswani et al. (2017), each of norm 1."""
    angles = torch.arange(count)[:, None] / 10_000 ** (torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1) / math.sqrt(width / 2)


@torch.no_grad()
def informed_init(
    model: PreTrainedModel, architecture: Architecture, tokens: Tokens, streams: list[np.ndarray]
) -> None:
    """Initialize `model` as this module describes; a GPT-2 gets the word vectors only.

    Args:
        model: freshly initialized; changed in place.
        architecture: the model's architecture.
        tokens: the special ids.
        streams: token ids of the corpus, one array per file.
    """
    table = model.get_input_embeddings().weight
    vocab_size, width = table.shape
    vectors = cooccurrence_vectors(streams, vocab_size, width)
    # Special tokens do not occur in the streams and keep their random embeddings.
    words = slice(tokens.ordinary, vocab_size - tokens.reserved)
    directions = vectors[words] / vectors[words].norm(dim=1).mean()
    # Scaled to the deviation of the random embeddings: 0.02, or 1 in a T5, whose norms do not subtract the mean.
    table[words] = directions * table[words].std() * math.sqrt(width)
    output = model.get_output_embeddings().weight
    if output is not table:
        # T5 v1.1 has an untied output layer whose default initialization gives logits of deviation sqrt(H).
        output.normal_(std=1 / width)
        output[words] += directions / math.sqrt(width)
    if model.config.is_encoder_decoder:
        table[: words.start] *= T5_SPECIAL_NORM
        table[words.stop :] *= T5_SPECIAL_NORM
        _pass_means(model)
    if architecture.transform is not None:
        _set_bag_of_words(model, architecture, tokens, frequencies(streams, vocab_size))


def _set_bag_of_words(model: PreTrainedModel, architecture: Architecture, tokens: Tokens, shares: Tensor) -> None:
    """Make an encoder with initialized word embeddings predict from the mean of the text."""
    body = model.get_submodule(architecture.body)
    width = body.embeddings.word_embeddings.weight.shape[1]
    positions = body.embeddings.position_embeddings.weight
    positions.copy_(sinusoids(*positions.shape) * WORD_NORM * math.sqrt(width) * POSITION_SHARE)
    positions[: tokens.first_position] = 0
    body.embeddings.token_type_embeddings.weight.zero_()
    identity = torch.eye(width)
    attention = body.encoder.layer[0].attention
    attention.self.value.weight.copy_(identity * VALUE_GAIN)
    attention.output.dense.weight.copy_(identity)
    assert architecture.transform is not None
    model.get_submodule(architecture.transform).weight.copy_(identity)
    bias = shares.log()
    for name, parameter in model.get_submodule(architecture.head).named_parameters():
        if name.endswith("bias") and parameter.shape == bias.shape:
            parameter.copy_(bias)


def _pass_means(model: PreTrainedModel) -> None:
    """Make a T5's encoder add the mean of the text to each position, and its decoder that of the encoder's output."""
    for name, parameter in model.named_parameters():
        # The output projection of each sublayer: attention and FFN.
        if name.endswith((".o.weight", ".wo.weight")):
            parameter *= T5_LAYER_GAIN
    for stack in (model.encoder, model.decoder):
        _set_position_bias(stack.block[0].layer[0].SelfAttention, both_ways=stack is model.encoder)
    attentions = [model.encoder.block[0].layer[0].SelfAttention]
    attentions += [block.layer[1].EncDecAttention for block in model.decoder.block]
    for attention, gain in zip(attentions, [T5_VALUE_GAIN] + [1.0] * len(model.decoder.block), strict=True):
        # The heads together may be narrower or wider than the model.
        attention.v.weight.copy_(torch.eye(*attention.v.weight.shape))
        attention.o.weight.copy_(torch.eye(*attention.o.weight.shape) * gain)


def _set_position_bias(attention: Any, both_ways: bool) -> None:
    """Initialize the position bias of a T5's heads in turn to: just before, just after, nearby, no preference.

    The bias is a T5's only positional information, and Adam, whose steps are as long as its learning rate, needs
    thousands of steps to reach values that matter in a softmax.
    """
    bias = attention.relative_attention_bias.weight
    distance = torch.arange(-attention.relative_attention_max_distance, attention.relative_attention_max_distance + 1)
    buckets = attention._relative_position_bucket(
        distance, both_ways, attention.relative_attention_num_buckets, attention.relative_attention_max_distance
    )
    near = -NEARNESS * distance.abs().float().log1p()
    before = near - AWAY * (distance >= 0)
    behind = near - AWAY * (distance <= 0)
    kinds = (before, behind, near, torch.zeros_like(near)) if both_ways else (before, near, near / 2, 0 * near)
    for head in range(bias.shape[1]):
        bias[buckets, head] = kinds[head % len(kinds)]


@torch.no_grad()
def decoder_from_encoder(model: PreTrainedModel) -> None:
    """Copy the encoder of a T5 into its decoder; the cross-attention is unchanged."""
    for source, target in zip(model.encoder.block, model.decoder.block, strict=True):
        own, written = source.layer[0].SelfAttention, target.layer[0].SelfAttention
        for name in ("q", "k", "v", "o"):
            getattr(written, name).weight.copy_(getattr(own, name).weight)
        target.layer[0].layer_norm.load_state_dict(source.layer[0].layer_norm.state_dict())
        target.layer[-1].load_state_dict(source.layer[-1].state_dict())
    model.decoder.final_layer_norm.load_state_dict(model.encoder.final_layer_norm.state_dict())
    own, written = (stack.block[0].layer[0].SelfAttention for stack in (model.encoder, model.decoder))
    # Only half of the encoder's buckets are for preceding positions: map each decoder bucket through its distances.
    distance = torch.arange(model.config.relative_attention_max_distance * 2)
    buckets = [
        attention._relative_position_bucket(
            -distance, both, model.config.relative_attention_num_buckets, model.config.relative_attention_max_distance
        )
        for attention, both in ((own, True), (written, False))
    ]
    written.relative_attention_bias.weight[buckets[1].flip(0)] = own.relative_attention_bias.weight[buckets[0].flip(0)]
