"""Samplers that group rows into batches and divide them over processes, and the tensors of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from prompt_transfer.data.tokens import TokenTable
from prompt_transfer.utils.errors import UserError

# Ignored by the loss: padding of targets.
IGNORED = -100
# Batches sorted by length together: enough to save most padding, few enough to keep the order random.
WINDOW_BATCHES = 50


@dataclass(frozen=True)
class BatchRows:
    """The rows of one batch, passed from a sampler to the workers.

    Attributes:
        rows: ``[n]`` row numbers of this process.
        position: in training, batches of the whole run up to and including this one; None in evaluation.
        global_count: rows of the batch over all processes.
    """

    rows: np.ndarray
    position: int | None
    global_count: int


def collate(table: TokenTable, rows: np.ndarray, pad_token_id: int, pad_multiple: int = 1) -> dict[str, Tensor]:
    """Return the tensors of some rows, right-padded to the longest.

    Args:
        table: the token columns.
        rows: ``[B]`` row numbers.
        pad_token_id: padding of `input_ids`.
        pad_multiple: T is rounded up to a multiple of this.

    Returns:
        ``input_ids [B, T]``, ``attention_mask [B, T]``, ``labels [B]``, ``task_ids [B]``, ``ids [B]``, and for a table
        with targets ``target_ids [B, S]``, padded with -100; all int64. S is at least 1; rows without a target are -100
        throughout. Tables with options or groups add those of `OptionTable.collate` and ``groups [B]``.
    """
    input_ids, mask = _padded(table.values, table.offsets, rows, pad_token_id, pad_multiple)
    batch = {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        "labels": torch.from_numpy(table.labels[rows]),
        "task_ids": torch.from_numpy(table.task_ids[rows]),
        "ids": torch.from_numpy(table.ids[rows]),
    }
    if table.target_values is not None and table.target_offsets is not None:
        target_ids, _ = _padded(table.target_values, table.target_offsets, rows, IGNORED)
        batch["target_ids"] = torch.from_numpy(target_ids)
    if table.options is not None:
        batch |= table.options.collate(rows)
    if table.groups is not None:
        batch["groups"] = torch.from_numpy(table.groups[rows])
    return batch


def _padded(
    values: np.ndarray, offsets: np.ndarray, rows: np.ndarray, fill: int, multiple: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of a flat column as a right-padded int64 matrix, and the mask of its tokens."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    columns = np.arange(int(round_up(np.maximum(lengths.max(initial=1), 1), multiple)))
    mask = columns < lengths[:, None]
    padded = np.full(mask.shape, fill, dtype=np.int64)
    padded[mask] = values[(starts[:, None] + columns)[mask]]
    return padded, mask


def round_up(lengths: np.ndarray, multiple: int) -> np.ndarray:
    """Round `lengths` up to multiples of `multiple`."""
    return -(-lengths // multiple) * multiple


def batch_bounds(positions: np.ndarray, size: int, max_tokens: int | None = None, world_size: int = 1) -> np.ndarray:
    """Return the bounds of consecutive batches: batch i is rows ``bounds[i]:bounds[i + 1]``, divided among processes.

    A process gets at most `size` rows of a batch and at most `max_tokens` positions (padding included), but at least
    one row. If the last batch is too small for that, it takes rows from the previous batch, or is merged into it if
    that has none to spare (a process then has two rows, which may exceed the budget).

    Args:
        positions: ``[n]`` positions of each row, including prompt and answer slot, in batch order.
    """
    bounds = [0]
    while bounds[-1] < len(positions):
        window = positions[bounds[-1] : bounds[-1] + size * world_size]
        count = len(window)
        if max_tokens is not None:
            rows = round_up(np.arange(1, count + 1), world_size) // world_size
            # Both factors grow along the window, so the rows that fit come first.
            fits = rows * np.maximum.accumulate(window) <= max_tokens
            count = max(int(fits.sum()), min(world_size, count))
        bounds.append(bounds[-1] + count)
    missing = world_size - (bounds[-1] - bounds[-2]) if len(bounds) > 2 else 0
    if missing > 0:
        if bounds[-2] - bounds[-3] - missing >= world_size:
            bounds[-2] -= missing
        else:
            del bounds[-2]
    return np.array(bounds)


class LengthGroupedBatchSampler(Sampler[BatchRows]):
    """A sampler of training batches of similar length; batch i of a run is a pure function of (seed, i).

    An epoch shuffles all rows, sorts windows of 50 batches by length, cuts them into batches and shuffles the batches.
    Each process takes every `world_size`-th row of a batch, so any number of processes trains on the same batches. (One
    exception: a last batch with fewer rows than processes is merged into its neighbour, which shortens the epoch by
    one.)

    Iteration starts after `start_batch` batches and yields one epoch's number of batches, across the epoch's end if it
    started within one. It keeps no count of its iterations: Lightning also calls ``iter`` for epochs that it does not
    train, and stops by its own counters.

    Args:
        lengths: ``[n]`` tokens of each row.
        batch_size: rows of a batch over all processes.
        seed: seed of the order, not negative.
        rank, world_size: rank of this process and number of processes.
        start_batch: batches of the run trained so far, over epochs, or a function that returns it.
        repeat: cycle through this many first batches (Lightning's ``overfit_batches``).

    Raises:
        UserError: fewer rows than processes, or a batch size below the number of processes.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int | Callable[[], int] = 0,
        repeat: int | None = None,
    ) -> None:
        if batch_size < world_size:
            raise UserError(
                f"a batch of {batch_size} examples cannot be divided among {world_size} processes; "
                f"use --data.batch_size {world_size} or more"
            )
        _check_rows(len(lengths), world_size, "training examples")
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_batch = start_batch
        self.repeat = repeat
        self.bounds = np.append(np.arange(0, len(lengths), batch_size), len(lengths))
        if len(self.bounds) > 2 and self.bounds[-1] - self.bounds[-2] < world_size:
            self.bounds = np.delete(self.bounds, -2)
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[BatchRows]:
        start = self.start_batch() if callable(self.start_batch) else self.start_batch
        for index in range(start, start + len(self)):
            rows = self.global_batch(index)
            yield BatchRows(rows[self.rank :: self.world_size], index + 1, len(rows))

    def global_batch(self, index: int) -> np.ndarray:
        """Return the row numbers of batch `index` (from 0, over epochs) over all processes."""
        epoch, number = divmod(index % self.repeat if self.repeat else index, len(self))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, *self._order(epoch))
        _, rows, batches = self._epoch
        batch = batches[number]
        return rows[self.bounds[batch] : self.bounds[batch + 1]]

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the row numbers in the order they are cut into batches, and the order of the batches."""
        generator = np.random.default_rng([self.seed, epoch])
        rows = generator.permutation(len(self.lengths))
        windows = np.arange(len(rows)) // (WINDOW_BATCHES * self.batch_size)
        rows = rows[np.lexsort((self.lengths[rows], windows))]
        return rows, generator.permutation(len(self))


class EvaluationBatchSampler(Sampler[BatchRows]):
    """A sampler that yields every row once over all processes, with equal batch counts: metrics are synchronized.

    Args:
        lengths: ``[n]`` tokens of each row.
        batch_size: rows of a batch on one process.
        task_ids: ``[n]``, ascending; a batch has rows of a single task.
        rank, world_size: rank of this process and number of processes.
        max_tokens: positions of a batch on one process.
        extra_positions: positions of each row besides its text: prompt and answer slot (P + 1), target.
        pad_multiple: as in `collate`.
        sort: longest rows first within each task, so a lack of memory shows at once; False keeps the order.
        copies: ``[n]`` sequences of each row; None: one.

    Raises:
        UserError: a task with fewer rows than processes.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        task_ids: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        max_tokens: int | None = None,
        extra_positions: int = 0,
        pad_multiple: int = 1,
        sort: bool = True,
        copies: np.ndarray | None = None,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.batches: list[np.ndarray] = []
        tasks = np.zeros(len(lengths), dtype=np.int64) if task_ids is None else task_ids
        positions = (round_up(lengths, pad_multiple) + extra_positions) * (1 if copies is None else copies)
        for task in np.unique(tasks):
            rows = np.flatnonzero(tasks == task)
            _check_rows(len(rows), world_size, "examples to evaluate")
            if sort:
                rows = rows[np.argsort(-lengths[rows], kind="stable")]
            bounds = batch_bounds(positions[rows], batch_size, max_tokens, world_size)
            self.batches += [rows[start:end] for start, end in pairwise(bounds)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[BatchRows]:
        for rows in self.batches:
            yield BatchRows(rows[self.rank :: self.world_size], None, len(rows))


def _check_rows(count: int, world_size: int, what: str) -> None:
    if count < world_size:
        raise UserError(f"{count} {what} cannot be divided among {world_size} processes; use --trainer.devices 1")


class BatchDataset(Dataset[dict[str, Any]]):
    """A dataset whose items are batches of a `TokenTable`, indexed by the `BatchRows` of a sampler.

    A training batch is ``{"micro_batches": [collate(...), ...], "position": int, "global_count": int}``: the rows of
    this process in parts of at most `max_tokens` positions. The loss of a step is the sum over all its rows divided by
    `global_count`. An evaluation batch is the result of `collate`.

    Args:
        table: the token columns.
        pad_token_id, pad_multiple: as in `collate`.
        max_tokens: positions of a micro-batch, including prompt, answer slot and target of each row.
        extra_positions: positions of each row besides its text: prompt and answer slot (P + 1), target.
    """

    def __init__(
        self,
        table: TokenTable,
        pad_token_id: int,
        max_tokens: int | None = None,
        extra_positions: int = 0,
        pad_multiple: int = 1,
    ) -> None:
        self.table = table
        self.pad_token_id = pad_token_id
        self.max_tokens = max_tokens
        self.extra_positions = extra_positions
        self.pad_multiple = pad_multiple

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, request: BatchRows) -> dict[str, Any]:
        if request.position is None:
            return self._tensors(request.rows)
        lengths = self.table.offsets[request.rows + 1] - self.table.offsets[request.rows]
        longest_first = np.argsort(-lengths, kind="stable")
        rows = request.rows[longest_first]
        positions = round_up(lengths[longest_first], self.pad_multiple) + self.extra_positions
        positions = positions * self.table.copies[rows]
        bounds = batch_bounds(positions, max(len(rows), 1), self.max_tokens)
        return {
            "micro_batches": [self._tensors(rows[start:end]) for start, end in pairwise(bounds)],
            "position": request.position,
            "global_count": request.global_count,
        }

    # A loader with a batch sampler calls `__getitems__`, one without (predict) calls `__getitem__`.
    __getitems__ = __getitem__

    def _tensors(self, rows: np.ndarray) -> dict[str, Tensor]:
        return collate(self.table, rows, self.pad_token_id, self.pad_multiple)


def identity_collate(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch unchanged: the loader's collate function for a dataset of batches."""
    return batch


def cross_prompts(batch: dict[str, Tensor], prompts: Tensor) -> dict[str, Tensor]:
    """Combine each of K prompts with each of D texts: K * D examples in prompt order; texts are embedded once."""
    size = len(batch["ids"])
    texts = torch.arange(size, device=prompts.device).repeat(len(prompts))
    whole = {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask")}
    rest = {name: value[texts] for name, value in batch.items() if name not in whole}
    return {**whole, **rest, "text_ids": texts, "prompt_ids": prompts.repeat_interleave(size)}
