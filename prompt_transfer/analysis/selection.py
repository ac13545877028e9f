"""How good a ranking of source prompts was for a target, where the true transfer to it is known.

S sources. Values are scores of the sources on the target; all statistics but the rank correlation are free of their
scale, so relative and absolute scores give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prompt_transfer.analysis.statistics import STATISTICS
from prompt_transfer.tasks.metrics import interval_over

JUDGED = ("ndcg", "regret_at_1", "regret_at_3", "spearman_per_target")
# A ranking that knows nothing: with all sources equal the statistics are means over all orders of them.
RANDOM_ORDER = "random_order"


def judge(ranking: NDArray[np.float64], transfer: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The statistics of `JUDGED` for rankings `[..., S]` of sources whose true transfer is `transfer` `[S]`.

    Sources for which either is NaN do not count.
    """

    def as_matrix(values: NDArray[np.float64]) -> NDArray[np.float64]:
        # The statistics take tasks by tasks: the target is task 0, and the other rows are not there.
        size = values.shape[-1] + 1
        matrix = np.full((*values.shape[:-1], size, size), np.nan)
        matrix[..., 0, 1:] = values
        return matrix

    pair = as_matrix(np.asarray(ranking, dtype=float)), as_matrix(np.asarray(transfer, dtype=float))
    return {name: np.asarray(STATISTICS[name].function(*pair)) for name in JUDGED}


def quality(
    target: str,
    rankings: Mapping[str, NDArray[np.float64]],
    sources: Sequence[str],
    transfer: Mapping[str, float],
) -> list[dict[str, object]]:
    """Tidy rows: how good each ranking was, and how good a random order would have been.

    Args:
        target: the target task.
        rankings: name -> values `[R, N]` of N prompts; R is 1, or the number of samples that it was made from.
        sources: task of each prompt; several prompts of a task count with their mean value.
        transfer: source task -> true score on the target; tasks without one do not count.

    Returns:
        Dicts with target, ranking, seed (number of the sample, None where there is none), statistic,
        value (NaN with fewer than two sources: there is nothing to put in order), n (sources).
    """
    names = [name for name in dict.fromkeys(sources) if np.isfinite(transfer.get(name, np.nan))]
    true = np.array([transfer[name] for name in names], dtype=float)
    member = np.array([[source == name for source in sources] for name in names])
    rows: list[dict[str, object]] = []
    for ranking, values in {**rankings, RANDOM_ORDER: np.zeros((1, len(sources)))}.items():
        means = np.stack([_mean(values[:, mine]) for mine in member], axis=-1) if names else np.empty((len(values), 0))
        counted = int(np.isfinite(means).any(axis=0).sum())
        for statistic, found in judge(means, true).items():
            for seed, value in enumerate(found):
                number = seed if len(values) > 1 else None
                row = {"target": target, "ranking": ranking, "seed": number, "statistic": statistic}
                rows.append(row | {"value": float(value) if counted > 1 else np.nan, "n": counted})
    return rows


def summarize(rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """Means over targets, each with all its samples.

    Returns:
        Columns ranking, statistic, mean, low, high (95 % bootstrap interval over targets; with one target over its
        samples; missing where there are fewer than three), targets, seeds.
    """
    found = []
    for (ranking, statistic), part in pd.DataFrame(rows).groupby(["ranking", "statistic"], sort=False):
        part = part.dropna(subset="value")
        drawn = part.groupby("target")["value"].mean()
        seeds = int(part.groupby("target")["value"].size().max()) if len(part) else 0
        spread = (drawn if len(drawn) > 1 else part["value"]).to_numpy(dtype=float)
        low, high = interval_over(spread)
        row = {"ranking": ranking, "statistic": statistic, "mean": drawn.mean(), "low": low, "high": high}
        found.append(row | {"targets": len(drawn), "seeds": seeds})
    return pd.DataFrame(found)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis, NaN left out."""
    there = np.isfinite(values)
    total, number = np.where(there, values, 0).sum(axis=-1), there.sum(axis=-1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
