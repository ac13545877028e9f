"""Which rows make a batch, in which order and on which process, and the tensors of a batch."""

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

# What the loss leaves out: the padding of targets.
IGNORED = -100
# Batches whose rows are sorted by length together: enough to save most padding, few enough to stay random.
WINDOW_BATCHES = 50


@dataclass(frozen=True)
class BatchRows:
    """What a sampler hands to the workers.

    Attributes:
        rows: ``[n]`` row numbers of this process.
        position: in training, batches of the whole run up to and including this one; None in evaluation.
        global_count: rows of the batch over all processes.
    """

    rows: np.ndarray
    position: int | None
    global_count: int


def collate(table: TokenTable, rows: np.ndarray, pad_token_id: int, pad_multiple: int = 1) -> dict[str, Tensor]:
    """Tensors of some rows, padded on the right to the longest of them.

    Args:
        table: the token columns.
        rows: ``[B]`` row numbers.
        pad_token_id: fills up `input_ids`.
        pad_multiple: T is rounded up to a multiple of this.

    Returns:
        ``input_ids [B, T]``, ``attention_mask [B, T]``, ``labels [B]``, ``task_ids [B]``, ``ids [B]``, and where the
        table has targets ``target_ids [B, S]``, padded with -100, all int64. S is at least 1; a row without a target
        has -100 throughout.
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
    return batch


def _padded(
    values: np.ndarray, offsets: np.ndarray, rows: np.ndarray, fill: int, multiple: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a flat column as an int64 matrix padded on the right, and the mask of what is not padding."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    columns = np.arange(int(round_up(np.maximum(lengths.max(initial=1), 1), multiple)))
    mask = columns < lengths[:, None]
    padded = np.full(mask.shape, fill, dtype=np.int64)
    padded[mask] = values[(starts[:, None] + columns)[mask]]
    return padded, mask


def round_up(lengths: np.ndarray, multiple: int) -> np.ndarray:
    """`lengths` rounded up to multiples of `multiple`."""
    return -(-lengths // multiple) * multiple


def batch_bounds(positions: np.ndarray, size: int, max_tokens: int | None = None, world_size: int = 1) -> np.ndarray:
    """Bounds of consecutive batches: batch i is rows ``bounds[i]:bounds[i + 1]``, divided among the processes.

    A process gets at most `size` rows of a batch and, padded to the longest, at most `max_tokens` positions, and at
    least one row. So that none goes without, the last batch takes rows from the one before it, or joins it where that
    has none to spare (then a process has two rows, which may be above the budget).

    Args:
        positions: ``[n]`` positions that each row takes, prompt and answer slot counted, in the order of the batches.
    """
    bounds = [0]
    while bounds[-1] < len(positions):
        window = positions[bounds[-1] : bounds[-1] + size * world_size]
        count = len(window)
        if max_tokens is not None:
            rows = round_up(np.arange(1, count + 1), world_size) // world_size
            # Both factors only grow along the window, so what fits is a head of it.
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
    """Training batches of rows of similar length; batch i of a run is a pure function of (seed, i).

    An epoch shuffles all rows, sorts windows of 50 batches by length, cuts them into batches and shuffles those. Every
    process takes each `world_size`-th row of a batch, so two processes train on the batches of one. (One exception:
    where the last batch has fewer rows than there are processes it joins its neighbour, and epochs are one shorter.)

    Iteration begins at the batch after `start_batch` and hands out as many batches as an epoch has, beyond its end
    where it began within one. It does not count how often it was begun: Lightning calls ``iter`` also for epochs that
    it then does not train, and stops by its own counters.

    Args:
        lengths: ``[n]`` tokens of each row.
        batch_size: rows of a batch over all processes.
        seed: seed of the order, not negative.
        rank, world_size: this process and how many there are.
        start_batch: batches of the run that are trained already, over epochs; a function is asked at each beginning.
        repeat: go round and round the first so many batches (Lightning's ``overfit_batches``).

    Raises:
        UserError: fewer rows or a smaller batch than processes.
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
        """Row numbers of batch `index` (from 0, over epochs), of all processes."""
        epoch, number = divmod(index % self.repeat if self.repeat else index, len(self))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, *self._order(epoch))
        _, rows, batches = self._epoch
        batch = batches[number]
        return rows[self.bounds[batch] : self.bounds[batch + 1]]

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers in the order they are cut in, and the order of the batches."""
        generator = np.random.default_rng([self.seed, epoch])
        rows = generator.permutation(len(self.lengths))
        windows = np.arange(len(rows)) // (WINDOW_BATCHES * self.batch_size)
        rows = rows[np.lexsort((self.lengths[rows], windows))]
        return rows, generator.permutation(len(self))


class EvaluationBatchSampler(Sampler[BatchRows]):
    """Every row once over all processes, with as many batches on each, so that metrics can be synchronised.

    Args:
        lengths: ``[n]`` tokens of each row.
        batch_size: rows of a batch on one process.
        task_ids: ``[n]``, ascending; a batch holds rows of one task.
        rank, world_size: this process and how many there are.
        max_tokens: positions of a batch on one process.
        extra_positions: positions that each row takes beside its text: prompt and answer slot (P + 1), target.
        pad_multiple: as in `collate`.
        sort: longest rows first within each task (memory is short at once or never); False keeps the order.

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
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.batches: list[np.ndarray] = []
        tasks = np.zeros(len(lengths), dtype=np.int64) if task_ids is None else task_ids
        positions = round_up(lengths, pad_multiple) + extra_positions
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
    """Makes the batches of a `TokenTable` from the `BatchRows` of a sampler.

    A training batch is ``{"micro_batches": [collate(...), ...], "position": int, "global_count": int}``: the rows of
    this process, split so that no part has more than `max_tokens` positions; the loss of the step is the sum over all
    its rows divided by `global_count`. An evaluation batch is `collate` itself.

    Args:
        table: the token columns.
        pad_token_id, pad_multiple: as in `collate`.
        max_tokens: positions of a micro-batch, prompt, answer slot and target of each row counted.
        extra_positions: positions that each row takes beside its text: prompt and answer slot (P + 1), target.
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
        bounds = batch_bounds(positions, max(len(rows), 1), self.max_tokens)
        return {
            "micro_batches": [self._tensors(rows[start:end]) for start, end in pairwise(bounds)],
            "position": request.position,
            "global_count": request.global_count,
        }

    # A loader with a batch sampler asks for several rows at once, one without (in predict) for a single item.
    __getitems__ = __getitem__

    def _tensors(self, rows: np.ndarray) -> dict[str, Tensor]:
        return collate(self.table, rows, self.pad_token_id, self.pad_multiple)


def identity_collate(batch: dict[str, Any]) -> dict[str, Any]:
    """The loader's collate function: the data set has made the batch already."""
    return batch


def cross_prompts(batch: dict[str, Tensor], prompts: Tensor) -> dict[str, Tensor]:
    """Each of D texts behind each of K prompts: K * D examples, prompt by prompt, whose texts are embedded once."""
    size = len(batch["ids"])
    texts = torch.arange(size, device=prompts.device).repeat(len(prompts))
    whole = {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask")}
    rest = {name: value[texts] for name, value in batch.items() if name not in whole}
    return {**whole, **rest, "text_ids": texts, "prompt_ids": prompts.repeat_interleave(size)}
