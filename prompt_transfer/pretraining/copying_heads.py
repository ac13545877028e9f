"""A start for a T5 that is to copy: heads that find a token's next one in the encoder, set before training.

A decoder copies by looking for the place behind the token that it has just written (an induction head, Olsson et al.
2022). That takes two heads which are worth nothing without one another, so a small T5 goes without for thousands of
steps: its copies of 8 to 30 tokens stay at 5.6 nats after 1,550 steps of pretraining, where 400 steps from this start
reach 0.4. Here one encoder head writes to each position what stands before it, and the decoder's first attention to the
encoder asks for the position behind the current token. What it reads there, training turns into words.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prompt_transfer.pretraining.corpus_batches import Tokens

# Of the encoder's heads, one that prefers what stands just before anyway (`informed_init`).
PREVIOUS = 0
# In a softmax, what the previous position is ahead of the others; and a token's code of d numbers with itself, over d.
AHEAD, MATCH = 12.0, 0.25
# Lengths beside a residual stream of about 90 at the end of `t5-nano`; found by the copies' loss.
WRITTEN, READ = 10.0, 30.0
RIDGE = 1e-2


@torch.no_grad()
def copying_heads(model: PreTrainedModel, tokens: Tokens, texts: Tensor) -> None:
    """Set the heads that the module describes; all other weights stay.

    Args:
        model: a T5; changed in place.
        tokens: which ids are special.
        texts: ``[N, T]`` token ids of running text. Beside it the maps between states are fitted on random tokens.
    """
    words = torch.arange(tokens.ordinary, tokens.vocab_size - tokens.reserved)
    code = _code(model, words)
    _write_previous(model, code)
    generator = torch.Generator().manual_seed(0)
    drawn = words[torch.randint(len(words), texts.shape, generator=generator)]
    found = _states(model, torch.cat([texts, drawn]))
    attention = model.decoder.block[0].layer[1].EncDecAttention
    heads = attention.q.weight.shape[0] // len(code)
    normed = _normed(model)
    # What stands before a position of the encoder is what the decoder reads there: its start token comes first.
    before = normed[found["before"]] @ code.T
    keys, queries = fit(found["encoded"], before), fit(found["decoder"], before)
    attention.k.weight.copy_(keys.T.repeat(heads, 1))
    attention.q.weight.copy_(MATCH * queries.T.repeat(heads, 1))
    rows = model.lm_head.weight - model.lm_head.weight.mean(dim=0)
    values = fit(found["encoded"], rows[found["here"]])
    values /= (found["encoded"] @ values).norm(dim=1).mean()
    # Each head carries a part of what is read; together they are as wide as the model.
    attention.v.weight.copy_(values.T)
    attention.o.weight.copy_(READ * torch.eye(len(values)))


def windows(streams: list[np.ndarray], count: int = 384, length: int = 21) -> Tensor:
    """Stretches of running text [count, length], as many from each stream of token ids."""
    rng = np.random.default_rng(0)
    chosen = [streams[row % len(streams)] for row in range(count)]
    starts = [int(rng.integers(len(stream) - length + 1)) for stream in chosen]
    rows = [stream[start : start + length] for stream, start in zip(chosen, starts, strict=True)]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def _normed(model: PreTrainedModel) -> Tensor:
    """Word embeddings [V, H] as the encoder's first attention reads them, centred."""
    normed = model.encoder.block[0].layer[0].layer_norm(model.shared.weight)
    return normed - normed.mean(dim=0)


def _code(model: PreTrainedModel, words: Tensor) -> Tensor:
    """Directions [d, H] of as many numbers as a head has, in which words differ most, each of deviation 1."""
    width = model.config.d_kv
    _, lengths, directions = torch.linalg.svd(_normed(model)[words], full_matrices=False)
    return directions[:width] * (math.sqrt(len(words)) / lengths[:width, None])


def _write_previous(model: PreTrainedModel, code: Tensor) -> None:
    """Let the first layer of the encoder add the code of the token before, and its head look there in all layers."""
    attention: Any = model.encoder.block[0].layer[0].SelfAttention
    rows = slice(PREVIOUS * len(code), (PREVIOUS + 1) * len(code))
    bias = attention.relative_attention_bias.weight
    bucket = attention._relative_position_bucket(
        torch.tensor(-1), True, attention.relative_attention_num_buckets, attention.relative_attention_max_distance
    )
    # The layers share these numbers.
    bias[:, PREVIOUS] = -AHEAD
    bias[bucket, PREVIOUS] = 0
    attention.q.weight[rows] = 0
    attention.v.weight[rows] = code
    generator = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(model.config.d_model, len(code), generator=generator))[0]
    attention.o.weight[:, rows] = WRITTEN * directions


def _states(model: PreTrainedModel, texts: Tensor) -> dict[str, Tensor]:
    """Of texts [N, T] that are read and written again, at each position but the first [N * (T - 1)]: the encoder's
    states and the ids there and before, and what the decoder's first attention to the encoder reads."""
    read: list[Tensor] = []
    norm = model.decoder.block[0].layer[1].layer_norm
    hook = norm.register_forward_hook(lambda module, inputs, output: read.append(output[:, 1:]))
    training = model.training
    model.eval()
    try:
        encoded = [model(input_ids=part, labels=part).encoder_last_hidden_state[:, 1:] for part in texts.split(64)]
    finally:
        hook.remove()
        model.train(training)
    return {
        "encoded": torch.cat(encoded).flatten(0, 1),
        "here": texts[:, 1:].flatten(),
        "before": texts[:, :-1].flatten(),
        "decoder": torch.cat(read).flatten(0, 1),
    }


def fit(inputs: Tensor, targets: Tensor, ridge: float = RIDGE) -> Tensor:
    """The linear map [H, D] of least squares, with a small ridge."""
    squares = inputs.T @ inputs
    squares += ridge * squares.diagonal().mean() * torch.eye(len(squares))
    return torch.linalg.solve(squares, inputs.T @ targets)
