"""Hand-set induction heads that let a T5 copy, set before training.

A decoder copies by attending to the position after the token it has just written (an induction head, Olsson et al.
2022). This takes two heads, useless without each other, so a small T5 does not learn it for thousands of steps: its
copies of 8 to 30 tokens stay at 5.6 nats after 1,550 steps of pretraining, while 400 steps from this start reach 0.4.
Here one encoder head writes the previous token's code to each position, and the decoder's first cross-attention queries
for the position after the current token. Training learns to turn its output into tokens.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prompt_transfer.pretraining.corpus_batches import Tokens

# Index of the encoder head, one that already prefers the previous position (`informed_init`).
PREVIOUS = 0
# Logit margin of the previous position; and scale of a token's code of d dimensions with itself, over d.
AHEAD, MATCH = 12.0, 0.25
# Norms relative to a residual stream of about 90 at the end of `t5-nano`; tuned on the copies' loss.
WRITTEN, READ = 10.0, 30.0
RIDGE = 1e-2


@torch.no_grad()
def copying_heads(model: PreTrainedModel, tokens: Tokens, texts: Tensor) -> None:
    """Set the heads that this module describes; all other weights are unchanged.

    Args:
        model: a T5; changed in place.
        tokens: the special ids.
        texts: ``[N, T]`` token ids of running text; the maps between states are fitted on these and on random tokens.
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
    # The token before an encoder position is the decoder's input at that position: its start token comes first.
    before = normed[found["before"]] @ code.T
    keys, queries = fit(found["encoded"], before), fit(found["decoder"], before)
    attention.k.weight.copy_(keys.T.repeat(heads, 1))
    attention.q.weight.copy_(MATCH * queries.T.repeat(heads, 1))
    rows = model.lm_head.weight - model.lm_head.weight.mean(dim=0)
    values = fit(found["encoded"], rows[found["here"]])
    values /= (found["encoded"] @ values).norm(dim=1).mean()
    # Each head carries a slice of the values; together they are as wide as the model.
    attention.v.weight.copy_(values.T)
    attention.o.weight.copy_(READ * torch.eye(len(values)))


def windows(streams: list[np.ndarray], count: int = 384, length: int = 21) -> Tensor:
    """Return windows of running text [count, length], equally many from each stream of token ids."""
    rng = np.random.default_rng(0)
    chosen = [streams[row % len(streams)] for row in range(count)]
    starts = [int(rng.integers(len(stream) - length + 1)) for stream in chosen]
    rows = [stream[start : start + length] for stream, start in zip(chosen, starts, strict=True)]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def _normed(model: PreTrainedModel) -> Tensor:
    """Return the centred word embeddings [V, H] as the encoder's first attention reads them."""
    normed = model.encoder.block[0].layer[0].layer_norm(model.shared.weight)
    return normed - normed.mean(dim=0)


def _code(model: PreTrainedModel, words: Tensor) -> Tensor:
    """Return the d = d_kv directions [d, H] in which words differ most, each scaled to deviation 1."""
    width = model.config.d_kv
    _, lengths, directions = torch.linalg.svd(_normed(model)[words], full_matrices=False)
    return directions[:width] * (math.sqrt(len(words)) / lengths[:width, None])


def _write_previous(model: PreTrainedModel, code: Tensor) -> None:
    """Make the encoder's first layer add the code of the previous token; the head attends there in all layers."""
    attention: Any = model.encoder.block[0].layer[0].SelfAttention
    rows = slice(PREVIOUS * len(code), (PREVIOUS + 1) * len(code))
    bias = attention.relative_attention_bias.weight
    bucket = attention._relative_position_bucket(
        torch.tensor(-1), True, attention.relative_attention_num_buckets, attention.relative_attention_max_distance
    )
    # All layers share this bias.
    bias[:, PREVIOUS] = -AHEAD
    bias[bucket, PREVIOUS] = 0
    attention.q.weight[rows] = 0
    attention.v.weight[rows] = code
    generator = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(model.config.d_model, len(code), generator=generator))[0]
    attention.o.weight[:, rows] = WRITTEN * directions


def _states(model: PreTrainedModel, texts: Tensor) -> dict[str, Tensor]:
    """Return states and ids of copied texts [N, T] at each position but the first [N * (T - 1)].

    Returns:
        `encoded`, the encoder's output; `here` and `before`, the ids there and one earlier; `decoder`, the input of the
        decoder's first cross-attention.
    """
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
    """Return the linear map [H, D] of least squares, with a small ridge."""
    squares = inputs.T @ inputs
    squares += ridge * squares.diagonal().mean() * torch.eye(len(squares))
    return torch.linalg.solve(squares, inputs.T @ targets)
