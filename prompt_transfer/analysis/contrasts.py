"""Paired differences of a transfer matrix: sources of the target's type against other sources and random prompts.

Each target gives one difference: the mean score of its same-type sources minus the mean score of the others. Targets
without sources of both kinds are left out. Every target has the same weight, unlike in the means over pairs of
`summarize`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import permutation_test

from prompt_transfer.analysis.matrix import Matrix
from prompt_transfer.analysis.matrix_summary import (
    interval_over_targets,
    measures_of,
    pairs,
    scopes_of,
    values_of_draws,
)
from prompt_transfer.tasks.metrics import MIN_TARGETS

COLUMNS = ["measure", "targets", "against", "difference", "low", "high", "p_value", "n_targets", "n_better"]
AGAINST = {"different": "other types", "random": "random prompts"}
# Exact up to 13 targets, which have 8,192 combinations of signs.
PERMUTATIONS = 9999


def contrasts(matrix: Matrix, seed: int = 0) -> pd.DataFrame:
    """Return the paired differences with intervals over targets and seeds, and a paired permutation test.

    Args:
        matrix: the matrix; seeds are resampled if it has `seed_draws`.
        seed: seed of the resampling.

    Returns:
        One row per measure (`score`, the metric itself; `relative`; `chance_corrected`), targets (`all`, `learned`) and
        `against` (`different`, `random`). Columns: difference, the mean over targets; low and high, its 95 % bootstrap
        interval (NaN for fewer than three targets); p_value, two-sided, of the test that exchanges the signs of the
        targets' differences; n_targets; and n_better, the number of targets with a positive difference.
    """
    rows: list[dict[str, object]] = []
    for measure in ["score", *measures_of(matrix)]:
        table = pairs(matrix, measure)
        drawn = values_of_draws(matrix, table, measure)
        for scope, keep in scopes_of(matrix).items():
            for against in AGAINST:
                mine = table[table["target"].isin(keep)]
                both = {kind: mine[mine["kind"] == kind] for kind in ("same", against)}
                targets = sorted(set(both["same"]["target"]) & set(both[against]["target"]))
                if targets:
                    values, of_draws = (
                        np.subtract(*(_by_target(of, both[kind], targets) for kind in ("same", against)))
                        for of in (table["value"].to_numpy(float)[None], drawn)
                    )
                    row = {"measure": measure, "targets": scope, "against": against}
                    rows.append({**row, **_facts(values[0], of_draws, seed)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _by_target(values: NDArray[np.float64], part: pd.DataFrame, targets: list[str]) -> NDArray[np.float64]:
    """Return the mean of each target's rows, [D, targets], from the values of all rows of the table, [D, rows]."""
    return np.stack([values[:, part.index[part["target"] == target]].mean(axis=1) for target in targets], axis=1)


def _facts(values: NDArray[np.float64], drawn: NDArray[np.float64], seed: int) -> dict[str, object]:
    """Return the columns of one row, from the differences [targets] and those of each draw of seeds [D, targets]."""
    low = high = p_value = np.nan
    if len(values) >= MIN_TARGETS:
        low, high = interval_over_targets(drawn, np.ones(len(values)), seed)
        p_value = permutation_test(
            (values, np.zeros(len(values))),
            lambda first, second, axis: (first - second).mean(axis=axis),
            permutation_type="samples", vectorized=True, n_resamples=PERMUTATIONS, rng=seed,
        ).pvalue  # fmt: skip
    return {
        "difference": float(values.mean()), "low": low, "high": high, "p_value": p_value, "n_targets": len(values),
        "n_better": int((values > 0).sum()),
    }  # fmt: skip
