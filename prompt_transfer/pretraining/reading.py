"""Batches that teach a small language model to find and copy what a text says: copies, and clozes.

A model of this size that reads plain text alone does not learn, in the time that it has, to copy a word from far back:
no answer of a question about a text can be tuned into it then. Both kinds of sequences ask for nothing else.
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
# Of a copy: tokens, and the share of copies that are of random tokens, which nothing but copying predicts.
COPIED, OF_RANDOM = (8, 30), 0.4
# Share of the vocabulary, the most frequent tokens, which questions repeat without asking for them.
COMMON = 0.02
# Share of the positions that are predicted, and what each counts there: text, question, and answer or copy.
PREDICTED = {"text": (0.25, 1.0), "question": (0.67, 1.0), "answer": (1.0, 3.0)}
# What stands before a text where something has to ask for the answer: tokens, and the least share of them that ask.
BEFORE, ASKING = 32, 0.2
# The sentinels that ask for each kind; a text without any is continued: by as many tokens, or by a third of its own.
ASKS = {"cloze": range(4), "copy": range(4, 8)}
CONTINUED = 10


def make_store(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[Sequence[str]],
    weights: Sequence[float],
    count: int,
    loose: float = 0.0,
) -> dict[str, np.ndarray]:
    """`count` clozes of texts that are drawn from files by weight, a share of them `loose` ones.

    Returns:
        `tokens` uint16 [all tokens], `lengths` int32 [count, 3] (context, question, answer), short contexts first.
    """
    rng = np.random.default_rng(0)
    shares = np.array(weights) / sum(weights)
    found: list[tuple[str, str, str]] = []
    missed = 0
    while len(found) < count:
        part = texts[int(rng.choice(len(texts), p=shares))]
        text = part[int(rng.integers(len(part)))].replace("<br />", " ")
        # Of a book, a stretch somewhere in it.
        start = int(rng.integers(max(1, len(text) - 1500)))
        stretch = text[start : start + 1500].partition(" ")[2] if start else text[:1500]
        longest = int(rng.integers(*CONTEXT_WORDS, endpoint=True))
        # Drawn only where it is asked for: others get the clozes that they always got.
        cloze = make_cloze(stretch, rng, longest, loose > 0 and rng.random() < loose)
        if cloze is None:
            missed += 1
            if missed > 100 * (count + 10):
                raise ValueError("the texts are too short to ask anything about them")
            continue
        # As the words of a running text stand, behind a space.
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
    """Token ids of what is read, of a question or cue behind it, of what is to be written, and of what comes first."""

    text: np.ndarray
    question: np.ndarray
    answer: np.ndarray
    before: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.int64))


class ReadingBatches(IterableDataset):
    """Those of `CorpusBatches`, each with one of copies and one of clozes beside it.

    Args:
        plain: batches of running text.
        store: see `make_store`.
        newline: ids between a text and its question.
        growth: batches over which the contexts grow from the shortest to all.
        tokens_per_batch: positions of a batch of either kind, pads included.
        unasked: share of the clozes whose answer nothing asks for: their text is continued instead, question or not.
            What asks for copies and answers are sentinels among tokens before the text, a task prefix as T5's (Raffel
            et al. 2020), so that a prompt decides what is written. None: copies and clozes without anything before.

    Of a sequence-to-sequence model a batch of clozes says besides which tokens of a text its question repeats
    (`cloze_repeated`) and where its answer begins (`cloze_begins`), [B, T] both; see `evidence.py`.
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
                    rows = [self._asked(rng, row, name) for row in rows]
                arrays = self._seq2seq(rows, name) if self.plain.tokens.reserved else self._causal(rng, rows)
                batch |= {f"{name}_{key}": torch.from_numpy(array) for key, array in arrays.items()}
            yield batch

    def copies(self, rng: np.random.Generator) -> list[ReadingSequence]:
        """Texts of one length that are to be written again, some behind a few words more."""
        size = int(rng.integers(*COPIED, endpoint=True))
        rows = []
        for _ in range(max(4, self.tokens_per_batch // (2 * size + 8))):
            copied = self._random(rng, size) if rng.random() < OF_RANDOM else self.plain.sequence(rng, size)
            before = self.plain.sequence(rng, int(rng.integers(6, 12))) if rng.random() < 0.5 else copied[:0]
            between = self.cue(rng) if rng.random() < 0.75 else self.plain.sequence(rng, int(rng.integers(6, 10)))
            rows.append(ReadingSequence(np.concatenate([before, copied]), between, copied))
        return rows

    def clozes(self, rng: np.random.Generator, step: int) -> list[ReadingSequence]:
        """Neighbours in the order by length, so that little is padded."""
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

    def _asked(self, rng: np.random.Generator, row: ReadingSequence, kind: str) -> ReadingSequence:
        """The row behind tokens that ask for its answer; of clozes a share behind others, or none, that do not."""
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
        """What stands before that which is to be written: nothing or a line break, so that no cue is the one."""
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
        labels[:, 0] = IGNORED  # nothing stands before it
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
        """1 for each token of a text that its question has too, 0 for others; `IGNORED` for very frequent ones."""
        found = np.isin(row.text, row.question).astype(np.int64)
        found[np.isin(row.text, self.common)] = IGNORED
        return np.concatenate([np.full(len(row.before), IGNORED), found])


def _begins(row: ReadingSequence) -> np.ndarray:
    """1 for each token of a text at which its answer begins, 0 for others; `IGNORED` for what stands before."""
    found = np.zeros(len(row.text), dtype=np.int64)
    if 0 < len(row.answer) <= len(row.text):
        stretches = np.lib.stride_tricks.sliding_window_view(row.text, len(row.answer))
        found[: len(stretches)] = (stretches == row.answer).all(axis=1)
    return np.concatenate([np.full(len(row.before), IGNORED), found])
