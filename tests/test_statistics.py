"""Statistics of indicators: perfect and useless ones, ties, and values by hand or from SciPy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prompt_transfer.analysis.correlation import COLUMNS, bootstrap_interval, correlations, permutation_p
from prompt_transfer.analysis.statistics import (
    STATISTICS,
    kendall,
    mean_of_types,
    ndcg,
    nearest_neighbour,
    regret,
    relative,
    same_type_auc,
    spearman,
)

NAN = float("nan")
# Two tasks of type a, two of type b. Off the diagonal, row by row: 3 1 2 | 3 1 0 | 1 2 3 | 1 2 3.
INDICATOR = np.array([[9.0, 3, 1, 2], [3, 9, 1, 0], [1, 2, 9, 3], [1, 2, 3, 9]])
TRANSFER = np.array([[1.0, 0.8, 0.4, 0.2], [0.9, 1.0, 0.5, 0.6], [0.3, 0.2, 1.0, 0.7], [0.1, 0.2, 0.5, 1.0]])
TYPES = np.array(["a", "a", "b", "b"])
OFF = ~np.eye(4, dtype=bool)


def random_matrix(number: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, number))


def test_relative_scores() -> None:
    scores = np.array([[0.8, 0.4], [0.1, 0.0]])
    assert relative(scores) == pytest.approx(np.array([[1, 0.5], [NAN, NAN]]), nan_ok=True)


def test_spearman_per_target_by_hand() -> None:
    # Row 0: 3 1 2 against 3 2 1: 1 - 6 * (0 + 1 + 1) / 24 = 0.5. Row 1: 3 2 1 against 3 1 2: 0.5.
    # Row 2: 1 2 3 against 2 1 3: 0.5. Row 3: 1 2 3 against 1 2 3: 1.
    assert spearman(INDICATOR, TRANSFER, per_target=True) == pytest.approx(2.5 / 4)
    # One of three pairs in a row is in opposite order: (2 - 1) / 3, but 1 in row 3.
    assert kendall(INDICATOR, TRANSFER, per_target=True) == pytest.approx((3 * 1 / 3 + 1) / 4)


@pytest.mark.parametrize("diagonal", [False, True])
def test_rank_correlations_are_those_of_scipy(diagonal: bool) -> None:
    first, second = random_matrix(7, 0).round(1), random_matrix(7, 1).round(1)
    chosen = np.ones((7, 7), dtype=bool) if diagonal else ~np.eye(7, dtype=bool)
    for ours, theirs in ((spearman, stats.spearmanr), (kendall, stats.kendalltau)):
        assert ours(first, second, diagonal=diagonal) == pytest.approx(theirs(first[chosen], second[chosen])[0])
        rows = [theirs(first[i][chosen[i]], second[i][chosen[i]])[0] for i in range(7)]
        assert ours(first, second, per_target=True, diagonal=diagonal) == pytest.approx(np.mean(rows))


def test_missing_pairs_are_left_out() -> None:
    transfer = TRANSFER.copy()
    transfer[0, 2] = transfer[3, 0] = NAN
    there = OFF & ~np.isnan(transfer)
    expected = stats.spearmanr(INDICATOR[there], transfer[there])[0]
    assert spearman(INDICATOR, transfer) == pytest.approx(expected)
    assert kendall(INDICATOR, transfer) == pytest.approx(stats.kendalltau(INDICATOR[there], transfer[there])[0])
    # Rows 0 and 3 keep two sources, too few for a rank correlation.
    assert spearman(INDICATOR, transfer, per_target=True) == pytest.approx((0.5 + 0.5) / 2)


def test_a_constant_indicator_predicts_nothing_and_constant_transfer_says_nothing() -> None:
    for function in (spearman, kendall):
        for per_target in (False, True):
            assert function(np.ones((4, 4)), TRANSFER, per_target=per_target) == 0
            assert np.isnan(function(INDICATOR, np.ones((4, 4)), per_target=per_target))
    transfer = TRANSFER.copy()
    transfer[0] = 0.5
    assert spearman(INDICATOR, transfer, per_target=True) == pytest.approx(2 / 3)


def test_same_type_auc_by_hand() -> None:
    # Same type: 3 3 3 3; different type: 1 2 1 0 1 2 1 2.
    assert same_type_auc(INDICATOR, TYPES) == 1
    # Alternating types: same 1 1 0 2 against 3 2 3 1 2 3 1 3. Each 1 ties with two (1), 0 wins nothing, 2 beats two and
    # ties with two (3): 5 of 4 * 8.
    assert same_type_auc(INDICATOR, np.array(["a", "b", "a", "b"])) == pytest.approx(5 / 32)
    assert same_type_auc(np.ones((4, 4)), TYPES) == 0.5


def test_nearest_neighbour_by_hand() -> None:
    assert nearest_neighbour(INDICATOR, TYPES) == 1
    # Types a b b c: tasks 1 and 2 have neighbours 0 and 3; 0 and 3 have no other of their type and do not count.
    assert nearest_neighbour(INDICATOR, np.array(["a", "b", "b", "c"])) == 0
    # All equally near: one of three has the type.
    assert nearest_neighbour(np.ones((4, 4)), TYPES) == pytest.approx(1 / 3)


def test_means_of_types_by_hand() -> None:
    assert mean_of_types(INDICATOR, TYPES, same=True) == 3
    assert mean_of_types(INDICATOR, TYPES, same=False) == pytest.approx(10 / 8)
    assert np.isnan(mean_of_types(INDICATOR, np.arange(4), same=True))


def test_a_perfect_indicator() -> None:
    transfer = random_matrix(6, 3) ** 2
    assert ndcg(np.exp(transfer), transfer) == pytest.approx(1)
    assert spearman(np.exp(transfer), transfer, per_target=True) == pytest.approx(1)
    for k in (1, 2, 3, 9):
        assert regret(np.exp(transfer), transfer, k) == pytest.approx(0)
    assert regret(-transfer, transfer, 5) == pytest.approx(0)


def test_ndcg_by_hand() -> None:
    # Only target 0 counts: sources with 0.8 0.4 0.2, ordered 0.8 0.2 0.4 by the indicator.
    transfer = np.full((4, 4), NAN)
    transfer[0] = TRANSFER[0]
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    expected = (0.8 + 0.2 * second + 0.4 * third) / (0.8 + 0.4 * second + 0.2 * third)
    assert ndcg(INDICATOR, transfer) == pytest.approx(expected)
    mean = (0.8 + 0.4 + 0.2) * (1 + second + third) / 3
    assert ndcg(np.zeros((4, 4)), transfer) == pytest.approx(mean / (0.8 + 0.4 * second + 0.2 * third))
    transfer[0] = [1, -1, -1, -1]
    assert np.isnan(ndcg(INDICATOR, transfer))


def test_regret_by_hand() -> None:
    transfer = np.full((4, 4), NAN)
    transfer[0] = [1, 0.2, 0.8, 0.4]
    # The order is 0.2, 0.4, 0.8.
    assert regret(INDICATOR, transfer, 1) == pytest.approx(0.6 / 0.8)
    assert regret(INDICATOR, transfer, 2) == pytest.approx(0.4 / 0.8)
    assert regret(INDICATOR, transfer, 3) == 0
    # A constant indicator: one of three, then the best of two of three.
    assert regret(np.zeros((4, 4)), transfer, 1) == pytest.approx((0.6 + 0 + 0.4) / 3 / 0.8)
    assert regret(np.zeros((4, 4)), transfer, 2) == pytest.approx((0 + 0 + 0.4) / 3 / 0.8)
    # The first choice is certain, the second one of two.
    tied = np.zeros((4, 4))
    tied[0] = [0, 1, 0, 0]
    assert regret(tied, transfer, 2) == pytest.approx((0 + 0.4) / 2 / 0.8)


@pytest.mark.parametrize("name", STATISTICS)
def test_resamples_at_once_equal_one_by_one(name: str) -> None:
    statistic = STATISTICS[name]
    many = np.stack([random_matrix(6, seed).round(1) for seed in range(4)])
    many[1, 2, 3] = many[2, 0] = NAN
    other = np.stack([random_matrix(6, 9) ** 2] * 4) if statistic.of == "transfer" else np.array([list("aabbcc")] * 4)
    together = statistic.function(many, other)
    alone = [float(statistic.function(many[i], other[i])) for i in range(4)]
    assert together.shape == (4,)
    assert together == pytest.approx(np.array(alone), nan_ok=True)


def test_permutations_of_tasks() -> None:
    transfer = random_matrix(8, 0) ** 2
    statistic = STATISTICS["spearman_pooled"]
    # No order of 8 tasks beats a perfect indicator, and few equal it.
    assert permutation_p(statistic, transfer, transfer, resamples=99) == 0.01
    assert permutation_p(statistic, -transfer, transfer, resamples=99) == 1
    # All permutations of a constant indicator are equally good.
    assert permutation_p(statistic, np.ones((8, 8)), transfer, resamples=99) == 1
    assert permutation_p(STATISTICS["regret_at_1"], transfer, transfer, resamples=99) == 0.01
    noise = [permutation_p(statistic, random_matrix(8, seed), transfer, resamples=99) for seed in range(1, 21)]
    assert 0.3 < np.mean(noise) < 0.7
    assert permutation_p(statistic, transfer, transfer, 50, 1) == permutation_p(statistic, transfer, transfer, 50, 1)
    assert np.isnan(permutation_p(statistic, transfer, np.ones((8, 8)), resamples=9))


def test_bootstrap_over_tasks() -> None:
    transfer = random_matrix(8, 0) ** 2
    statistic = STATISTICS["spearman_pooled"]
    # A task drawn twice forms no pair with itself, so a perfect indicator stays perfect.
    assert bootstrap_interval(statistic, transfer, transfer, 100) == pytest.approx((1, 1))
    noisy = transfer + random_matrix(8, 1)
    low, high = bootstrap_interval(statistic, noisy, transfer, 200)
    assert low < spearman(noisy, transfer) < high
    narrow = bootstrap_interval(statistic, noisy, transfer, 200, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert np.isnan(bootstrap_interval(statistic, noisy, np.ones((8, 8)), 20)).all()


def test_the_table_is_tidy() -> None:
    table = correlations({"x": INDICATOR, "y": -INDICATOR}, list(TYPES), TRANSFER, resamples=20, seed=3)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 2 * len(STATISTICS)
    assert not table.duplicated(["indicator", "statistic"]).any()
    row = table[(table.indicator == "x") & (table.statistic == "spearman_per_target")].iloc[0]
    assert (row.value, row.tasks, row.pairs, row.resamples, row.seed) == (pytest.approx(0.625), 4, 12, 20, 3)
    assert table.loc[table.statistic.str.startswith(("kendall", "mean")), "p_value"].isna().all()
    without = correlations({"x": INDICATOR}, list(TYPES), resamples=20)
    assert set(without["statistic"]) == {name for name, row in STATISTICS.items() if row.of == "types"}
    again = correlations({"x": INDICATOR, "y": -INDICATOR}, list(TYPES), TRANSFER, resamples=20, seed=3)
    pd.testing.assert_frame_equal(table, again)
