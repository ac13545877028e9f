"""Batch composition: values worked out by hand, and properties for any sizes and ranks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prompt_transfer.data.batches import (
    WINDOW_BATCHES,
    BatchDataset,
    BatchRows,
    EvaluationBatchSampler,
    LengthGroupedBatchSampler,
    batch_bounds,
    collate,
    round_up,
)
from prompt_transfer.data.tokens import TokenTable
from prompt_transfer.utils.errors import UserError

LENGTHS = st.lists(st.integers(1, 30), min_size=4, max_size=120).map(np.array)
PAD = 9


def _table(lengths: list[int] | np.ndarray) -> TokenTable:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.arange(len(lengths))
    values = np.concatenate([100 * row + np.arange(length) for row, length in enumerate(lengths)]).astype(np.int32)
    return TokenTable(values, offsets, rows % 2, np.zeros_like(rows), rows + 1000)


def test_collate_by_hand() -> None:
    batch = collate(_table([2, 0, 3]), np.array([2, 0, 1]), PAD)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[200, 201, 202], [0, 1, PAD], [PAD, PAD, PAD]],
        "attention_mask": [[1, 1, 1], [1, 1, 0], [0, 0, 0]],
        "labels": [0, 0, 1],
        "task_ids": [0, 0, 0],
        "ids": [1002, 1000, 1001],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_collate_pads_to_a_multiple() -> None:
    assert collate(_table([2, 5]), np.array([0, 1]), PAD, pad_multiple=4)["input_ids"].shape == (2, 8)
    assert collate(_table([0]), np.array([0]), PAD)["input_ids"].shape == (1, 1)


def test_cut_by_hand() -> None:
    # 3 rows per batch; then at most 20 positions: 10 + 10, then 4 * 5, then the rest.
    assert batch_bounds(np.array([5] * 7), 3).tolist() == [0, 3, 6, 7]
    assert batch_bounds(np.array([10, 9, 5, 5, 5, 5, 5]), 9, max_tokens=20).tolist() == [0, 2, 6, 7]
    # The longest row counts, wherever it is in the batch.
    assert batch_bounds(np.array([1, 1, 10, 10]), 9, max_tokens=20).tolist() == [0, 2, 4]
    # A row above the budget gets its own batch.
    assert batch_bounds(np.array([30, 4, 4]), 9, max_tokens=20).tolist() == [0, 1, 3]


def test_cut_leaves_no_process_without_a_row() -> None:
    # Two processes, three rows each: 6 + 1 becomes 5 + 2.
    assert batch_bounds(np.ones(7), 3, world_size=2).tolist() == [0, 5, 7]
    # One row each: 2 + 2 + 1 has none to spare, so the last batch has 3.
    assert batch_bounds(np.ones(5), 1, world_size=2).tolist() == [0, 2, 5]


@given(LENGTHS, st.integers(1, 9), st.integers(1, 4), st.integers(40, 200))
def test_cut_keeps_to_size_and_budget(lengths: np.ndarray, size: int, world_size: int, max_tokens: int) -> None:
    lengths = -np.sort(-lengths)
    bounds = batch_bounds(lengths, size, max_tokens, world_size)
    assert (bounds[0], bounds[-1]) == (0, len(lengths))
    for number, (start, end) in enumerate(pairwise(bounds)):
        assert end - start >= world_size
        per_rank = -(-(end - start) // world_size)
        joined = number == len(bounds) - 2 and per_rank == 2
        assert joined or (per_rank <= size and per_rank * lengths[start] <= max_tokens)


@given(LENGTHS, st.integers(4, 16), st.integers(1, 4), st.integers(0, 5))
def test_every_epoch_has_every_row_once_and_ranks_divide_batches(
    lengths: np.ndarray, batch_size: int, world_size: int, seed: int
) -> None:
    samplers = [LengthGroupedBatchSampler(lengths, batch_size, seed, rank, world_size) for rank in range(world_size)]
    for epoch in range(2):
        for sampler in samplers:
            sampler.start_batch = epoch * len(samplers[0])
        by_rank = [list(sampler) for sampler in samplers]
        assert [len(batches) for batches in by_rank] == [len(samplers[0])] * world_size
        seen = []
        for parts in zip(*by_rank, strict=True):
            rows = np.concatenate([part.rows for part in parts])
            assert min(len(part.rows) for part in parts) >= 1
            assert {part.global_count for part in parts} == {len(rows)}
            whole = samplers[0].global_batch(parts[0].position - 1)
            assert sorted(rows) == sorted(whole)
            seen.extend(rows)
        assert sorted(seen) == list(range(len(lengths)))


def test_two_processes_train_on_the_batches_of_one() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 1000)
    one = [sorted(batch.rows) for batch in LengthGroupedBatchSampler(lengths, 32, seed=3)]
    halves = [list(LengthGroupedBatchSampler(lengths, 32, seed=3, rank=rank, world_size=2)) for rank in (0, 1)]
    assert one == [sorted([*a.rows, *b.rows]) for a, b in zip(*halves, strict=True)]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 300)

    def epochs(seed: int) -> list[list[int]]:
        sampler = LengthGroupedBatchSampler(lengths, 32, seed)
        return [sampler.global_batch(index).tolist() for index in range(3 * len(sampler))]

    first, again, other = epochs(0), epochs(0), epochs(1)
    assert first == again
    assert first != other
    assert first[:10] != first[10:20]


def test_last_partial_batch_is_kept_or_joins_its_neighbour() -> None:
    lengths = np.arange(65) + 1
    assert sorted(len(b.rows) for b in LengthGroupedBatchSampler(lengths, 32)) == [1, 32, 32]
    two = LengthGroupedBatchSampler(lengths, 32, world_size=2)
    assert sorted(b.global_count for b in two) == [32, 33]
    assert len(two) == 2


def test_windows_are_grouped_by_length_and_stay_random() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 8000)
    sampler = LengthGroupedBatchSampler(lengths, 16)
    spreads = [np.ptp(lengths[sampler.global_batch(index)]) for index in range(len(sampler))]
    # Unsorted batches of 16 have a mean spread of 177; a window of 50 batches leaves a fiftieth of the range.
    assert np.mean(spreads) < 8
    means = [lengths[sampler.global_batch(index)].mean() for index in range(WINDOW_BATCHES)]
    assert abs(np.corrcoef(means, np.arange(WINDOW_BATCHES))[0, 1]) < 0.4


def test_position_starts_anywhere_and_runs_over_epochs() -> None:
    lengths = np.arange(20) + 1
    sampler = LengthGroupedBatchSampler(lengths, 5, start_batch=0)
    run = [sampler.global_batch(index).tolist() for index in range(12)]
    sampler.start_batch = 6
    batches = list(sampler)
    assert [batch.position for batch in batches] == [7, 8, 9, 10]
    assert [batch.rows.tolist() for batch in batches] == run[6:10]
    # Restarting the iteration without training changes nothing.
    assert [batch.rows.tolist() for batch in sampler] == run[6:10]
    sampler.start_batch = lambda: 8
    assert [batch.rows.tolist() for batch in sampler] == run[8:12]


def test_repeat_goes_round_the_first_batches() -> None:
    sampler = LengthGroupedBatchSampler(np.arange(20) + 1, 5, start_batch=2, repeat=2)
    first = [sampler.global_batch(index).tolist() for index in (0, 1)]
    batches = list(sampler)
    assert [batch.rows.tolist() for batch in batches] == first * 2
    assert [batch.position for batch in batches] == [3, 4, 5, 6]


def test_too_few_rows_for_the_processes() -> None:
    with pytest.raises(UserError, match="3 training examples cannot be divided among 4 processes"):
        LengthGroupedBatchSampler(np.ones(3, dtype=int), 8, world_size=4)
    with pytest.raises(UserError, match=r"use --data.batch_size 4 or more"):
        LengthGroupedBatchSampler(np.ones(9, dtype=int), 3, world_size=4)
    with pytest.raises(UserError, match="1 examples to evaluate"):
        EvaluationBatchSampler(np.ones(1, dtype=int), 8, world_size=2)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 2), st.sampled_from([None, 50, 90]), st.booleans(), st.booleans())
def test_evaluation_has_every_row_once_over_ranks_with_equal_batch_counts(
    lengths: np.ndarray, size: int, world_size: int, max_tokens: int | None, sort: bool, two_tasks: bool
) -> None:
    tasks = np.repeat([0, 1], [len(lengths) // 2, len(lengths) - len(lengths) // 2]) if two_tasks else None
    ranks = [
        list(EvaluationBatchSampler(lengths, size, tasks, rank, world_size, max_tokens, extra_positions=3, sort=sort))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for one in ranks for batch in one]
    assert all(len(batch.rows) and batch.position is None for batch in batches)
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(len(lengths)))
    if tasks is not None:
        assert all(len(set(tasks[batch.rows])) == 1 for batch in batches)
    if max_tokens and world_size == 1:
        assert all(len(batch.rows) * (lengths[batch.rows].max() + 3) <= max_tokens for batch in batches)


def test_evaluation_order() -> None:
    lengths = np.array([3, 8, 8, 1, 5])
    rows = [batch.rows.tolist() for batch in EvaluationBatchSampler(lengths, 2)]
    assert rows == [[1, 2], [4, 0], [3]]
    tasks = np.array([0, 0, 1, 1, 1])
    assert [b.rows.tolist() for b in EvaluationBatchSampler(lengths, 2, tasks)] == [[1, 0], [2, 4], [3]]
    assert [b.rows.tolist() for b in EvaluationBatchSampler(lengths, 2, sort=False)] == [[0, 1], [2, 3], [4]]
    second = EvaluationBatchSampler(lengths, 1, rank=1, world_size=2, sort=False)
    assert [b.rows.tolist() for b in second] == [[1], [3]]


@given(LENGTHS, st.integers(33, 120), st.sampled_from([1, 4, 8]))
def test_micro_batches_split_a_step_and_nothing_else(lengths: np.ndarray, max_tokens: int, multiple: int) -> None:
    max_tokens += multiple
    rows = np.arange(len(lengths))[::-1]
    made = BatchDataset(_table(lengths), PAD, max_tokens, extra_positions=3, pad_multiple=multiple)[
        BatchRows(rows, position=7, global_count=99)
    ]
    assert (made["position"], made["global_count"]) == (7, 99)
    parts = made["micro_batches"]
    for part in parts:
        count, width = part["input_ids"].shape
        assert count * (width + 3) <= max_tokens
        assert width == round_up(part["attention_mask"].sum(1).max().numpy(), multiple)
    assert sorted(torch.cat([part["ids"] for part in parts]).tolist()) == sorted(rows + 1000)


def test_without_a_budget_there_is_one_micro_batch() -> None:
    made = BatchDataset(_table([2, 5, 3]), PAD)[BatchRows(np.array([0, 1, 2]), 1, 3)]
    assert [part["ids"].tolist() for part in made["micro_batches"]] == [[1001, 1002, 1000]]
