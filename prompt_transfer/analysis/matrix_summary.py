"""Summary of a transfer matrix as in Su et al. 2022, section 4: means by type of source, with intervals.

The summary averages relative performance over all pairs of a target and another source of the same type, over all pairs
of different types, and over targets for random prompts; so for chance-corrected scores. Intervals are 95 % percentile
bootstraps that resample targets (at least three) with all their pairs, and seeds if the results have several.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prompt_transfer.analysis.matrix import Matrix
from prompt_transfer.tasks.metrics import MIN_TARGETS

RESAMPLES = 2000


def pairs(matrix: Matrix, measure: str = "relative") -> pd.DataFrame:
    """Return one row per target and source, excluding the target itself; random prompts are sources.

    Derived prompts, and targets without a prompt of their own, are skipped.

    Returns:
        target, type, kind (`same`, `different` or `random`), source, value.
    """
    measured, random = (matrix.measured(scores, measure) for scores in (matrix.scores, matrix.random))
    rows = []
    for target, values, drawn in zip(measured.index, measured.to_numpy(), random.to_numpy(), strict=True):
        kind_of_target = matrix.types[target]
        for source, value in zip(measured.columns, values, strict=True):
            if source != target and source in matrix.types:
                kind = "same" if matrix.types[source] == kind_of_target else "different"
                rows.append((target, kind_of_target, kind, source, value))
        rows += [
            (target, kind_of_target, "random", source, value)
            for source, value in zip(random.columns, drawn, strict=True)
        ]
    return (
        pd.DataFrame(rows, columns=["target", "type", "kind", "source", "value"])
        .dropna(subset=["value"])
        .reset_index(drop=True)
    )


def best_sources(matrix: Matrix) -> pd.DataFrame:
    """Return each target's best source other than itself, if some source has its type.

    Returns:
        target, type, best, best_type, same_type (bool), relative.
    """
    found = pairs(matrix)
    found = found[found["kind"] != "random"]
    rows = []
    for target, mine in found.groupby("target", sort=False):
        if (mine["kind"] == "same").any():
            best = mine.iloc[int(mine["value"].to_numpy().argmax())]
            same = best["kind"] == "same"
            rows.append((target, best["type"], best["source"], matrix.types[best["source"]], same, best["value"]))
    return pd.DataFrame(rows, columns=["target", "type", "best", "best_type", "same_type", "relative"])


def measures_of(matrix: Matrix) -> list[str]:
    """Return the measures that the matrix allows: `chance_corrected` needs a baseline."""
    return ["relative"] + (["chance_corrected"] if matrix.baseline.notna().any() else [])


def scopes_of(matrix: Matrix) -> dict[str, set[str]]:
    """Return the targets of each scope: `all`, and `learned` if it is known which were learned."""
    scopes = {"all": set(matrix.scores.index)}
    if matrix.learned is not None and not matrix.learned.isna().all():
        scopes["learned"] = set(matrix.learned.index[matrix.learned.fillna(False).astype(bool)])
    return scopes


def summarize(matrix: Matrix, seed: int = 0) -> pd.DataFrame:
    """Return mean transfer scores with bootstrap intervals over targets and seeds.

    Returns:
        One row per mean: measure (`relative`, `chance_corrected`), targets (`all`, or `learned` only), type (`all` or a
        task type), kind (`same`, `different`, `random`, each kind of random prompt if there are several, and `best
        source of the same type`, a share of targets), mean, low, high, n_pairs, n_targets.
    """
    rows: list[dict[str, object]] = []
    for measure in measures_of(matrix):
        table = pairs(matrix, measure)
        drawn = values_of_draws(matrix, table, measure)
        best = best_sources(matrix).rename(columns={"same_type": "value"}) if measure == "relative" else None
        for scope, keep in scopes_of(matrix).items():
            common = {"measure": measure, "targets": scope}
            parts = [(kind, part, drawn) for kind, part in _parts(table[table["target"].isin(keep)])]
            if best is not None:
                mine = best[best["target"].isin(keep)]
                parts.append(("best source of the same type", mine, best["value"].to_numpy(float)[None]))
            for kind, part, values in parts:
                rows.append({**common, "type": "all", "kind": kind, **_mean(part, values, seed)})
                for name, mine in part.groupby("type", sort=False):
                    rows.append({**common, "type": name, "kind": kind, **_mean(mine, values, seed)})
    columns = ["measure", "targets", "type", "kind", "mean", "low", "high", "n_pairs", "n_targets"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame[frame["n_pairs"] > 0].reset_index(drop=True)


def values_of_draws(matrix: Matrix, table: pd.DataFrame, measure: str) -> NDArray[np.float64]:
    """Return the values of the rows of `pairs` in every draw of seeds: [D, rows], or [1, rows] without draws."""
    if not matrix.seed_draws:
        return table["value"].to_numpy(float)[None]
    targets = matrix.scores.index.get_indexer(pd.Index(table["target"]))
    sources = matrix.scores.columns.append(matrix.random.columns).get_indexer(pd.Index(table["source"]))
    found = []
    for each in matrix.seed_draws:
        measured = [each.measured(scores, measure).to_numpy() for scores in (each.scores, each.random)]
        found.append(np.hstack(measured)[targets, sources])
    return np.array(found)


def _parts(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    parts = [(kind, table[table["kind"] == kind]) for kind in ("same", "different", "random")]
    random = parts[-1][1]
    if random["source"].nunique() > 1:
        parts += [(str(source), mine) for source, mine in random.groupby("source", sort=False)]
    return parts


def _mean(part: pd.DataFrame, drawn: NDArray[np.float64], seed: int) -> dict[str, float | int]:
    """Return the mean over pairs, the rows of `part`, and its bootstrap interval over targets and seeds.

    Args:
        part: rows of a table.
        drawn: values of all rows of that table in every draw of seeds, [D, rows].
        seed: seed of the resampling.
    """
    targets, of = np.unique(part["target"], return_inverse=True)
    facts: dict[str, float | int] = {"n_pairs": len(part), "n_targets": len(targets)}
    if not len(part):
        return facts | {"mean": np.nan, "low": np.nan, "high": np.nan}
    low, high = np.nan, np.nan
    if len(targets) >= MIN_TARGETS:
        belongs = np.eye(len(targets))[of]
        low, high = interval_over_targets(drawn[:, part.index] @ belongs, belongs.sum(axis=0), seed)
    return {"mean": float(part["value"].astype(float).mean()), "low": low, "high": high, **facts}


def interval_over_targets(sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of sum / count over targets and seeds.

    Args:
        sums: each target's sum in every draw of seeds, [D, targets].
        counts: each target's number of summands, [targets].
        seed: seed of the resampling.
    """
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, len(counts), (RESAMPLES, len(counts)))
    draws = generator.integers(0, len(sums), (RESAMPLES, 1))
    means = sums[draws, targets].sum(axis=1) / counts[targets].sum(axis=1)
    low, high = np.nanquantile(means, [0.025, 0.975])
    return float(low), float(high)
