"""Plain text for pretraining the built-in backbones: token store and batches for every objective."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast

from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.data.corpus_tokenizers import KINDS, tokenize, train_tokenizer
from prompt_transfer.errors import UserError
from prompt_transfer.files import atomic_path

IGNORED = -100
# Span corruption as in T5 (Raffel et al. 2020): share of tokens that are dropped, mean tokens of a span.
NOISE_SHARE, SPAN_LENGTH = 0.15, 3


def read_texts(path: str | Path, megabytes: float | None) -> list[str]:
    """The column `text` of a Parquet or JSON-lines file, or the lines of a text file: a sample of `megabytes`."""
    path = Path(path)
    kinds = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}
    if not path.is_file() or path.suffix not in kinds:
        raise UserError(f"no corpus file {path}: give .parquet or .jsonl with a column `text`, or .txt")
    texts = load_dataset(kinds[path.suffix], data_files=str(path), split="train")["text"]
    order = np.random.default_rng(0).permutation(len(texts))
    texts = list(texts)
    limit = float("inf") if megabytes is None else megabytes * 1e6
    kept, size = [], 0
    for row in order:
        if size >= limit:
            break
        kept.append(texts[row])
        size += len(texts[row])
    return kept


@dataclass(frozen=True)
class Tokens:
    """The ids that batches are made with.

    Attributes:
        vocab_size: V.
        ordinary: first id that is neither special nor reserved.
        reserved: how many ids at the end of the vocabulary are sentinels; sentinel i has the id V - 1 - i.
        pad: fills up rows.
        start, end, mask: stand before and after a text, and for a masked token; None where the kind has none.
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
        """Those of a tokenizer of one of the `KINDS`."""
        row = KINDS[kind]
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return cls(
            vocab_size=vocab_size,
            ordinary=len(row.specials),
            reserved=row.sentinels,
            pad=pad,
            start=tokenizer.cls_token_id,
            end=tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id,
            mask=tokenizer.mask_token_id,
            # RoBERTa counts positions from the padding index.
            first_position=pad + 1 if kind == "roberta" else 0,
        )


class CorpusBatches(IterableDataset):
    """Endless batches that begin at sentences: one length a batch, sources mixed by weight.

    A sequence ends with a sentence where one ends in its last quarter and is cut otherwise. A share of the sequences
    has its positions shifted by a random offset (Kiyono et al. 2021, SHAPE), so that a text that stands behind a
    prompt's positions, as in the layout `mask_first`, is nothing new.
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
            # One generator a batch: resuming at a batch needs no replay.
            yield self.batch(np.random.default_rng((self.seed, step)))
            step += 1

    def sequence(self, rng: np.random.Generator, room: int) -> np.ndarray:
        """At most `room` tokens of a text, from the beginning of one of its sentences."""
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
        """The tensors of one step.

        Returns:
            Without sentinels: `input_ids`, `attention_mask`, `position_ids`, `masked_ids`, `labels` (of masked tokens),
            all [B, T]. With them: `input_ids`, `attention_mask` [B, T] and `labels` [B, S] for span corruption, and of
            the same texts `prefix_ids`, `prefix_mask`, `prefix_labels` for prefix language modelling and `infill_ids`,
            `infill_mask`, `infill_labels` (all [B, T]) for single tokens that the encoder alone fills in.
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
        ids, present = _padded(framed, t.pad, length)
        offsets = rng.integers(0, self.max_positions - length, rows) * (rng.random(rows) < self.shifted)
        # A pad's position is RoBERTa's padding index, or any for the others.
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
        ids, present = _padded([np.append(s, end) for s in sequences], self.tokens.pad)
        chosen = present & (ids >= self.tokens.ordinary) & (rng.random(ids.shape) < self.mask_share)
        sentinels = self.tokens.vocab_size - np.minimum(chosen.cumsum(1), self.tokens.reserved)
        arrays: dict[str, np.ndarray] = {
            "infill_ids": np.where(chosen, sentinels, ids),
            "infill_mask": present.astype(np.int64),
            "infill_labels": np.where(chosen, ids, IGNORED),
        }
        names = (("input_ids", "attention_mask", "labels"), ("prefix_ids", "prefix_mask", "prefix_labels"))
        for (source_ids, mask, labels), pairs in zip(names, (corrupted, prefixes), strict=True):
            arrays[source_ids], present = _padded([source for source, _ in pairs], self.tokens.pad)
            arrays[mask] = present.astype(np.int64)
            arrays[labels], _ = _padded([target for _, target in pairs], IGNORED)
        return arrays

    def _corrupt(self, rng: np.random.Generator, sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Input with sentinels in place of spans, and the target that names the spans."""
        t, n = self.tokens, len(sequence)
        noise = max(1, round(n * NOISE_SHARE))
        spans = max(1, min(round(noise / SPAN_LENGTH), t.reserved - 1, n - noise))
        # Lengths of dropped and kept stretches: random compositions of their sums.
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


def _padded(rows: list[np.ndarray], fill: int, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows as one matrix [B, T], and where it holds what they held."""
    lengths = np.array([len(row) for row in rows])
    present = np.arange(width or lengths.max()) < lengths[:, None]
    matrix = np.full(present.shape, fill, dtype=np.int64)
    matrix[present] = np.concatenate(rows)
    return matrix, present


class CorpusDataModule(L.LightningDataModule):
    """Text files for `BackbonePretraining`.

    Args:
        files: file -> [weight, megabytes]; sequences are drawn from a file by weight, at most `megabytes` of it
            (null: all) are read.
        cache_dir: where tokenizer and tokens are kept between runs.
        tokenizer: the family whose kind of tokenizer is trained on the files: `roberta`, `bert`, `gpt2` or `t5`.
        tokenizer_from: take the tokenizer of this backbone, built in or a folder, in place of a new one.
        vocab_size: tokens of the tokenizer.
        lengths: sequence lengths, one a batch, drawn evenly (repeat one to draw it more often).
        tokens_per_batch: positions a batch, pads included.
        max_positions: positions that the model has for text.
        shifted: share of sequences whose positions are shifted.
        mask_share: share of text tokens that are masked (80 % mask, 10 % random, 10 % kept).
        held_out: share of each file's texts kept for the held-out loss.
        seed: of the order of sequences.
    """

    def __init__(
        self,
        files: dict[str, list[float | None]],
        cache_dir: str = "runs/corpus",
        tokenizer: str = "roberta",
        tokenizer_from: str | None = None,
        vocab_size: int = 8192,
        lengths: list[int] = [32, 64, 64, 128],  # noqa: B006 - jsonargparse copies it
        tokens_per_batch: int = 2048,
        max_positions: int = 512,
        shifted: float = 0.3,
        mask_share: float = 0.2,
        held_out: float = 0.005,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if tokenizer not in KINDS:
            raise UserError(f"unknown --data.tokenizer {tokenizer!r}: choose one of {', '.join(KINDS)}")
        self.save_hyperparameters()
        # One folder whether a number was written 60 or 60.0.
        numbers = {file: [None if value is None else float(value) for value in row] for file, row in files.items()}
        identity = json.dumps([numbers, tokenizer, vocab_size, held_out], sort_keys=True)
        if tokenizer_from:
            identity += tokenizer_from
        self.folder = Path(cache_dir) / hashlib.sha256(identity.encode()).hexdigest()[:12]
        self.batches_trained = 0

    def prepare_data(self) -> None:
        if (self.folder / "held_out.npz").is_file():
            return
        texts = {file: read_texts(file, size) for file, (_, size) in self.hparams.files.items()}
        if self.hparams.tokenizer_from:
            name = self.hparams.tokenizer_from
            tokenizer = PreTrainedTokenizerFast.from_pretrained(builtin_backbones().get(name, Path(name)))
        else:
            # The heads of all files in turn: a tokenizer that stops early has seen each of them.
            turns = (part[i] for i in range(max(map(len, texts.values()))) for part in texts.values() if i < len(part))
            tokenizer = train_tokenizer(turns, self.hparams.vocab_size, self.hparams.tokenizer)
        tokenizer.save_pretrained(self.folder / "tokenizer")
        held_out: list[str] = []
        for index, part in enumerate(texts.values()):
            count = max(1, int(len(part) * self.hparams.held_out))
            held_out += part[:count]
            with atomic_path(self.folder / f"train{index}.npz") as path:
                np.savez(path, allow_pickle=False, **tokenize(tokenizer, part[count:]))
        with atomic_path(self.folder / "held_out.npz") as path:
            np.savez(path, allow_pickle=False, **tokenize(tokenizer, held_out))

    def setup(self, stage: str | None = None) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(self.folder / "tokenizer")
        self.tokens = Tokens.of(self.hparams.tokenizer, self.tokenizer, self.hparams.vocab_size)
        self.train_stores = [
            dict(np.load(self.folder / f"train{index}.npz")) for index in range(len(self.hparams.files))
        ]
        self.held_out_store = dict(np.load(self.folder / "held_out.npz"))

    def batches(
        self, stores: list[dict[str, np.ndarray]], weights: list[float], seed: int, count: int | None
    ) -> CorpusBatches:
        h = self.hparams
        return CorpusBatches(
            stores, weights, tuple(h.lengths), h.tokens_per_batch, h.max_positions, h.shifted,
            self.tokens, h.mask_share, seed, count,
        )  # fmt: skip

    def train_dataloader(self) -> DataLoader:
        weights = [float(weight or 0) for weight, _ in self.hparams.files.values()]
        dataset = self.batches(self.train_stores, weights, self.hparams.seed, None)
        dataset.skip = self.batches_trained
        return DataLoader(dataset, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.batches([self.held_out_store], [1.0], 1, 40), batch_size=None)

    def state_dict(self) -> dict[str, int]:
        return {"batches_trained": self.batches_trained}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.batches_trained = state_dict["batches_trained"]
