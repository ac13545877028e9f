"""Quality of a ranking of source prompts for a target with known transfer.

Shape letter: S sources. Values are scores of the sources on the target; every statistic gives the same numbers for
relative and absolute scores, because each is independent of their scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prompt_transfer.analysis.statistics import STATISTICS
from prompt_transfer.tasks.metrics import interval_over

JUDGED = ("ndcg", "regret_at_1", "regret_at_3", "spearman_per_target")
# An uninformative ranking: with all sources equal the statistics are means over all orders.
RANDOM_ORDER = "random_order"


def judge(ranking: NDArray[np.float64], transfer: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Compute the statistics of `JUDGED` for rankings `[..., S]` of sources with true transfer `[S]`.

    Sources for which either is NaN are ignored.
    """

    def as_matrix(values: NDArray[np.float64]) -> NDArray[np.float64]:
        # The statistics take square matrices of tasks: the target is row 0, all other rows are missing.
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
    """Return tidy rows with the quality of each ranking and of a random order.

    Args:
        target: the target task.
        rankings: name -> values `[R, N]` of N prompts; R is 1, or the number of samples of the ranking.
        sources: task of each prompt; several prompts of a task count by their mean value.
        transfer: source task -> true score on the target; tasks without one are ignored.

    Returns:
        Dicts with target, ranking, seed (number of the sample, None without samples), statistic, value (NaN for fewer
        than two sources, which have no order), n (sources).
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
    """Return means over targets, each averaged over its samples.

    Returns:
        Columns ranking, statistic, mean, low, high (95 % bootstrap interval over targets, or over the samples of a
        single target; missing for fewer than three), targets, seeds.
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
    """Return the mean over the last axis, ignoring NaN."""
    there = np.isfinite(values)
    total, number = np.where(there, values, 0).sum(axis=-1), there.sum(axis=-1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
