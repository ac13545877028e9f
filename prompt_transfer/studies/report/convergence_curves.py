"""The curves of `analyze convergence`, read from its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from prompt_transfer.analysis import captions, curves
from prompt_transfer.analysis.convergence import TOLERANCE, Curve
from prompt_transfer.studies.report.content import Figure

EVALUATION = ["step", "samples", "seconds", "value"]


def curve_figure(path: Path) -> Figure:
    """Return the figure of `analyze convergence` for print, from its `curves.csv`."""
    read = read_curves(path)
    tolerance = _tolerance(read, path.with_name("runs.csv"))
    return Figure("curves", captions.convergence(tolerance), lambda: curves.convergence(read, tolerance))


def read_curves(path: Path) -> list[Curve]:
    """Return the curves of a table that `analyze convergence` wrote."""
    found = []
    for name, rows in pd.read_csv(path).groupby("run", sort=False):
        first = rows.iloc[0]
        source = None if pd.isna(first["source"]) else str(first["source"])
        evaluations = rows.sort_values("step")[EVALUATION].reset_index(drop=True)
        facts = (str(first["task"]), source, str(first["seed"]), evaluations, float(first["majority"]))
        found.append(Curve(str(name), *facts, metric=str(first["metric"])))
    return found


def _tolerance(read: list[Curve], runs: Path) -> float:
    """Return a tolerance with which the curves converge where `runs.csv` says: the tables do not record it."""
    if not runs.is_file():
        return TOLERANCE
    known = pd.read_csv(runs).set_index("run")
    steps = [curve.evaluations["step"][curve.converged(TOLERANCE)] for curve in read]
    if np.array_equal(steps, known["step"].reindex([curve.name for curve in read])):
        return TOLERANCE
    return float((known["best"] - known["converged_score"]).max())
