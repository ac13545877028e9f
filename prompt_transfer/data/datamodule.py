"""`TaskDataModule`: token batches of tasks, for one process or many, resumable within an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from prompt_transfer.data.batches import BatchDataset, EvaluationBatchSampler, LengthGroupedBatchSampler, collate
from prompt_transfer.data.description import describe
from prompt_transfer.data.loaders import batch_loader, check_budget, check_numbers, check_order, check_trainer
from prompt_transfer.data.own import FromRows, choose_tasks, name_of
from prompt_transfer.data.run_position import RunPosition
from prompt_transfer.data.selection import SPLITS, Selection, check_split
from prompt_transfer.data.shots import ValidationShots, parse_shots
from prompt_transfer.data.sources import TaskData
from prompt_transfer.data.special_tokens import SpecialTokens, check_special_tokens
from prompt_transfer.data.tables import Tables
from prompt_transfer.data.texts import texts_to_predict
from prompt_transfer.data.tokens import TextEncoder, TokenTable
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

STAGE_SPLITS = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}


class TaskDataModule(FromRows, RunPosition, L.LightningDataModule):
    """Batches of one or several tasks, grouped by length.

    Training batches mix the tasks in proportion to their rows; evaluation runs the tasks one after the other. A
    training batch is ``{"micro_batches": [...], "position": int, "global_count": int}``, one optimizer step; evaluation
    and prediction batches are plain dicts of tensors (`prompt_transfer.data.batches`). The module calls
    ``datamodule.batch_done(batch["position"])`` after each optimizer step; with it a stopped run resumes at the next
    batch, also within an epoch.

    Args:
        task: Name of a task, path of a task's YAML file or of a table (.csv, .jsonl, .parquet), or a list of these.
        source: Source of the rows. Tasks whose names start with builtin_ need builtin, all others hub or local. None is
            local for tables and for tasks whose YAML file names a folder, else builtin.
        root: Folder with <task>/<split>.parquet, .jsonl or .csv for source local.
        batch_size: Examples of one optimizer step, over all processes.
        eval_batch_size: Examples of one evaluation batch on each process.
        max_length: Longest text in tokens, special tokens included. None is the task's own, or less if only less fits.
        max_tokens: Most positions (prompt, answer slot, text, target and padding) of a forward pass on one process.
            Larger batches are split into micro-batches, which changes memory but not the result. None is no limit.
        limit_train: Training rows to use of each task, a random subset by seed. None is all.
        limit_eval: Validation and test rows to use of each task, a random subset by seed. None is all.
        label_words: The task's label words (default), those of the paper's release 1.0 (paper), or for tables one word
            per class, as bad,good in the order of the sorted labels, or as neg=bad,pos=good. The default of tables are
            the labels themselves.
        num_workers: Worker processes that build batches. 0 builds them in the training process.
        seed: Seed of the order, of subsets, and of a validation split that is cut from train.
        cache_dir: Folder for tokenized rows. None is the variable PROMPT_TRANSFER_CACHE, or ~/.cache/prompt_transfer.
        predict_split: Split for predict, in its own order, labelled or not.
        pad_multiple: Text lengths are padded to a multiple of this.
        held_out: Tasks among --data.task, by name or path, that are evaluated but not trained on; then only they count
            for model selection.
        revision: Commit, tag or branch of the hub repository. None is the registry's.
        special_tokens: Special tokens of the backbone inside texts, such as </s>: keep them, with a warning, or split
            them into ordinary tokens.
        shots: Few-shot runs: training rows of each class, or in all for generation tasks, drawn by seed. None is all.
        validation_shots: Few-shot runs: the same for validation. The default is as many as in training.
        text: Column of the text, if task is a table.
        text_b: Column of the second text, for pairs.
        label: Column of the label.
        target: Column of the text to generate, instead of a label.
        validation: Table with the validation split. None cuts it from the training rows.
        test: Table with the test split. None cuts it from the training rows.
        template: Words around the texts: "{text_a}\\nSentiment:" (pairs: also {text_b}); or question: the task's
            question in words (`tasks/catalogue.py`). None is the task's own.
        chat_template: Wrap the texts in the tokenizer's chat template (causal backbones). None is the task's own.

    Raises:
        UserError: an invalid option, or a source that does not have the task.
    """

    def __init__(
        self,
        task: str | list[str],
        source: Literal["hub", "local", "builtin"] | None = None,
        root: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        max_length: int | None = None,
        max_tokens: int | None = None,
        limit_train: int | None = None,
        limit_eval: int | None = None,
        label_words: str | list[str] | dict[str, str] = "default",
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
        predict_split: Literal["train", "validation", "test"] = "test",
        pad_multiple: int = 1,
        held_out: list[str] | None = None,
        revision: str | None = None,
        special_tokens: SpecialTokens = "keep",
        shots: int | None = None,
        validation_shots: ValidationShots = "same",
        text: str | None = None,
        text_b: str | None = None,
        label: str | None = None,
        target: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        template: str | None = None,
        chat_template: bool | None = None,
    ) -> None:
        super().__init__()
        few = parse_shots(shots, validation_shots, limit_train)
        limits = {"max_tokens": max_tokens, "limit_train": limit_train, "limit_eval": limit_eval}
        check_numbers(1, batch_size=batch_size, eval_batch_size=eval_batch_size, pad_multiple=pad_multiple, **limits)
        check_numbers(0, seed=seed, num_workers=num_workers)
        check_split(predict_split)
        check_special_tokens(special_tokens)
        words = label_words if label_words in ("default", "paper") else "default"
        columns: dict[str, Any] = {
            "text": text,
            "text_b": text_b,
            "label": label,
            "target": target,
            "validation": validation,
        }
        columns |= {"test": test, "label_words": None if words == label_words else label_words}
        tasks, own = choose_tasks(task, columns)
        tasks = [one.with_format(template, chat_template) for one in tasks]
        per_split = {"train": limit_train, "validation": limit_eval, "test": limit_eval}
        without = frozenset(name_of(name, tasks) for name in held_out or ())
        self.selection = Selection(tasks, source, root, seed, str(words), per_split, without, revision, few, own)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.max_length = max_length
        self.max_tokens = max_tokens
        self.num_workers = num_workers
        self.seed = seed
        self.cache_dir = cache_dir
        self.predict_split = predict_split
        self.pad_multiple = pad_multiple
        self.special_tokens = special_tokens
        self.position = 0
        self._connected: TextEncoder | None = None
        self._texts: Dataset | None = None
        self._tables: tuple[tuple[str, int], Tables] | None = None
        self._saved_order: dict[str, Any] | None = None
        self._sampler: LengthGroupedBatchSampler | None = None

    # Contents.

    @property
    def tasks(self) -> list[Task]:
        """The tasks in the order of `task_ids`, with the label words in use."""
        return self.selection.tasks

    @property
    def data(self) -> list[TaskData]:
        """Each task with all its rows; loaded on first access."""
        return self.selection.data

    @property
    def held_out(self) -> frozenset[str]:
        """Names of the tasks that are not trained on."""
        return self.selection.held_out

    def num_examples(self, split: str) -> int:
        """Return the number of rows of a split, after limits, over all tasks."""
        return sum(len(self.selection.rows(split, index)) for index in range(len(self.tasks)))

    def label_counts(self, split: str, task_index: int = 0) -> list[int]:
        """Return the number of rows of each class (C numbers) of a split, after limits; empty for generation."""
        return self.selection.label_counts(split, task_index)

    def to_predict(self, task_index: int = 0) -> Dataset:
        """Return the rows for predict: columns ``id``, ``text_a``, ``text_b``, and the answer if known."""
        return self.selection.to_predict(self.predict_split, task_index) if self._texts is None else self._texts

    def targets(self, split: str, ids: Tensor) -> list[list[str]]:
        """Return the reference texts of each of `ids` (``[B]``, from a batch of the split), for generation tasks."""
        return self.selection.targets(split, ids.tolist())

    def describe(self) -> dict[str, Any]:
        """Return a description of the data for result files: tasks, source, limits, lengths, and sizes of each split.

        ``at_max_length`` counts the rows that fill `max_length`, most of them truncated; ``at_max_target_length`` does
        the same for targets. Both exist for tokenized splits only.
        """
        return describe(self, self._made_tables())

    def digests(self) -> dict[str, dict[str, str]]:
        """Return task -> tokenized split -> SHA-256 of its token columns."""
        return self._made_tables().digests()

    def content_free(self) -> dict[str, Tensor]:
        """Return a batch of the content-free texts of every task, for calibration."""
        table = self._made_tables().content_free()
        return collate(table, np.arange(len(table)), self._encoder().pad_token_id)

    # Setup.

    def connect(self, encoder: TextEncoder) -> TaskDataModule:
        """Set the encoder; the default is ``trainer.lightning_module.encoder``. Returns itself."""
        self._connected = encoder
        return self

    def set_predict_texts(self, texts: Dataset | Sequence[str], texts_b: Sequence[str] | None = None) -> None:
        """Set the texts for predict, which replace `predict_split`.

        Args:
            texts: texts, or a Dataset with the columns ``id``, ``text_a``, ``text_b`` (`data.texts.load_texts`).
            texts_b: second texts, for tasks on pairs.

        Raises:
            UserError: several tasks, or texts that `texts_to_predict` rejects.
        """
        if len(self.tasks) > 1:
            raise UserError("to predict on texts give one task with --data.task: it determines the label words")
        self._texts = texts_to_predict(texts, texts_b)

    def prepare_data(self) -> None:
        """Download the tasks; Lightning calls this on one process of each node."""
        if self.selection.source == "hub" and self._texts is None:
            _ = self.data

    def setup(self, stage: str | None = None) -> None:
        """Load and tokenize the splits of `stage` (fit, validate, test, predict); None: all splits.

        Raises:
            UserError: data or options that do not match each other, the model or the trainer.
        """
        trainer = self.trainer
        check_trainer(trainer, stage)
        if stage == "fit" and trainer is not None and trainer.global_step == 0:
            # A new run starts at batch 0; a resumed one gets its position from the checkpoint later.
            self.position = 0
            self._saved_order = None
        if stage == "predict":
            self._predict_table()
            if self._texts is None:
                self._made_tables().warn_of_special_tokens(self.predict_split, predicted=True)
            return
        splits = STAGE_SPLITS.get(stage or "", SPLITS)
        for split in splits:
            self.tokens(split)
        self._made_tables().warn_of_special_tokens(*splits)

    def _encoder(self) -> TextEncoder:
        if self._connected is not None:
            return self._connected
        module = None if self.trainer is None else self.trainer.lightning_module
        encoder = getattr(module, "encoder", None)
        if encoder is None:
            raise UserError("the data need a tokenizer: call datamodule.connect(backbone.encoder(prompt_length)) first")
        return encoder

    def _made_tables(self) -> Tables:
        encoder = self._encoder()
        key = (encoder.fingerprint, encoder.extra_positions)
        if self._tables is None or self._tables[0] != key:
            options = (self.max_length, self.cache_dir, self.special_tokens)
            self._tables = (key, Tables(self.selection, encoder, *options))
        return self._tables[1]

    def tokens(self, split: str) -> TokenTable:
        """Return the token columns of a split, over all tasks."""
        return self._within_budget(self._made_tables().split(split))

    def _predict_table(self) -> TokenTable:
        tables = self._made_tables()
        if self._texts is None:
            return self._within_budget(tables.to_predict(self.predict_split))
        return self._within_budget(tables.texts(self._texts))

    def _extra(self, table: TokenTable) -> int:
        """Return the most positions of a row besides its text: prompt, answer slot, target."""
        return self._encoder().extra_positions + table.longest_target

    def _within_budget(self, table: TokenTable) -> TokenTable:
        check_budget(table, self._extra(table), self.max_tokens, self.pad_multiple)
        return table

    # Loaders.

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of training batches, starting at `position`."""
        table = self.tokens("train")
        trainer = self.trainer
        sampler = LengthGroupedBatchSampler(
            table.lengths, self.batch_size, self.seed, *self._rank_and_world(), start_batch=self._start
        )
        overfit = 0 if trainer is None else trainer.overfit_batches
        if overfit:
            sampler.repeat = overfit if isinstance(overfit, int) else max(1, int(overfit * len(sampler)))
        order = self._order()
        check_order(self._saved_order, order)
        self._saved_order, self._sampler = order, sampler
        return self._loader(table, sampler)

    def trained_examples(self, position: int) -> list[int]:
        """Return the example ids of the training batch at `position`, over all processes."""
        assert self._sampler is not None
        return self.tokens("train").ids[self._sampler.global_batch(position - 1)].tolist()

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of all validation rows, task by task."""
        return self._evaluation("validation")

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of all test rows, task by task."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of the rows to predict, in input order; each of n processes gets every n-th row."""
        return self._evaluation("predict")

    def _evaluation(self, split: str) -> DataLoader[dict[str, Any]]:
        table = self._predict_table() if split == "predict" else self.tokens(split)
        rank, world_size = self._rank_and_world()
        sampler = EvaluationBatchSampler(
            table.lengths,
            self.eval_batch_size,
            table.task_ids,
            rank,
            world_size,
            max_tokens=self.max_tokens,
            extra_positions=self._extra(table),
            pad_multiple=self.pad_multiple,
            sort=split != "predict",
            copies=table.copies,
        )
        return self._loader(table, sampler, single=split == "predict")

    def _loader(self, table: TokenTable, sampler: Sampler[Any], single: bool = False) -> DataLoader[dict[str, Any]]:
        batches = BatchDataset(
            table, self._encoder().pad_token_id, self.max_tokens, self._extra(table), pad_multiple=self.pad_multiple
        )
        return batch_loader(batches, sampler, self.num_workers, self.seed, single=single)

    def _rank_and_world(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
