"""Hand-set heads that let a T5's encoder find where a text repeats the words of the question after it.

To answer a question about a text, an encoder must compare all tokens of the text with all tokens of the question, and
find where matches are dense. This takes three heads in successive layers, useless without each other: from ordinary
weights a small T5 did not learn it in 60 minutes and guessed some name of the text. Here they are set before training,
among heads added for the purpose (`growth.add_heads`):

1. in the first layer, a head that attends to the text's end token if it precedes the position, and thereby marks the
   positions of the question;
2. in the second layer, a head that attends to the same token on the other side of the end token, or to an end token if
   there is none, and writes the rarity of the match;
3. in the third layer, a head that averages the matches around a position, on its own side.

They use four reserved dimensions of the residual stream: a constant (which queries need and centred embeddings lack),
the mark, the match, and its average. All other weights ignore these at first; training may change that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prompt_transfer.pretraining.copying_heads import fit
from prompt_transfer.pretraining.corpus_batches import Tokens, padded

# The constant, relative to the deviation of the word embeddings.
CONSTANT = 2.0
# Logits of the first head: of an end token before a position, of the position itself, and of later positions.
END, ITSELF, LATER = 16.0, -20.0, -60.0
# Logits of the second head: of a token's code with itself; of the other side (negative for the same side); of an end
# token, as a share of the first. Tuned on how well the match separates repeated tokens of held-out texts: 0.91 of all
# pairs of a repeated and another token are ranked correctly before the first training step (chance is 0.5).
SAME, SIDE, NOTHING = 40.0, 12.0, 0.5
# Distance in tokens at which the weight of a match falls to 1/e. With 20 to 32, and a penalty for repeated tokens, the
# best position of a SQuAD text lay in an answer for a quarter of the questions; with 4, for an eighth.
AROUND = 24.0
# Weight of a token's own match, relative to the average around it, in the score of an answer's position.
ITSELF_REPEATED = -0.5
RIDGE = 1e-4


def pairs(store: dict[str, np.ndarray], tokens: Tokens, count: int = 192, longest: int = 100) -> Tensor:
    """Return texts and questions [count, T], padded, as an encoder reads them, from the clozes of `make_store`."""
    end = np.array([tokens.end])
    stops = store["lengths"].sum(axis=1).cumsum()
    short = np.flatnonzero(store["lengths"][:, :2].sum(axis=1) < longest)
    rows = []
    for row in np.random.default_rng(0).permutation(short)[:count]:
        lengths = store["lengths"][row]
        text, question, _ = np.split(store["tokens"][stops[row] - lengths.sum() : stops[row]], lengths[:2].cumsum())
        rows.append(np.concatenate([text, end, question, end]).astype(np.int64))
    return torch.from_numpy(padded(rows, tokens.pad)[0])


@dataclass(frozen=True)
class Matches:
    """The dimensions that the hand-set heads write to.

    Attributes:
        found: dimension of the match after the second layer.
        places: dimension of the encoder's output -> its weight in the score of an answer's position; one deviation of
            the average match counts 1.
    """

    found: int
    places: dict[int, float]


@torch.no_grad()
def matching_heads(model: PreTrainedModel, tokens: Tokens, texts: Tensor, shares: Tensor) -> Matches:
    """Set the last three heads of the encoder as this module describes.

    Args:
        model: a T5 of at least three layers and heads; changed in place.
        tokens: the special ids.
        texts: ``[N, T]`` ids of texts and questions, each followed by an end token, padded.
        shares: ``[V]`` share of each token in running text.
    """
    words = slice(tokens.ordinary, tokens.vocab_size - tokens.reserved)
    # Also with random tokens in the same positions: a fit to texts alone would capture topics, not token identities.
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(words.start, words.stop, texts.shape, generator=generator)
    ids = torch.cat([texts, torch.where(texts >= tokens.ordinary, drawn, texts)])
    _, mark, found, around = _reserve_dimensions(model, words, tokens)
    code = _code(model.shared.weight, words, model.config.d_kv - 2)
    _mark_questions(model, ids, tokens, mark)
    _match_tokens(model, ids, tokens, code, -shares.log(), found)
    _average_matches(model, ids, tokens, found, around)
    # On real texts only: random ones have no passage that the question is about.
    last, _ = _states(model, len(model.encoder.block), texts, tokens.pad)
    of_text = _side(texts, tokens)[texts != tokens.pad] < 0
    deviations = last[of_text].std(dim=0)
    counts = {around: 1.0, found: ITSELF_REPEATED}
    return Matches(found, {number: share / float(deviations[number]) for number, share in counts.items()})


def _reserve_dimensions(model: PreTrainedModel, words: slice, tokens: Tokens) -> list[int]:
    """Reserve four dimensions of the residual stream; the word embeddings set the first to a constant."""
    table = model.shared.weight
    # The dimensions in which words differ least.
    numbers = table[words].var(dim=0).argsort()[:4].tolist()
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-2]
        if kind in ("q", "k", "v", "wi_0", "wi_1", "lm_head"):
            parameter[:, numbers] = 0
        elif kind in ("o", "wo"):
            parameter[numbers] = 0
    table[:, numbers] = 0
    size = CONSTANT * table[words].pow(2).mean(dim=1).sqrt().mean()
    table[:, numbers[0]] = size
    # The opposite sign makes end tokens easy to separate.
    table[tokens.end, numbers[0]] = -size
    return numbers


def _code(table: Tensor, words: slice, width: int) -> Tensor:
    """Return a unit direction [V, d] for every ordinary token, chosen to separate tokens best."""
    centred = table[words] - table[words].mean(dim=0)
    code = torch.zeros(len(table), min(width, *centred.shape))
    code[words] = torch.linalg.svd(centred, full_matrices=False)[0][:, : code.shape[1]]
    return code / code.norm(dim=1, keepdim=True).clamp_min(1e-6)


def _mark_questions(model: PreTrainedModel, ids: Tensor, tokens: Tokens, mark: int) -> None:
    """Set the head of the first layer: write to `mark` whether an end token precedes the position."""
    attention: Any = model.encoder.block[0].layer[0].SelfAttention
    head = model.config.num_heads - 2
    first, rows = head * model.config.d_kv, slice(head * model.config.d_kv, (head + 1) * model.config.d_kv)
    bias = attention.relative_attention_bias.weight
    distance, buckets = _buckets(model)
    # All layers share this bias.
    bias[buckets, head] = torch.where(distance < 0, 0.0, LATER)
    bias[buckets[distance == 0], head] = ITSELF
    states, _ = _states(model, 0, ids, tokens.pad)
    ends = _ends(ids, tokens)[ids != tokens.pad]
    maps = fit(states, torch.stack([ends, torch.ones_like(ends)], dim=1), RIDGE)
    attention.q.weight[rows] = attention.k.weight[rows] = 0
    attention.q.weight[first] = maps[:, 1]
    attention.k.weight[first] = END * maps[:, 0]
    attention.v.weight[first] = maps[:, 0]
    attention.o.weight[:, rows] = 0
    # Scaled to the residual stream there.
    attention.o.weight[mark, first] = _states(model, 1, ids, tokens.pad)[1]


def _match_tokens(
    model: PreTrainedModel, ids: Tensor, tokens: Tokens, code: Tensor, rarity: Tensor, found: int
) -> None:
    """Set the head of the second layer: write to `found` the rarity of a token that also occurs on the other side."""
    attention: Any = model.encoder.block[1].layer[0].SelfAttention
    head, width = model.config.num_heads - 1, code.shape[1]
    first = head * model.config.d_kv
    rows, used = slice(first, first + model.config.d_kv), slice(first, first + width + 2)
    states, _ = _states(model, 1, ids, tokens.pad)
    present = ids != tokens.pad
    here = ids[present]
    rare = rarity / rarity[here[here >= tokens.ordinary]].mean()
    rare[: tokens.ordinary] = 0
    is_end = _ends(ids, tokens)[present]
    wanted = [_side(ids, tokens)[present], is_end, torch.ones_like(is_end), rare[here]]
    maps = fit(states, torch.cat([code[here], torch.stack(wanted, dim=1)], dim=1), RIDGE)
    which, (side, end, one, rare_here) = maps[:, :width], maps[:, width:].T
    attention.q.weight[rows] = attention.k.weight[rows] = 0
    same = math.sqrt(SAME)
    queries = torch.cat([same * which.T, -math.sqrt(SIDE) * side[None], same * one[None]])
    keys = torch.cat([same * which.T, math.sqrt(SIDE) * side[None], same * NOTHING * end[None]])
    attention.q.weight[used], attention.k.weight[used] = queries, keys
    attention.v.weight[first] = rare_here
    attention.o.weight[:, rows] = 0
    attention.o.weight[found, first] = _states(model, 2, ids, tokens.pad)[1]


def _average_matches(model: PreTrainedModel, ids: Tensor, tokens: Tokens, found: int, around: int) -> None:
    """Set the head of the third layer: write to `around` the average match near a position, on its own side."""
    attention: Any = model.encoder.block[2].layer[0].SelfAttention
    head = model.config.num_heads - 3
    first, rows = head * model.config.d_kv, slice(head * model.config.d_kv, (head + 1) * model.config.d_kv)
    distance, buckets = _buckets(model)
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    for bucket in buckets.unique():
        bias[bucket, head] = -distance[buckets == bucket].abs().float().mean() / AROUND
    present = ids != tokens.pad
    states, length = _states(model, 2, ids, tokens.pad)
    side = fit(states, _side(ids, tokens)[present][:, None], RIDGE)[:, 0]
    attention.q.weight[rows] = attention.k.weight[rows] = attention.v.weight[rows] = 0
    attention.q.weight[first] = attention.k.weight[first] = math.sqrt(SIDE) * side
    attention.v.weight[first, found] = 1
    attention.o.weight[:, rows] = 0
    attention.o.weight[around, first] = 1
    written = _residual_stream(model, 3, ids, tokens.pad)[..., around][present]
    attention.o.weight[around, first] = length / written.std()


def _buckets(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return the relative positions (key minus query) in the encoder, and the bucket of each."""
    attention: Any = model.encoder.block[0].layer[0].SelfAttention
    furthest = attention.relative_attention_max_distance
    distance = torch.arange(-furthest, furthest + 1)
    return distance, attention._relative_position_bucket(
        distance, True, attention.relative_attention_num_buckets, furthest
    )


def _side(ids: Tensor, tokens: Tokens) -> Tensor:
    """Return -1.0 for a text and its end token, 1.0 for later positions [N, T]."""
    ends = _ends(ids, tokens)
    return 2 * (ends.cumsum(dim=1) - ends).clamp_max(1) - 1


def _ends(ids: Tensor, tokens: Tokens) -> Tensor:
    """Return 1.0 for end tokens, 0.0 for others [N, T]."""
    return torch.eq(ids, tokens.end or 0).float()


def _norm(model: PreTrainedModel, layer: int) -> Any:
    """Return the norm before the attention of an encoder layer; past the last layer, the final norm."""
    blocks = model.encoder.block
    return blocks[layer].layer[0].layer_norm if layer < len(blocks) else model.encoder.final_layer_norm


def _residual_stream(model: PreTrainedModel, layer: int, ids: Tensor, pad: int) -> Tensor:
    """Return the residual stream [N, T, H] at an encoder layer's input; past the last layer, at the final norm's."""
    norm = _norm(model, layer)
    read: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    training = model.training
    model.eval()
    try:
        for part in ids.split(64):
            model.encoder(input_ids=part, attention_mask=(part != pad).long())
    finally:
        hook.remove()
        model.train(training)
    return torch.cat(read)


def _states(model: PreTrainedModel, layer: int, ids: Tensor, pad: int) -> tuple[Tensor, float]:
    """Return the normed input [tokens, H] of an encoder layer, and the root mean square of the stream there."""
    stream = _residual_stream(model, layer, ids, pad)[ids != pad]
    return _norm(model, layer)(stream), float(stream.pow(2).mean(dim=-1).sqrt().mean())
