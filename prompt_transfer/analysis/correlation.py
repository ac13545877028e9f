"""Correlation of indicators with transfer: values, intervals and p-values in one tidy table.

`statistics.py` defines the statistics. Pairs that share a task are not independent, so tasks are the sampling unit: the
permutation test permutes tasks (Mantel's test), and the bootstrap resamples tasks (Snijders and Borgatti 1999).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from prompt_transfer.analysis.statistics import (
    STATISTICS,
    Statistic,
)

__all__ = [
    *("STATISTICS", "Statistic", "bootstrap_interval", "correlations", "kendall", "mean_of_types", "ndcg"),
    *("nearest_neighbour", "permutation_p", "regret", "relative", "same_type_auc", "spearman"),
]

COLUMNS = ("indicator", "statistic", "value", "low", "high", "p_value", "tasks", "pairs", "resamples", "seed")
MIN_TASKS = 3
# Size of a chunk of resamples: a few MB for 13 tasks.
_CHUNK_CELLS = 500_000


def permutation_p(
    statistic: Statistic, indicator: np.ndarray, other: np.ndarray, resamples: int = 1000, seed: int = 0
) -> float:
    """Return the one-sided p-value of Mantel's test: the share of task permutations that are at least as good.

    The same permutation applies to rows and columns of the indicator; transfer or types stay fixed. The p-value is
    (1 + number of permutations at least as good) / (1 + resamples).

    Args:
        statistic: a row of `STATISTICS`.
        indicator: `[N, N]`.
        other: transfer `[N, N]` or types `[N]`, depending on the statistic.
        resamples: number of permutations.
        seed: seed of the permutations, which are the same for every indicator.
    """
    generator = np.random.default_rng(seed)
    observed = statistic.better * float(statistic.function(indicator, other))
    if np.isnan(observed):
        return float("nan")
    orders = generator.permuted(np.tile(np.arange(len(indicator)), (resamples, 1)), axis=1)
    found = [statistic.function(indicator[part[:, :, None], part[:, None, :]], other[None]) for part in _chunks(orders)]
    # Values that differ only by rounding count as equal.
    better = (statistic.better * np.concatenate(found) >= observed - 1e-12).sum()
    return float((1 + better) / (1 + resamples))


def bootstrap_interval(
    statistic: Statistic,
    indicator: np.ndarray,
    other: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a percentile bootstrap interval over tasks: N tasks are drawn with replacement, for rows and columns.

    Two draws of the same task form no pair. Draws with an undefined statistic are dropped; the interval is NaN if more
    than half are.

    Args:
        statistic, indicator, other, resamples, seed: as in `permutation_p`; the draws are the same for all indicators.
        level: share of the draws inside the interval.
    """
    number = len(indicator)
    draws = np.random.default_rng(seed).integers(number, size=(resamples, number))
    found = []
    for part in _chunks(draws):
        left, right = part[:, :, None], part[:, None, :]
        twice = (left == right) & ~np.eye(number, dtype=bool)
        matrix = np.where(twice, np.nan, indicator[left, right])
        drawn = other[left, right] if statistic.of == "transfer" else other[part]
        found.append(statistic.function(matrix, drawn))
    values = np.concatenate(found)
    values = values[~np.isnan(values)]
    if len(values) < resamples / 2:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def correlations(
    matrices: Mapping[str, np.ndarray],
    types: Sequence[str],
    transfer: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return every statistic of every indicator as a tidy table.

    Args:
        matrices: indicator -> `[N, N]`, row = target task, column = source task.
        types: types of the N tasks.
        transfer: `[N, N]`, NaN where missing; None: compute only the statistics of types.
        resamples: number of bootstrap draws and of permutations.
        seed: seed of both.

    Returns:
        One row per indicator and statistic: `value`, its 95 % interval `low` to `high` over tasks, `p_value`
        (one-sided; missing if not tested), `tasks`, `pairs` (off-diagonal cells present in both matrices), `resamples`
        and `seed`.
    """
    rows = []
    names = np.asarray(types)
    for name, raw in matrices.items():
        matrix = np.asarray(raw, dtype=float)
        for label, statistic in STATISTICS.items():
            if statistic.of == "transfer" and transfer is None:
                continue
            other = names if statistic.of == "types" else np.asarray(transfer, dtype=float)
            there = ~np.isnan(matrix) & ~np.eye(len(matrix), dtype=bool)
            if statistic.of == "transfer":
                there &= ~np.isnan(other)
            low, high = bootstrap_interval(statistic, matrix, other, resamples, seed)
            p_value = permutation_p(statistic, matrix, other, resamples, seed) if statistic.tested else float("nan")
            value = float(statistic.function(matrix, other))
            facts = (len(matrix), int(there.sum()), resamples, seed)
            rows.append(dict(zip(COLUMNS, (name, label, value, low, high, p_value, *facts), strict=True)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _chunks(draws: np.ndarray) -> list[np.ndarray]:
    # The largest intermediate of a statistic holds the signs of all differences within rows.
    size = max(1, _CHUNK_CELLS // draws.shape[1] ** 3)
    return [draws[start : start + size] for start in range(0, len(draws), size)]
