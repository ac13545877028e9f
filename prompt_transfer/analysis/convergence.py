"""Convergence of prompt training, and the speed-up from a transferred start.

Definitions: a run *converges* at its first evaluation within `tolerance` (0.5 points, absolute) of the best score it
ever reaches. Runs are evaluated from step 0, with a fixed budget and no early stopping; compared runs see the same
data in the same order. A run whose best score is not above the majority class *did not learn*.

- *convergence speed-up*: vanilla's convergence point / the transferred run's.
- *comparable-result speed-up*: vanilla's convergence point / the first point at which the transferred run reaches the
  score at which vanilla converged; *not reached* if it never does.

A transferred run that succeeds at step 0 has no finite ratio. It needed less than the first evaluation after step 0, so
the speed-up is reported as *at least* vanilla's point / that evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from prompt_transfer.tasks.metrics import MIN_TARGETS, bootstrap_mean_interval

TOLERANCE = 0.005
UNITS = ("step", "samples", "seconds")
MEASURES = ("convergence", "comparable result")
# Measures that are differences of scores, not ratios.
DIFFERENCES = ("area", "best score")
KINDS = ("same type", "other types")
EXACT, AT_LEAST, NOT_REACHED, NOT_LEARNED, NO_NEED = (
    *("exact", "at least", "not reached", "did not learn"),
    "vanilla needs no training",
)
# Tolerance for float32 scores that print equal.
EPSILON = 1e-6


@dataclass(frozen=True, eq=False)
class Curve:
    """The evaluations of one prompt's training.

    Attributes:
        name: display name.
        task: task of the run.
        source: task of the initial prompt; None for a vanilla run.
        seed: seed of the run.
        evaluations: columns step, samples, seconds, value; the first row is before training.
        majority: score of the majority class.
        metric: metric of `value`.
        kind: whether the initial prompt's task has the type of this task: `same type`, `other types`; empty for a
            vanilla run, a start from the same task, and tasks of unknown type.
        at_once: number of prompts trained together, which share the seconds.
        digest: digest of the exported prompt's values; empty if unknown.
    """

    name: str
    task: str
    source: str | None
    seed: str
    evaluations: pd.DataFrame
    majority: float
    metric: str = "accuracy"
    kind: str = ""
    at_once: int = 1
    digest: str = ""

    @property
    def values(self) -> np.ndarray:
        """Scores, one per evaluation."""
        return self.evaluations["value"].to_numpy(float)

    @property
    def learned(self) -> bool:
        """Whether the best score is above the majority class."""
        return bool(self.values.max() > self.majority + EPSILON)

    def converged(self, tolerance: float = TOLERANCE) -> int:
        """Return the index of the evaluation at which the run has converged."""
        values = self.values
        return int(np.argmax(values >= values.max() - tolerance - EPSILON))

    def reached(self, score: float) -> int | None:
        """Return the index of the first evaluation with at least `score`; None if there is none."""
        found = self.values >= score - EPSILON
        return int(np.argmax(found)) if found.any() else None

    def area(self) -> float:
        """Return the area under the curve over steps, divided by the budget: the mean score during training."""
        steps = self.evaluations["step"].to_numpy(float)
        return float(np.trapezoid(self.values, steps) / (steps[-1] - steps[0]))

    def facts(self, tolerance: float = TOLERANCE) -> dict[str, Any]:
        """Return the row of this run for the table of runs."""
        at = self.converged(tolerance)
        row = self.evaluations.iloc[at]
        return {
            "task": self.task,
            "source": self.source or "",
            "seed": self.seed,
            "metric": self.metric,
            "start": float(self.values[0]),
            "best": float(self.values.max()),
            "converged_score": float(self.values[at]),
            **{unit: row[unit].item() for unit in UNITS},
            "area": self.area(),
            "majority": self.majority,
            "learned": self.learned,
            "run": self.name,
        }


def compare(vanilla: Curve, transferred: Curve, tolerance: float = TOLERANCE) -> list[dict[str, Any]]:
    """Return both speed-ups in every unit, and the difference in score, of two runs that differ in initialization only.

    Returns:
        Rows of task, source, kind, seed, measure, unit, vanilla and transferred (the point each run needed), value
        (vanilla / transferred) and outcome: `exact`, `at least`, `not reached`, `did not learn`, `vanilla needs no
        training`; value is missing for the last three. The last two measures are `area` and `best score` (the highest
        of the run), their value transferred - vanilla.
    """
    at = vanilla.converged(tolerance)
    points = {
        "convergence": transferred.converged(tolerance) if transferred.learned else None,
        "comparable result": transferred.reached(float(vanilla.values[at])),
    }
    common = {
        "task": transferred.task,
        "source": transferred.source,
        "kind": transferred.kind,
        "seed": transferred.seed,
    }
    rows: list[dict[str, Any]] = []
    for measure in MEASURES:
        point = points[measure]
        if not vanilla.learned:
            outcome = NOT_LEARNED
        elif at == 0:
            outcome = NO_NEED
        elif point is None:
            outcome = NOT_REACHED if measure == "comparable result" else NOT_LEARNED
        else:
            outcome = EXACT if point else AT_LEAST
        for unit in UNITS:
            # Seconds are comparable only between processes that train the same number of prompts.
            comparable = unit != "seconds" or vanilla.at_once == transferred.at_once
            needed = vanilla.evaluations[unit].iloc[at].item() if vanilla.learned and comparable else None
            used = transferred.evaluations[unit].iloc[point].item() if point is not None and comparable else None
            value = None
            if outcome in (EXACT, AT_LEAST) and comparable:
                assert point is not None
                value = needed / transferred.evaluations[unit].iloc[max(point, 1)].item()
            rows.append(
                {**common, "measure": measure, "unit": unit, "vanilla": needed, "transferred": used, "value": value,
                 "outcome": outcome}
            )  # fmt: skip
    scores = ((run.area(), float(run.values.max())) for run in (vanilla, transferred))
    for measure, before, after in zip(DIFFERENCES, *scores, strict=True):
        values = {"vanilla": before, "transferred": after, "value": after - before}
        rows.append({**common, "measure": measure, "unit": "score", **values, "outcome": EXACT})
    return rows


def summarise(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Summarize over seeds: one row per task, source, measure and unit, and rows over all tasks (task `all`).

    Where sources are of both kinds, `all` has a row over those of the same type and one over those of other types too.

    Returns:
        Rows of task, source (a kind, or empty, for `all`), measure, unit, n (pairs), value (geometric mean of the
        available speed-ups; mean difference of scores), low and high (95 % bootstrap interval over pairs; for `all`
        over tasks and sources; missing for fewer than three), at_least, not_reached, not_learned, no_need (number of
        pairs with each outcome), and result (a text summary).
    """
    frame = pd.DataFrame(list(pairs))
    rows = [
        {"task": keys[0], "source": keys[1], "measure": keys[2], "unit": keys[3], **_mean(part, keys[2], part["value"])}
        for keys, part in frame.groupby(["task", "source", "measure", "unit"], sort=False)
    ]
    kinds = frame.groupby(["task", "source"])["kind"].first()
    groups = pd.DataFrame(rows).join(kinds, on=["task", "source"])
    if len(kinds) > 1:
        both = set(KINDS) <= set(kinds)
        for kind in (*(KINDS if both else ()), ""):
            means, all_pairs = (table[table["kind"] == kind] if kind else table for table in (groups, frame))
            for (measure, unit), part in means.groupby(["measure", "unit"], sort=False):
                outcomes = all_pairs[(all_pairs["measure"] == measure) & (all_pairs["unit"] == unit)]
                rows.append(
                    {"task": "all", "source": kind, "measure": measure, "unit": unit,
                     **_mean(outcomes, measure, part["value"])}
                )  # fmt: skip
    return rows


def _mean(pairs: pd.DataFrame, measure: Any, found: pd.Series) -> dict[str, Any]:
    values = found.dropna().to_numpy(float)
    scale, back = (lambda x: x, float) if measure in DIFFERENCES else (np.log, lambda x: float(np.exp(x)))
    value = back(scale(values).mean()) if len(values) else None
    low = high = None
    if len(values) >= MIN_TARGETS:
        low, high = (back(end) for end in bootstrap_mean_interval(scale(values), seed=0))
    outcomes = pairs["outcome"]
    counts = {
        name: int((outcomes == outcome).sum())
        for name, outcome in (
            *(("at_least", AT_LEAST), ("not_reached", NOT_REACHED), ("not_learned", NOT_LEARNED)),
            ("no_need", NO_NEED),
        )
    }
    row = {"n": len(pairs), "value": value, "low": low, "high": high, **counts}
    return {**row, "result": _in_words(row, measure in DIFFERENCES)}


def _in_words(row: dict[str, Any], difference: bool) -> str:
    words = []
    if row["value"] is not None:
        number = f"{100 * row['value']:+.1f} points" if difference else f"{row['value']:.2g} times"
        if row["low"] is not None:
            ends = [f"{100 * row[end]:+.1f}" if difference else f"{row[end]:.2g}" for end in ("low", "high")]
            number += f" [{ends[0]}, {ends[1]}]"
        words.append(f"at least {number}" if row["at_least"] else number)
    for name, text in (("not_reached", NOT_REACHED), ("not_learned", NOT_LEARNED), ("no_need", NO_NEED)):
        if row[name]:
            words.append(text if row[name] == row["n"] else f"{text} in {row[name]} of {row['n']}")
    return "; ".join(words) or "-"
