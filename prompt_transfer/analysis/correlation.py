"""Indicators against transfer: values, intervals and p-values, in one tidy table.

The statistics and their definitions are in `statistics.py`. Tasks, not pairs, are what a study draws: pairs that share
a task are not independent. So the permutation test permutes tasks (Mantel's test), and the bootstrap resamples tasks
(Snijders and Borgatti 1999).
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
# Resamples worked on at once: for 13 tasks a few MB.
_CHUNK_CELLS = 500_000


def permutation_p(
    statistic: Statistic, indicator: np.ndarray, other: np.ndarray, resamples: int = 1000, seed: int = 0
) -> float:
    """p-value of Mantel's test: the share of permutations of tasks that are as good or better, one-sided.

    Rows and columns of the indicator are permuted alike, while transfer or types stay: (1 + number that is at least as
    good) / (1 + resamples), in the direction that is better.

    Args:
        statistic: a row of `STATISTICS`.
        indicator: `[N, N]`.
        other: transfer `[N, N]` or types `[N]`, as the statistic wants it.
        resamples: permutations.
        seed: of the permutations; the same ones for every indicator.
    """
    generator = np.random.default_rng(seed)
    observed = statistic.better * float(statistic.function(indicator, other))
    if np.isnan(observed):
        return float("nan")
    orders = generator.permuted(np.tile(np.arange(len(indicator)), (resamples, 1)), axis=1)
    found = [statistic.function(indicator[part[:, :, None], part[:, None, :]], other[None]) for part in _chunks(orders)]
    # What is equal but for rounding is equal.
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
    """Percentile interval over tasks: N tasks are drawn with replacement, rows and columns alike.

    A task that is drawn twice makes no pair with itself. Draws for which the statistic is not defined do not count; NaN
    where that are more than half.

    Args:
        statistic, indicator, other, resamples, seed: as those of `permutation_p`; the draws are the same for all.
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
    """Every statistic of every indicator, tidy.

    Args:
        matrices: indicator -> `[N, N]`, row = target task, column = source task.
        types: of the N tasks.
        transfer: `[N, N]`, NaN where missing; without it only the statistics of types are worked out.
        resamples: bootstrap draws, and permutations.
        seed: of both.

    Returns:
        One row an indicator and statistic: `value`, its 95 % interval `low` to `high` over tasks, `p_value` (one-sided;
        missing where not tested), `tasks`, `pairs` off the diagonal that both matrices have, `resamples` and `seed`.
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
    # The signs of all differences within rows are the largest thing that a statistic makes.
    size = max(1, _CHUNK_CELLS // draws.shape[1] ** 3)
    return [draws[start : start + size] for start in range(0, len(draws), size)]
