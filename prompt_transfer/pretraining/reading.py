"""Batches of copies and clozes, which teach a small language model to find and copy words of a text.

From plain text alone, a model of this size does not learn within its budget to copy a word from far back, and then no
prompt can make it answer questions about a text. Copies and clozes train only this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from prompt_transfer.pretraining.cloze import make_cloze
from prompt_transfer.pretraining.corpus_batches import IGNORED, MULTIPLE, CorpusBatches, padded, rounded

# Words of the shortest and the longest context.
CONTEXT_WORDS = (15, 120)
# Tokens of a copy, and the share of copies of random tokens, which only copying can predict.
COPIED, OF_RANDOM = (8, 30), 0.4
# Share of the vocabulary (the most frequent tokens) that questions repeat by chance.
COMMON = 0.02
# Share of predicted positions and their loss weight, in the text, the question, and the answer or copy.
PREDICTED = {"text": (0.25, 1.0), "question": (0.67, 1.0), "answer": (1.0, 3.0)}
# Most request tokens before a text, and the least share of them that are sentinels.
BEFORE, ASKING = 32, 0.2
# The sentinels that request each kind of output.
ASKS = {"cloze": range(4), "copy": range(4, 8)}
# Most tokens by which a text without a request is continued; at most a third of the text.
CONTINUED = 10


def make_store(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[Sequence[str]],
    weights: Sequence[float],
    count: int,
    loose: float = 0.0,
) -> dict[str, np.ndarray]:
    """Make `count` clozes from texts of files drawn by weight; `loose` is the share of loose ones.

    Returns:
        `tokens` uint16 [all tokens], `lengths` int32 [count, 3] (context, question, answer), short contexts first.

    Raises:
        ValueError: the texts are too short.
    """
    rng = np.random.default_rng(0)
    shares = np.array(weights) / sum(weights)
    found: list[tuple[str, str, str]] = []
    missed = 0
    while len(found) < count:
        part = texts[int(rng.choice(len(texts), p=shares))]
        text = part[int(rng.integers(len(part)))].replace("<br />", " ")
        # A random part of long texts such as books.
        start = int(rng.integers(max(1, len(text) - 1500)))
        stretch = text[start : start + 1500].partition(" ")[2] if start else text[:1500]
        longest = int(rng.integers(*CONTEXT_WORDS, endpoint=True))
        # No draw without loose clozes, which keeps the random sequence of earlier versions.
        cloze = make_cloze(stretch, rng, longest, loose > 0 and rng.random() < loose)
        if cloze is None:
            missed += 1
            if missed > 100 * (count + 10):
                raise ValueError("the texts are too short to ask anything about them")
            continue
        # With a leading space, as words inside a text.
        found.append((cloze.context, f" {cloze.question}", f" {cloze.answer}"))
    backend = tokenizer.backend_tokenizer
    ids = [e.ids for e in backend.encode_batch_fast([part for row in found for part in row], add_special_tokens=False)]
    lengths = np.array([len(part) for part in ids], dtype=np.int32).reshape(-1, 3)
    order = np.argsort(lengths[:, 0], kind="stable")
    rows = [[ids[3 * row], ids[3 * row + 1], ids[3 * row + 2]] for row in order]
    return {
        "tokens": np.array([token for row in rows for part in row for token in part], dtype=np.uint16),
        "lengths": lengths[order],
    }


@dataclass(frozen=True)
class ReadingSequence:
    """Token ids of a text, of the question or cue after it, of the answer, and of the request before the text."""

    text: np.ndarray
    question: np.ndarray
    answer: np.ndarray
    before: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.int64))


class ReadingBatches(IterableDataset):
    """The batches of `CorpusBatches`, each extended by a batch of copies and one of clozes.

    For sequence-to-sequence models a batch of clozes also marks the tokens that the question repeats
    (`cloze_repeated`) and the first token of the answer (`cloze_begins`), both [B, T]; see `evidence.py`.

    Args:
        plain: batches of running text.
        store: see `make_store`.
        newline: ids between a text and its question.
        growth: batches over which the contexts grow from the shortest to all.
        tokens_per_batch: positions of a batch of either kind, padding included.
        unasked: share of the clozes without a request, whose text is continued even if a question follows. A request is
            a task prefix as in T5 (Raffel et al. 2020), with sentinels among random tokens; a prompt can take its
            place. None: copies and clozes without requests.
    """

    def __init__(
        self,
        plain: CorpusBatches,
        store: dict[str, np.ndarray],
        newline: Sequence[int],
        growth: int,
        tokens_per_batch: int = 1100,
        unasked: float | None = None,
    ) -> None:
        self.plain, self.store, self.unasked = plain, store, unasked
        self.newline = np.array(newline, dtype=np.int64)
        self.growth, self.tokens_per_batch = growth, tokens_per_batch
        self.ends = store["lengths"].sum(axis=1).cumsum()
        counts = np.bincount(store["tokens"], minlength=plain.tokens.vocab_size)
        self.common = np.argsort(-counts, kind="stable")[: int(COMMON * len(counts))]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(self.plain, start=self.plain.skip):
            rng = np.random.default_rng((self.plain.seed, step, 1))
            for name, rows in (("copy", self.copies(rng)), ("cloze", self.clozes(rng, step))):
                if self.unasked is not None:
                    rows = [self._add_request(rng, row, name) for row in rows]
                arrays = self._seq2seq(rows, name) if self.plain.tokens.reserved else self._causal(rng, rows)
                batch |= {f"{name}_{key}": torch.from_numpy(array) for key, array in arrays.items()}
            yield batch

    def copies(self, rng: np.random.Generator) -> list[ReadingSequence]:
        """Return copies of one length, half of them preceded by a few other words."""
        size = int(rng.integers(*COPIED, endpoint=True))
        rows = []
        for _ in range(max(4, self.tokens_per_batch // (2 * size + 8))):
            copied = self._random(rng, size) if rng.random() < OF_RANDOM else self.plain.sequence(rng, size)
            before = self.plain.sequence(rng, int(rng.integers(6, 12))) if rng.random() < 0.5 else copied[:0]
            between = self.cue(rng) if rng.random() < 0.75 else self.plain.sequence(rng, int(rng.integers(6, 10)))
            rows.append(ReadingSequence(np.concatenate([before, copied]), between, copied))
        return rows

    def clozes(self, rng: np.random.Generator, step: int) -> list[ReadingSequence]:
        """Return clozes of similar length, which saves padding."""
        count = len(self.ends)
        grown = min(1.0, 0.1 + step / max(1, self.growth))
        place = int(rng.integers(max(1, int(count * grown))))
        longest = -(-(int(self.store["lengths"][place].sum()) + 8) // MULTIPLE) * MULTIPLE
        size = min(max(4, self.tokens_per_batch // longest), count)
        first = min(max(0, place - size // 2), count - size)
        rows = []
        for row in range(first, first + size):
            lengths = self.store["lengths"][row]
            stretch = self.store["tokens"][self.ends[row] - lengths.sum() : self.ends[row]].astype(np.int64)
            text, question, answer = np.split(stretch, lengths[:2].cumsum())
            rows.append(ReadingSequence(text, np.concatenate([self.newline, question, self.cue(rng)]), answer))
        return rows

    def _random(self, rng: np.random.Generator, size: int) -> np.ndarray:
        tokens = self.plain.tokens
        return rng.integers(tokens.ordinary, tokens.vocab_size - tokens.reserved, size)

    def _add_request(self, rng: np.random.Generator, row: ReadingSequence, kind: str) -> ReadingSequence:
        """Put a request before a row; an `unasked` share of clozes gets random tokens or none, and is continued."""
        before = self._random(rng, int(rng.integers(1, BEFORE, endpoint=True)))
        if kind == "cloze" and rng.random() < (self.unasked or 0):
            before = before[: len(before) * (rng.random() < 0.75)]
            rest = max(1, len(row.text) - min(CONTINUED, len(row.text) // 3))
            return ReadingSequence(row.text[:rest], row.question, row.text[rest:], before)
        asks = rng.random(len(before)) < rng.uniform(ASKING, 1)
        asks[rng.integers(len(before))] = True
        before[asks] = self.plain.tokens.vocab_size - 1 - rng.choice(ASKS[kind], int(asks.sum()))
        return replace(row, before=before)

    def cue(self, rng: np.random.Generator) -> np.ndarray:
        """Return the tokens before the answer, nothing or a line break: the model must not depend on either."""
        return self.newline if rng.random() < 0.5 else self.newline[:0]

    def _causal(self, rng: np.random.Generator, rows: list[ReadingSequence]) -> dict[str, np.ndarray]:
        tokens = self.plain.tokens
        end = np.array([tokens.end], dtype=np.int64)
        ids, present = padded([np.concatenate([r.text, r.question, r.answer, end]) for r in rows], tokens.pad)
        kinds = ("text", "question", "answer")
        sizes = [(len(r.text), len(r.question), len(r.answer) + 1) for r in rows]
        shares, weights = (
            padded([np.repeat([PREDICTED[kind][which] for kind in kinds], size) for size in sizes], 0, dtype=float)[0]
            for which in (0, 1)
        )
        width = ids.shape[1]
        offsets = rng.integers(0, max(1, self.plain.max_positions - width), (len(rows), 1))
        offsets *= rng.random((len(rows), 1)) < 0.7
        labels = np.where(present & (rng.random(ids.shape) < shares), ids, IGNORED)
        labels[:, 0] = IGNORED  # nothing precedes it
        return {
            "ids": ids,
            "mask": present.astype(np.int64),
            "positions": np.arange(width) + offsets,
            "labels": labels,
            "weights": weights.astype(np.float32),
        }

    def _seq2seq(self, rows: list[ReadingSequence], kind: str) -> dict[str, np.ndarray]:
        tokens = self.plain.tokens
        end = np.array([tokens.end], dtype=np.int64)
        read = [np.concatenate([r.before, r.text, end, r.question, end]) for r in rows]
        width = rounded(read)
        ids, present = padded(read, tokens.pad, width)
        written = [np.append(r.answer, end) for r in rows]
        labels, _ = padded(written, IGNORED, rounded(written))
        arrays = {"ids": ids, "mask": present.astype(np.int64), "labels": labels}
        if kind == "cloze":
            arrays["repeated"], _ = padded([self._repeated(r) for r in rows], IGNORED, width)
            arrays["begins"], _ = padded([_begins(r) for r in rows], IGNORED, width)
        return arrays

    def _repeated(self, row: ReadingSequence) -> np.ndarray:
        """Return 1 for tokens of the text that the question repeats, 0 for others, `IGNORED` for very frequent ones."""
        found = np.isin(row.text, row.question).astype(np.int64)
        found[np.isin(row.text, self.common)] = IGNORED
        return np.concatenate([np.full(len(row.before), IGNORED), found])


def _begins(row: ReadingSequence) -> np.ndarray:
    """Return 1 for tokens of the text where the answer begins, 0 for others, `IGNORED` for the request."""
    found = np.zeros(len(row.text), dtype=np.int64)
    if 0 < len(row.answer) <= len(row.text):
        stretches = np.lib.stride_tricks.sliding_window_view(row.text, len(row.answer))
        found[: len(stretches)] = (stretches == row.answer).all(axis=1)
    return np.concatenate([np.full(len(row.before), IGNORED), found])
