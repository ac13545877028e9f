"""The pretraining corpus: text files, tokenizer and tokenized stores."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import lightning as L
import numpy as np
from datasets import load_dataset
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast

from prompt_transfer.backbones.loading import resolve
from prompt_transfer.pretraining.corpus_batches import CorpusBatches, Tokens
from prompt_transfer.pretraining.corpus_tokenizers import KINDS, tokenize, train_tokenizer
from prompt_transfer.pretraining.reading import ReadingBatches, make_store
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import atomic_path


def read_texts(path: str | Path, megabytes: float | None) -> list[str]:
    """Read a sample of `megabytes`: the column `text` of a Parquet or JSON-lines file, or the lines of a text file."""
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


class CorpusDataModule(L.LightningDataModule):
    """Batches of text files for `BackbonePretraining`.

    Args:
        files: file -> [weight, megabytes]; sequences are drawn by weight, from at most `megabytes` of a file (null:
            all).
        cache_dir: folder that keeps tokenizer and tokens between runs.
        tokenizer: family of the tokenizer that is trained on the files: `roberta`, `bert`, `gpt2` or `t5`.
        tokenizer_from: use the tokenizer of this backbone, by name or from a folder, instead of a new one.
        vocab_size: tokens of the tokenizer.
        lengths: sequence lengths, one per batch, drawn uniformly (repeat a length to draw it more often).
        tokens_per_batch: positions per batch, padding included.
        max_positions: longest text of the model in positions.
        shifted: share of sequences whose positions are shifted.
        mask_share: share of text tokens that are masked (80 % mask, 10 % random, 10 % kept).
        held_out: share of each file's texts reserved for the held-out loss.
        clozes: number of questions made from the texts, for `--model.reading` (`cloze.py`); 0: none.
        loose_clozes: share of them that ask with few words from a wider window (`cloze.make_cloze`).
        cloze_growth: steps over which their contexts grow from the shortest to the longest.
        reading_tokens: positions of a batch of copies or clozes, padding included.
        unasked: share of a T5's clozes without a request, whose text is continued instead; copies and the other answers
            are requested by tokens before the text (`ReadingBatches`). null: no requests.
        seed: seed of the order of sequences.
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
        clozes: int = 0,
        loose_clozes: float = 0.0,
        cloze_growth: int = 2500,
        reading_tokens: int = 1100,
        unasked: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if tokenizer not in KINDS:
            raise UserError(f"unknown --data.tokenizer {tokenizer!r}: choose one of {', '.join(KINDS)}")
        for file, (weight, _) in files.items():
            if not weight or weight < 0:
                raise UserError(f"--data.files: the weight of {file} is {weight}: give a number above 0")
        if not 0 <= loose_clozes <= 1:
            raise UserError(f"--data.loose_clozes {loose_clozes:g} is a share: give a number from 0 to 1")
        if unasked is not None and not 0 <= unasked < 1:
            raise UserError(f"--data.unasked {unasked:g} is a share: give a number from 0 to below 1")
        if unasked is not None and tokenizer != "t5":
            raise UserError(
                f"--data.unasked is for the tokenizer of t5, which has sentinels, not for that of {tokenizer}"
            )
        self.save_hyperparameters()
        # 60 and 60.0 must give the same folder.
        numbers = {file: [None if value is None else float(value) for value in row] for file, row in files.items()}
        identity = json.dumps([numbers, tokenizer, vocab_size, held_out], sort_keys=True)
        if tokenizer_from:
            identity += tokenizer_from
        if clozes:
            identity += f" {clozes} clozes" + (f", {loose_clozes:g} loose" if loose_clozes else "")
        self.folder = Path(cache_dir) / hashlib.sha256(identity.encode()).hexdigest()[:12]
        self.batches_trained = 0

    def prepare_data(self) -> None:
        if (self.folder / "held_out.npz").is_file():
            return
        texts = {file: read_texts(file, size) for file, (_, size) in self.hparams.files.items()}
        if self.hparams.tokenizer_from:
            source, _ = resolve(self.hparams.tokenizer_from)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source, local_files_only=True)
            # Sentence encoders ship tokenizers that cut and fill every text to one length.
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        else:
            # Alternate between the files: the unigram trainer stops early and must see all of them.
            turns = (part[i] for i in range(max(map(len, texts.values()))) for part in texts.values() if i < len(part))
            tokenizer = train_tokenizer(turns, self.hparams.vocab_size, self.hparams.tokenizer)
        tokenizer.save_pretrained(self.folder / "tokenizer")
        held_out: list[str] = []
        counts = [max(1, int(len(part) * self.hparams.held_out)) for part in texts.values()]
        for (file, part), count in zip(texts.items(), counts, strict=True):
            if len(part) <= count:
                raise UserError(f"{file} has {len(part)} texts, too few to train on and to hold {count} out")
        if self.hparams.clozes:
            self._write_clozes(tokenizer, list(texts.values()), counts)
        for index, (part, count) in enumerate(zip(texts.values(), counts, strict=True)):
            held_out += part[:count]
            with atomic_path(self.folder / f"train{index}.npz") as path:
                np.savez(path, allow_pickle=False, **tokenize(tokenizer, part[count:]))
        with atomic_path(self.folder / "held_out.npz") as path:
            np.savez(path, allow_pickle=False, **tokenize(tokenizer, held_out))

    def _write_clozes(self, tokenizer: PreTrainedTokenizerFast, texts: list[list[str]], held_out: list[int]) -> None:
        """Write the clozes for training, and a twentieth as many from the held-out texts."""
        weights, number = self.weights(), self.hparams.clozes
        split = [(part[count:], part[:count]) for part, count in zip(texts, held_out, strict=True)]
        parts = {
            "train": (number, [train for train, _ in split]),
            "held_out": (max(20, number // 20), [kept for _, kept in split]),
        }
        for name, (count, part) in parts.items():
            try:
                store = make_store(tokenizer, part, weights, count, self.hparams.loose_clozes)
            except ValueError as error:
                raise UserError(f"--data.clozes {number}: {error}; give files with longer texts, or 0") from error
            with atomic_path(self.folder / f"{name}_clozes.npz") as path:
                np.savez(path, allow_pickle=False, **store)

    def weights(self) -> list[float]:
        """Return the weight of each file."""
        return [float(weight) for weight, _ in self.hparams.files.values()]

    def setup(self, stage: str | None = None) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(self.folder / "tokenizer")
        self.tokens = Tokens.of(self.hparams.tokenizer, self.tokenizer, self.hparams.vocab_size)
        self.train_stores = [
            dict(np.load(self.folder / f"train{index}.npz")) for index in range(len(self.hparams.files))
        ]
        self.held_out_store = dict(np.load(self.folder / "held_out.npz"))
        self.clozes = {
            name: dict(np.load(self.folder / f"{name}_clozes.npz"))
            for name in (("train", "held_out") if self.hparams.clozes else ())
        }

    def batches(
        self, stores: list[dict[str, np.ndarray]], weights: list[float], seed: int, count: int | None
    ) -> CorpusBatches:
        h = self.hparams
        return CorpusBatches(
            stores, weights, tuple(h.lengths), h.tokens_per_batch, h.max_positions, h.shifted,
            self.tokens, h.mask_share, seed, count,
        )  # fmt: skip

    def train_dataloader(self) -> DataLoader:
        dataset = self.batches(self.train_stores, self.weights(), self.hparams.seed, None)
        dataset.skip = self.batches_trained
        growth, unasked = self.hparams.cloze_growth, self.hparams.unasked
        return DataLoader(self._read(dataset, "train", growth, unasked), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        held_out = self.batches([self.held_out_store], [1.0], 1, 40)
        # All are requested, because the held-out loss is that of answers.
        unasked = None if self.hparams.unasked is None else 0.0
        return DataLoader(self._read(held_out, "held_out", 0, unasked), batch_size=None)

    def _read(self, batches: CorpusBatches, name: str, growth: int, unasked: float | None) -> IterableDataset:
        """Add batches of copies and clozes, if there are clozes."""
        if not self.clozes:
            return batches
        newline = self.tokenizer.backend_tokenizer.encode("\n", add_special_tokens=False).ids
        return ReadingBatches(batches, self.clozes[name], newline, growth, self.hparams.reading_tokens, unasked)

    def state_dict(self) -> dict[str, int]:
        return {"batches_trained": self.batches_trained}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.batches_trained = state_dict["batches_trained"]
