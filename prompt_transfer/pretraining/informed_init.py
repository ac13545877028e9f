"""A start for small language models that knows the corpus' word statistics.

A short run never sees a rare word often enough to place it, and a model whose attention passes nothing on yet has no
gradient that tells it what to look at: it stays at the loss of word frequencies for a long time. So the start is made
to be a bag-of-words predictor: co-occurrence vectors as word embeddings, first-layer attention that adds the mean of
the text to each position, a head that compares with word embeddings, and word frequencies as its bias. In a T5 the
decoder's attention to the encoder is made to add the mean of what the encoder found.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prompt_transfer.pretraining.architectures import Architecture
from prompt_transfer.pretraining.corpus_batches import Tokens

# Norms beside a normal initialisation with deviation 0.02; found by the held-out loss before the first step.
WORD_NORM, POSITION_SHARE, VALUE_GAIN = 0.02, 0.3, 3.0
# A T5's residual stream: what layers add at first, and the length of sentinels, which say nothing of a text.
# Of its heads: what a distance costs in their logits, and a direction that they do not look into.
NEARNESS, AWAY = 2.0, 5.0
T5_LAYER_GAIN, T5_SPECIAL_NORM, T5_VALUE_GAIN = 0.2, 0.1, 3.0


def frequencies(streams: list[np.ndarray], vocab_size: int) -> Tensor:
    """Share of each token [V] in the streams, every token counted once more than it occurs."""
    counts = np.ones(vocab_size)
    for stream in streams:
        counts += np.bincount(stream, minlength=vocab_size)
    return torch.from_numpy(counts / counts.sum()).float()


def cooccurrence_vectors(streams: list[np.ndarray], vocab_size: int, width: int, window: int = 8) -> Tensor:
    """Word vectors [V, H]: truncated SVD of the positive pointwise mutual information of neighbours.

    Levy and Goldberg (2014) with context distribution smoothing 0.75; a neighbour at distance d counts 1 / sqrt(d).
    Centred on the mean over running text, so that the mean of a text's vectors tells what it is about.
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
    """The position table [count, width] of Vaswani et al. (2017), rows of norm 1."""
    angles = torch.arange(count)[:, None] / 10_000 ** (torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1) / math.sqrt(width / 2)


@torch.no_grad()
def informed_init(
    model: PreTrainedModel, architecture: Architecture, tokens: Tokens, streams: list[np.ndarray]
) -> None:
    """Give `model` the start that the module describes; GPT gets the word vectors alone.

    Args:
        model: freshly initialised; changed in place.
        architecture: its row.
        tokens: which ids are special.
        streams: token ids of the corpus, one array a file.
    """
    table = model.get_input_embeddings().weight
    vocab_size, width = table.shape
    vectors = cooccurrence_vectors(streams, vocab_size, width)
    # Special tokens never stand in the streams and keep their random start.
    words = slice(tokens.ordinary, vocab_size - tokens.reserved)
    directions = vectors[words] / vectors[words].norm(dim=1).mean()
    # As long as the random rows that they replace: 0.02 a number, 1 in a T5, whose norm layers have no mean.
    table[words] = directions * table[words].std() * math.sqrt(width)
    output = model.get_output_embeddings().weight
    if output is not table:
        # T5 v1.1 does not tie its output layer, and its own start for it gives logits of deviation sqrt(H).
        output.normal_(std=1 / width)
        output[words] += directions / math.sqrt(width)
    if model.config.is_encoder_decoder:
        table[: words.start] *= T5_SPECIAL_NORM
        table[words.stop :] *= T5_SPECIAL_NORM
        _means_pass_on(model)
    if architecture.transform is not None:
        _bag_of_words(model, architecture, tokens, frequencies(streams, vocab_size))


def _bag_of_words(model: PreTrainedModel, architecture: Architecture, tokens: Tokens, shares: Tensor) -> None:
    """Make an encoder whose word embeddings are set predict by the mean of the text."""
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


def _means_pass_on(model: PreTrainedModel) -> None:
    """Make a T5's encoder add the mean of the text to each position, and its decoder the mean of the encoder."""
    for name, parameter in model.named_parameters():
        # The last product of each sublayer: attention and feed-forward.
        if name.endswith((".o.weight", ".wo.weight")):
            parameter *= T5_LAYER_GAIN
    for stack in (model.encoder, model.decoder):
        _heads_look_around(stack.block[0].layer[0].SelfAttention, both_ways=stack is model.encoder)
    attentions = [model.encoder.block[0].layer[0].SelfAttention]
    attentions += [block.layer[1].EncDecAttention for block in model.decoder.block]
    for attention, gain in zip(attentions, [T5_VALUE_GAIN] + [1.0] * len(model.decoder.block), strict=True):
        # As many numbers as the heads have, should they be fewer or more than the model's.
        attention.v.weight.copy_(torch.eye(*attention.v.weight.shape))
        attention.o.weight.copy_(torch.eye(*attention.o.weight.shape) * gain)


def _heads_look_around(attention: Any, both_ways: bool) -> None:
    """Let the heads of a T5's stack prefer what stands just before, just behind, near, and nothing, in turns.

    A T5 knows positions by these numbers alone, and an optimizer whose steps are as long as its learning rate takes
    thousands of them to a number that matters in a softmax.
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
    """Make the decoder of a T5 a copy of its encoder; its attention to the encoder stays as it is."""
    for source, target in zip(model.encoder.block, model.decoder.block, strict=True):
        own, written = source.layer[0].SelfAttention, target.layer[0].SelfAttention
        for name in ("q", "k", "v", "o"):
            getattr(written, name).weight.copy_(getattr(own, name).weight)
        target.layer[0].layer_norm.load_state_dict(source.layer[0].layer_norm.state_dict())
        target.layer[-1].load_state_dict(source.layer[-1].state_dict())
    model.decoder.final_layer_norm.load_state_dict(model.encoder.final_layer_norm.state_dict())
    own, written = (stack.block[0].layer[0].SelfAttention for stack in (model.encoder, model.decoder))
    # The encoder has half its buckets for what stands before, so each decoder bucket takes that of its distances.
    distance = torch.arange(model.config.relative_attention_max_distance * 2)
    buckets = [
        attention._relative_position_bucket(
            -distance, both, model.config.relative_attention_num_buckets, model.config.relative_attention_max_distance
        )
        for attention, both in ((own, True), (written, False))
    ]
    written.relative_attention_bias.weight[buckets[1].flip(0)] = own.relative_attention_bias.weight[buckets[0].flip(0)]
