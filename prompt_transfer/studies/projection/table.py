"""The table of a projection study; refuses to report a projector without all its controls."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.studies.entries import Entry
from prompt_transfer.studies.targets import Target
from prompt_transfer.tasks.metrics import bootstrap_mean_interval

# Controls required for every projector on every task.
CONTROLS = (
    "own", "constant_source", "mean_source", "shuffled_source", "random_vocabulary", "random_uniform", "baseline",
)  # fmt: skip
CLOSED = ("least_squares", "linear_combination", "relative")
RESAMPLES = 1000

# Task -> prompts, reported as their mean score.
Cell = Mapping[str, Sequence[Entry]]
# Task -> digest of a prompt -> its answers [n].
Answers = Mapping[str, Mapping[str, NDArray[np.float32]]]


@dataclass(frozen=True)
class ProjectorCells:
    """A projector, its projections and those of its controls.

    Attributes:
        file: the projector.
        cells: `projected`, `shuffled_source`, `constant_source` and `mean_source`.
        cosine, source_cosine: mean cosine between projections, and between source prompts, of different tasks.
        types: types of its training tasks.
    """

    file: ProjectorFile
    cells: dict[str, Cell]
    cosine: float
    source_cosine: float
    types: set[str]


def rows(
    name: str,
    projected: ProjectorCells,
    cells: Mapping[str, Cell],
    targets: Sequence[Target],
    answers: Answers,
    notes: Mapping[str, str],
    common: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return all rows of a projector: one per task and value of the column `what`, then the same per task group.

    | column value | prompt |
    |---|---|
    | own | the target backbone's own prompt for that task |
    | projected | the projected source prompt of that task |
    | shuffled_source | projected source prompts of other tasks |
    | constant_source | projected random source prompts |
    | mean_source | the projected mean of all source prompts |
    | least_squares, linear_combination, relative | the source prompt mapped by that closed form |
    | random_vocabulary, random_uniform | random prompts |
    | baseline | no prompt: the majority class, or the lead of the text |

    `value` is the mean over `prompts` prompts (scores in `values`), `low` and `high` its 95 % interval over examples:
    for accuracy and text scores of the per-example means over prompts; for F1 and Matthews, which are not means over
    examples, the mean limits of the prompts' own intervals. `ahead` is the projected prompts' per-example score minus
    this row's, over the same examples, with a paired bootstrap interval; a projector beats a control if `ahead_low` is
    above 0. `group` is `trained` (a training task of the projector), `same_type` (as a training task) or `other_type`.
    Rows of a group have the task `mean of ...`; the bootstrap then resamples within each task.

    Args:
        name: name of the projector.
        projected: its projections.
        cells: column value -> task -> prompts: all of `CONTROLS` but the baseline, `projected`, and closed forms.
        targets: the tasks.
        answers: complete answers of all prompts in the cells.
        notes: closed forms that cannot be fitted -> reason.
        common: columns with the same value in every row.

    Raises:
        ValueError: a control is missing.
    """
    check_controls(cells, targets, notes)
    facts = {
        "projector": name,
        "kind": projected.file.kind,
        "objective": projected.file.metadata.get("objective", ""),
        "seed": int(seed) if (seed := projected.file.metadata.get("seed", "")).isdecimal() else None,
        "cosine": projected.cosine,
        "source_cosine": projected.source_cosine,
        **common,
    }
    trained = projected.file.metadata.get("tasks", "").split(",")
    found: list[dict[str, Any]] = []
    means: dict[str, dict[str, NDArray[np.float64]]] = {}
    for target in targets:
        task = target.task.name
        group = "trained" if task in trained else "same_type" if target.task.type in projected.types else "other_type"
        given = {what: [answers[task][entry.digest] for entry in cell[task]] for what, cell in cells.items()}
        given["baseline"] = [target.baseline]
        examples = {
            what: np.mean([target.examples(one) for one in many], axis=0) for what, many in given.items() if many
        }
        own = float(np.mean([target.score(one) for one in given["own"]]))
        chance, learned = target.score(target.baseline), target.beats_baseline(given["own"])
        means |= {task: examples}
        for what, many in given.items():
            row = {"task": task, "group": group, "what": what, "split": target.split, "metric": target.task.metric,
                   "n": len(target), "learned": learned, "note": notes.get(what, ""), **facts}  # fmt: skip
            if many:
                scores = [target.score(one) for one in many]
                value = float(np.mean(scores))
                row["prompt"] = "; ".join(entry.name for entry in cells[what][task]) if what in cells else what
                row["value"], (row["low"], row["high"]) = value, _interval(target, many, examples[what])
                row |= {"prompts": len(many), "values": json.dumps(scores)}
                row["relative"] = value / own if own else math.nan
                row["chance_corrected"] = (value - chance) / (own - chance) if own != chance else math.nan
                row |= _ahead([examples["projected"] - examples[what]]) if what != "projected" else {}
            found.append(row)
    return found + _groups(found, means, facts)


def check_controls(cells: Mapping[str, Cell], targets: Sequence[Target], notes: Mapping[str, str]) -> None:
    """Check that all controls of a projector are present.

    Raises:
        ValueError: names the missing controls.
    """
    needed = [what for what in (*CONTROLS, "projected") if what != "baseline"]
    missing = [
        f"{what} on {target.task.name}"
        for target in targets
        for what in needed
        if not cells.get(what, {}).get(target.task.name)
    ]
    forms = [form for form in CLOSED if form in cells]
    missing += [] if forms else ["closed forms"]
    missing += [
        form for form in forms if form not in notes and not all(cells[form].get(target.task.name) for target in targets)
    ]
    if missing:
        raise ValueError(f"no table of projectors without their controls: {', '.join(missing)} missing")


def _interval(
    target: Target, answers: Sequence[NDArray[np.float32]], examples: NDArray[np.float64]
) -> tuple[float, float]:
    if target.task.has_example_scores or target.task.metric == "accuracy":
        return bootstrap_mean_interval(examples, seed=0)
    ends = np.mean([target.interval(one) for one in answers], axis=0)
    return float(ends[0]), float(ends[1])


def _ahead(differences: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """Return the mean over tasks of paired differences [n] and its interval, resampling examples within each task."""
    draws = np.mean([_draws(values, seed) for seed, values in enumerate(differences)], axis=0)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "ahead": float(np.mean([one.mean() for one in differences])),
        "ahead_low": float(low),
        "ahead_high": float(high),
    }


def _draws(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    generator, size = np.random.default_rng(seed), len(values)
    # In chunks: a thousand resamples of a large split would take gigabytes.
    steps = max(1, 1_000_000 // size)
    return np.concatenate(
        [
            values[generator.integers(0, size, (min(steps, RESAMPLES - start), size))].mean(axis=1)
            for start in range(0, RESAMPLES, steps)
        ]
    )


def _groups(
    found: Sequence[dict[str, Any]], means: Mapping[str, Mapping[str, NDArray[np.float64]]], facts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the means over the tasks of each group, and over its learned tasks only."""
    made = []
    for group in dict.fromkeys(row["group"] for row in found):
        for learned in (False, True):
            mine = [row for row in found if row["group"] == group and (row["learned"] or not learned)]
            for what in dict.fromkeys(row["what"] for row in mine if "value" in row):
                own = [row for row in mine if row["what"] == what and "value" in row]
                differences = [means[row["task"]]["projected"] - means[row["task"]][what] for row in own]
                made.append(
                    {
                        "task": f"mean of {group}{', learned' if learned else ''}",
                        "group": group,
                        "what": what,
                        "n": sum(row["n"] for row in own),
                        "value": float(np.mean([row["value"] for row in own])),
                        "relative": float(np.mean([row["relative"] for row in own])),
                        "tasks": len(own),
                        **(_ahead(differences) if what != "projected" else {}),
                        **facts,
                    }
                )
    return made
