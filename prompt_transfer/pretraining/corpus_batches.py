"""Batches of running text for every objective of pretraining."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from prompt_transfer.pretraining.corpus_tokenizers import KINDS

IGNORED = -100
# T5 sequences are padded to a multiple: on a CPU a new shape costs about as much as its matrix product.
MULTIPLE = 16
# Span corruption as in T5 (Raffel et al. 2020): share of dropped tokens, mean span length.
NOISE_SHARE, SPAN_LENGTH = 0.15, 3


@dataclass(frozen=True)
class Tokens:
    """Special ids of a tokenizer.

    Attributes:
        vocab_size: V.
        ordinary: first id that is neither special nor reserved.
        reserved: number of sentinels at the end of the vocabulary; sentinel i has the id V - 1 - i.
        pad: padding id.
        start, end, mask: ids before and after a text, and of a masked token; None if the tokenizer has none.
        first_position: position id of the first token.
    """

    vocab_size: int
    ordinary: int
    reserved: int
    pad: int
    start: int | None
    end: int | None
    mask: int | None
    first_position: int

    @classmethod
    def of(cls, kind: str, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> Tokens:
        """Return the special ids of a tokenizer of one of the `KINDS`."""
        row = KINDS[kind]
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return cls(
            vocab_size=vocab_size,
            # The special tokens of an existing tokenizer need not come first: BERT's do not.
            ordinary=1 + max(tokenizer.convert_tokens_to_ids(list(row.specials))),
            reserved=row.sentinels,
            pad=pad,
            start=tokenizer.cls_token_id,
            end=tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id,
            mask=tokenizer.mask_token_id,
            # RoBERTa counts positions from the padding index.
            first_position=pad + 1 if kind == "roberta" else 0,
        )


class CorpusBatches(IterableDataset):
    """An endless dataset of batches for all objectives: sequences start at sentences, one length per batch.

    A sequence ends with the last sentence that ends in its last quarter, else it is truncated. A share of the sequences
    has its positions shifted by a random offset (Kiyono et al. 2021, SHAPE), which prepares the model for texts that
    follow a prompt, as in the layout `mask_first`.
    """

    def __init__(
        self,
        stores: list[dict[str, np.ndarray]],
        weights: list[float],
        lengths: tuple[int, ...],
        tokens_per_batch: int,
        max_positions: int,
        shifted: float,
        tokens: Tokens,
        mask_share: float,
        seed: int,
        batches: int | None = None,
    ) -> None:
        self.stores, self.weights = stores, np.array(weights) / sum(weights)
        self.lengths, self.tokens_per_batch = lengths, tokens_per_batch
        self.max_positions, self.shifted = max_positions, shifted
        self.tokens, self.mask_share = tokens, mask_share
        self.seed, self.batches = seed, batches
        self.skip = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        step = self.skip
        while self.batches is None or step < self.batches:
            # One generator per batch: resuming needs no replay.
            yield self.batch(np.random.default_rng((self.seed, step)))
            step += 1

    def sequence(self, rng: np.random.Generator, room: int) -> np.ndarray:
        """Return at most `room` tokens of a text, from the start of a sentence."""
        store = self.stores[rng.choice(len(self.stores), p=self.weights)]
        while True:
            sentence = rng.integers(len(store["starts"]))
            start, end = store["starts"][sentence], store["ends"][sentence]
            if end - start >= 6:
                break
        stop = min(end, start + room)
        if stop < end:
            following = store["starts"][sentence + 1 : sentence + 40]
            breaks = following[(following <= stop) & (following >= start + room * 3 // 4)]
            stop = breaks[-1] if len(breaks) else stop
        return store["tokens"][start:stop].astype(np.int64)

    def batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the tensors of one step.

        Returns:
            Without sentinels: `input_ids`, `attention_mask`, `position_ids`, `masked_ids`, `labels` (of masked tokens),
            all [B, T]. With sentinels: `input_ids`, `attention_mask` [B, T] and `labels` [B, S] for span corruption,
            and for the same texts `prefix_ids`, `prefix_mask`, `prefix_labels` for prefix language modelling and
            `infill_ids`, `infill_mask`, `infill_labels` (all [B, T]) for masked tokens that the encoder fills in.
        """
        length = int(rng.choice(self.lengths))
        rows = self.tokens_per_batch // length
        ends = (self.tokens.start is not None) + (self.tokens.end is not None)
        sequences = [self.sequence(rng, length - ends) for _ in range(rows)]
        arrays = self._seq2seq(rng, sequences) if self.tokens.reserved else self._encoded(rng, sequences, length)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _encoded(self, rng: np.random.Generator, sequences: list[np.ndarray], length: int) -> dict[str, np.ndarray]:
        t, rows = self.tokens, len(sequences)
        framed = [self._framed(sequence) for sequence in sequences]
        ids, present = padded(framed, t.pad, length)
        offsets = rng.integers(0, self.max_positions - length, rows) * (rng.random(rows) < self.shifted)
        # The position of padding: RoBERTa's padding index, arbitrary for the others.
        nowhere = max(t.first_position - 1, 0)
        positions = np.where(present, np.arange(length) + t.first_position + offsets[:, None], nowhere)
        arrays = {"input_ids": ids, "attention_mask": present.astype(np.int64), "position_ids": positions}
        if t.mask is None:
            return arrays
        chosen = present & (ids >= t.ordinary) & (rng.random(ids.shape) < self.mask_share)
        kind = rng.random(ids.shape)
        masked = np.where(chosen & (kind < 0.8), t.mask, ids)
        random_ids = rng.integers(t.ordinary, t.vocab_size, ids.shape)
        masked = np.where(chosen & (kind >= 0.9), random_ids, masked)
        return {**arrays, "masked_ids": masked, "labels": np.where(chosen, ids, IGNORED)}

    def _framed(self, sequence: np.ndarray) -> np.ndarray:
        before = [] if self.tokens.start is None else [self.tokens.start]
        after = [] if self.tokens.end is None else [self.tokens.end]
        return np.concatenate([before, sequence, after]).astype(np.int64)

    def _seq2seq(self, rng: np.random.Generator, sequences: list[np.ndarray]) -> dict[str, np.ndarray]:
        end = np.array([self.tokens.end], dtype=np.int64)
        corrupted = [self._corrupt(rng, sequence) for sequence in sequences]
        cuts = [int(rng.integers(max(1, len(s) // 4), max(2, len(s) * 3 // 4))) for s in sequences]
        prefixes = [(np.append(s[:cut], end), np.append(s[cut:], end)) for s, cut in zip(sequences, cuts, strict=True)]
        texts = [np.append(sequence, end) for sequence in sequences]
        ids, present = padded(texts, self.tokens.pad, rounded(texts))
        chosen = present & (ids >= self.tokens.ordinary) & (rng.random(ids.shape) < self.mask_share)
        sentinels = self.tokens.vocab_size - np.minimum(chosen.cumsum(1), self.tokens.reserved)
        arrays: dict[str, np.ndarray] = {
            "infill_ids": np.where(chosen, sentinels, ids),
            "infill_mask": present.astype(np.int64),
            "infill_labels": np.where(chosen, ids, IGNORED),
        }
        names = (("input_ids", "attention_mask", "labels"), ("prefix_ids", "prefix_mask", "prefix_labels"))
        for (source_ids, mask, labels), pairs in zip(names, (corrupted, prefixes), strict=True):
            sources, targets = ([pair[which] for pair in pairs] for which in (0, 1))
            arrays[source_ids], present = padded(sources, self.tokens.pad, rounded(sources))
            arrays[mask] = present.astype(np.int64)
            arrays[labels], _ = padded(targets, IGNORED, rounded(targets))
        return arrays

    def _corrupt(self, rng: np.random.Generator, sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the input with spans replaced by sentinels, and the target with the spans."""
        t, n = self.tokens, len(sequence)
        noise = max(1, round(n * NOISE_SHARE))
        spans = max(1, min(round(noise / SPAN_LENGTH), t.reserved - 1, n - noise))
        # Lengths of dropped and kept spans: random compositions of their sums.
        dropped = np.diff(np.concatenate([[0], np.sort(rng.permutation(noise - 1)[: spans - 1]) + 1, [noise]]))
        kept = np.diff(np.concatenate([[0], np.sort(rng.permutation(n - noise - 1)[: spans - 1]) + 1, [n - noise]]))
        source: list[np.ndarray] = []
        target: list[np.ndarray] = []
        position = 0
        for index in range(spans):
            sentinel = np.array([t.vocab_size - 1 - index])
            source += [sequence[position : position + kept[index]], sentinel]
            position += kept[index]
            target += [sentinel, sequence[position : position + dropped[index]]]
            position += dropped[index]
        end = np.array([t.end])
        return np.concatenate([*source, end]), np.concatenate([*target, end])


def rounded(rows: list[np.ndarray]) -> int:
    """Return the length of the longest row, rounded up to a multiple of `MULTIPLE`."""
    return -(-max(map(len, rows)) // MULTIPLE) * MULTIPLE


def padded(
    rows: list[np.ndarray], fill: int, width: int | None = None, dtype: type = np.int64
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as one right-padded matrix [B, T], and the bool mask of their values."""
    lengths = np.array([len(row) for row in rows])
    present = np.arange(width or lengths.max()) < lengths[:, None]
    matrix: np.ndarray = np.full(present.shape, fill, dtype=dtype)
    matrix[present] = np.concatenate(rows)
    return matrix, present
