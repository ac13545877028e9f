"""A start for a T5 that is to answer questions: heads that find where a text has what the question behind it repeats.

To answer a question about a text, an encoder has to compare every token of the one with every token of the other, and
to see where matches are dense. That takes three heads, one above the other, none of which is worth anything without the
others. From plain weights a small T5 did not learn it in 60 minutes: it guessed some name of the text. Here all are set
before training, among heads that are added for them (`growth.add_heads`):

1. in the first layer a head that looks back for the end token of the text, and writes to each position whether there is
   one: a question's positions get a mark;
2. in the second layer a head that looks on the other side of that end for the same token, and at an end token where
   there is none. It writes how rare the token is that it has found;
3. in the third layer a head that takes the mean of what was found around a position, on its own side.

Four numbers of the residual stream are set aside for them: one that is the same everywhere (queries need a constant,
which centred embeddings do not give), the mark, what was found, and its mean. Nobody else reads or writes these at
first; all may once training goes on.
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

# The constant, beside the deviation of a number of the word embeddings.
CONSTANT = 2.0
# Logits: of an end token before a position; of a position itself and of those behind it, where there is none.
END, ITSELF, BEHIND = 16.0, -20.0, -60.0
# Logits: of a token's code with itself; of the other side, and of the same side with the other sign; of an end token,
# as a share of the first. Found by how well the number written tells repeated tokens of held-out texts (0.91 of all
# pairs of a repeated token and another in order before the first step of training, where 0.5 knows nothing).
SAME, SIDE, NOTHING = 40.0, 12.0, 0.5
# Tokens over which what a match counts around it falls to 1/e. With 20 to 32 of them, and less for what is repeated
# itself, the best place of a SQuAD text lay in an answer for a quarter of the questions, with 4 for an eighth.
AROUND = 24.0
# Of the place of an answer: what it counts that a token stands in the question itself, beside what is found around it.
ITSELF_REPEATED = -0.5
RIDGE = 1e-4


def pairs(store: dict[str, np.ndarray], tokens: Tokens, count: int = 192, longest: int = 100) -> Tensor:
    """Texts and questions [count, T] as an encoder reads them, with pads: of the clozes of `reading.make_store`."""
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
    """What heads that are set by hand say at first.

    Attributes:
        found: which number of the states behind the second layer says what was found.
        places: numbers of the encoder's output, and what each counts for an answer to begin there; the deviation of
            what is found around a token counts 1.
    """

    found: int
    places: dict[int, float]


@torch.no_grad()
def matching_heads(model: PreTrainedModel, tokens: Tokens, texts: Tensor, shares: Tensor) -> Matches:
    """Set the heads that the module describes: the last three of the encoder's.

    Args:
        model: a T5 of at least three layers and heads; changed in place.
        tokens: which ids are special.
        texts: ``[N, T]`` ids of texts and questions, each with an end token behind it, and pads.
        shares: ``[V]`` of each token in running text.
    """
    words = slice(tokens.ordinary, tokens.vocab_size - tokens.reserved)
    # Random tokens in the same places: a fit to texts alone would find what tokens stand for, not which they are.
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(words.start, words.stop, texts.shape, generator=generator)
    ids = torch.cat([texts, torch.where(texts >= tokens.ordinary, drawn, texts)])
    _, mark, found, around = _set_aside(model, words, tokens)
    code = _code(model.shared.weight, words, model.config.d_kv - 2)
    _mark_questions(model, ids, tokens, mark)
    _look_for_the_same(model, ids, tokens, code, -shares.log(), found)
    _look_around(model, ids, tokens, found, around)
    # Of real texts: random ones have no stretches that a question is about.
    last, _ = _states(model, len(model.encoder.block), texts, tokens.pad)
    of_text = _side(texts, tokens)[texts != tokens.pad] < 0
    deviations = last[of_text].std(dim=0)
    counts = {around: 1.0, found: ITSELF_REPEATED}
    return Matches(found, {number: share / float(deviations[number]) for number, share in counts.items()})


def _set_aside(model: PreTrainedModel, words: slice, tokens: Tokens) -> list[int]:
    """The four numbers of the residual stream; the first one is set in the word embeddings."""
    table = model.shared.weight
    # Those in which words differ least.
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
    # Of the other sign, so that an end token is easily told from all others.
    table[tokens.end, numbers[0]] = -size
    return numbers


def _code(table: Tensor, words: slice, width: int) -> Tensor:
    """A direction [V, d] of length 1 for every token that is no special one: what tells words apart best."""
    centred = table[words] - table[words].mean(dim=0)
    code = torch.zeros(len(table), min(width, *centred.shape))
    code[words] = torch.linalg.svd(centred, full_matrices=False)[0][:, : code.shape[1]]
    return code / code.norm(dim=1, keepdim=True).clamp_min(1e-6)


def _mark_questions(model: PreTrainedModel, ids: Tensor, tokens: Tokens, mark: int) -> None:
    """The first layer: write to `mark` of each position whether an end token stands before it."""
    attention: Any = model.encoder.block[0].layer[0].SelfAttention
    head = model.config.num_heads - 2
    first, rows = head * model.config.d_kv, slice(head * model.config.d_kv, (head + 1) * model.config.d_kv)
    bias = attention.relative_attention_bias.weight
    distance, buckets = _buckets(model)
    # The layers share these numbers.
    bias[buckets, head] = torch.where(distance < 0, 0.0, BEHIND)
    bias[buckets[distance == 0], head] = ITSELF
    states, _ = _states(model, 0, ids, tokens.pad)
    ends = _ends(ids, tokens)[ids != tokens.pad]
    maps = fit(states, torch.stack([ends, torch.ones_like(ends)], dim=1), RIDGE)
    attention.q.weight[rows] = attention.k.weight[rows] = 0
    attention.q.weight[first] = maps[:, 1]
    attention.k.weight[first] = END * maps[:, 0]
    attention.v.weight[first] = maps[:, 0]
    attention.o.weight[:, rows] = 0
    # As long as the other numbers there.
    attention.o.weight[mark, first] = _states(model, 1, ids, tokens.pad)[1]


def _look_for_the_same(
    model: PreTrainedModel, ids: Tensor, tokens: Tokens, code: Tensor, rarity: Tensor, found: int
) -> None:
    """The second layer: write to `found` how rare the token is that stands on the other side too."""
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


def _look_around(model: PreTrainedModel, ids: Tensor, tokens: Tokens, found: int, around: int) -> None:
    """The third layer: write to `around` the mean of what was found near a position, on its own side."""
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
    written = _raw(model, 3, ids, tokens.pad)[..., around][present]
    attention.o.weight[around, first] = length / written.std()


def _buckets(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Distances of what is looked at in the encoder from where it is looked, and the bucket of each."""
    attention: Any = model.encoder.block[0].layer[0].SelfAttention
    furthest = attention.relative_attention_max_distance
    distance = torch.arange(-furthest, furthest + 1)
    return distance, attention._relative_position_bucket(
        distance, True, attention.relative_attention_num_buckets, furthest
    )


def _side(ids: Tensor, tokens: Tokens) -> Tensor:
    """-1.0 for a text and its end token, 1.0 for what follows [N, T]."""
    ends = _ends(ids, tokens)
    return 2 * (ends.cumsum(dim=1) - ends).clamp_max(1) - 1


def _ends(ids: Tensor, tokens: Tokens) -> Tensor:
    """1.0 for an end token, 0.0 for others [N, T]."""
    return torch.eq(ids, tokens.end or 0).float()


def _norm(model: PreTrainedModel, layer: int) -> Any:
    """The norm in front of the attention of an encoder's layer; behind the last one, the encoder's last."""
    blocks = model.encoder.block
    return blocks[layer].layer[0].layer_norm if layer < len(blocks) else model.encoder.final_layer_norm


def _raw(model: PreTrainedModel, layer: int, ids: Tensor, pad: int) -> Tensor:
    """The residual stream [N, T, H] that an encoder's layer gets; behind the last one, what the last norm gets."""
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
    """What that layer reads of all tokens [tokens, H], and how long a number of the stream is that it gets."""
    stream = _raw(model, layer, ids, pad)[ids != pad]
    return _norm(model, layer)(stream), float(stream.pow(2).mean(dim=-1).sqrt().mean())
