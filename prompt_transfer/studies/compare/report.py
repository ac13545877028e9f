"""Reporting a comparison: tidy tables, paired differences and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from prompt_transfer.analysis import captions, comparison_plots, plots
from prompt_transfer.analysis.paired import interval, resampled_scores
from prompt_transfer.studies.compare.cell import CONVERGENCE, PREDICTIONS, PROMPT
from prompt_transfer.studies.compare.methods import MAJORITY, RANDOM, TITLES
from prompt_transfer.studies.compare.plan import Cell, plan
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic

if TYPE_CHECKING:
    from prompt_transfer.studies.compare.load import CompareInputs
    from prompt_transfer.studies.compare.study import CompareStudy

# Columns of cells that the summary averages over seeds.
AVERAGED = (
    *("validation", "best_step", "seconds_to_best", "seconds", "trained_parameters", "stored_bytes"),
    *("peak_memory_mib", "loaded_memory_mib", "peak_gpu_memory_mib"),
)
Answers = NDArray[np.float32]


def report(study: CompareStudy, inputs: CompareInputs, rates: Mapping[str, float | None]) -> pd.DataFrame:
    """Write tables and figures of finished cells.

    Returns:
        The summary: one row per method, then random prompts and the majority class.

    Raises:
        UserError: a cell is missing or damaged.
    """
    cells = plan(study, rates)
    facts = {cell.name: _finished(cell, study) for cell in cells}
    answers = {cell.name: _answers(cell, study, inputs) for cell in cells}
    rows = [_row(study, inputs, cell, facts[cell.name], answers[cell.name]) for cell in cells]
    rows.append(_majority(study, inputs))
    frame = results.table(rows)
    frame["seed"] = frame["seed"].astype("Int64")
    frame = frame.dropna(axis=1, how="all")
    for suffix in ("csv", "parquet"):
        results.write(frame, inputs.folder / f"results.{suffix}")

    methods = {name: [cell for cell in cells if cell.method == name] for name in (*study.method_names, RANDOM)}
    stacked = {name: np.stack([answers[cell.name] for cell in own]) for name, own in methods.items()}
    stacked[MAJORITY] = inputs.target.baseline[None]
    draws = resampled_scores(inputs.target.score, stacked)
    means = frame.groupby("method", sort=False)["value"].mean()
    summary = _summary(frame, means, draws)
    results.write(summary, inputs.folder / "summary.csv")
    differences = _differences(summary, means, draws, stacked)
    results.write(differences, inputs.folder / "differences.csv")
    _draw(study, inputs, frame, summary, cells)
    write_text_atomic(inputs.folder / "config.yaml", yaml.safe_dump(asdict(study), sort_keys=False))
    reference = differences["reference"].iloc[0]
    return summary.merge(
        differences.set_index("method")[["difference", "low", "high"]].add_prefix("paired_"),
        how="left", left_on="method", right_index=True,
    ).assign(reference=reference)  # fmt: skip


def _finished(cell: Cell, study: CompareStudy) -> dict[str, Any]:
    facts = cell.read(study.output)
    if facts is None:
        raise UserError(f"{cell.name} is not finished: run the same command again")
    return facts


def _answers(cell: Cell, study: CompareStudy, inputs: CompareInputs) -> Answers:
    """Return a cell's answers [n] in the order of the target's examples."""
    path, target = cell.folder(study.output) / PREDICTIONS, inputs.target
    try:
        frame = pd.read_parquet(path).set_index("id")
        answers = frame["answer"].loc[target.table.ids]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is missing or does not fit the test split: remove {path.parent}") from error
    return answers.to_numpy(dtype=np.float32)


def _row(
    study: CompareStudy, inputs: CompareInputs, cell: Cell, facts: dict[str, Any], answers: Answers
) -> dict[str, Any]:
    prompt = cell.folder(study.output) / PROMPT
    own = {key: value for key, value in facts.items() if key not in ("rate", "seed", "method")}
    return {
        "task": inputs.target.task.name,
        "backbone": study.backbone,
        "prompt": str(prompt) if prompt.is_file() else None,
        "seed": cell.seed,
        **inputs.target.scored(answers),
        "method": cell.method,
        **own,
    }


def _majority(study: CompareStudy, inputs: CompareInputs) -> dict[str, Any]:
    target = inputs.target
    return {
        "task": target.task.name,
        "backbone": study.backbone,
        **target.scored(target.baseline),
        "method": MAJORITY,
        "trained_parameters": 0,
        "stored_bytes": 0,
    }


def _summary(frame: pd.DataFrame, means: pd.Series, draws: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
    """Return one row per method: mean over seeds, interval over examples and seeds, mean costs."""
    rows = []
    for name, mine in frame.groupby("method", sort=False):
        low, high = interval(draws[str(name)])
        first = mine.iloc[0]
        costs = {key: mine[key].mean() for key in AVERAGED if key in mine}
        facts = {key: first[key] for key in ("learning_rate", "dtype", "layout", "attention") if key in mine}
        rows.append(
            {
                **{key: first[key] for key in ("task", "backbone", "split", "metric", "n")},
                "method": name,
                "seeds": len(mine),
                **{"value": means[name], "low": low, "high": high},
                **costs,
                **facts,
            }
        )
    for row in rows:
        row |= {key: int(row[key]) for key in ("trained_parameters", "stored_bytes")}
    order = {name: place for place, name in enumerate([*draws])}
    rows.sort(key=lambda row: order[row["method"]])
    return results.table(rows).dropna(axis=1, how="all")


def _differences(
    summary: pd.DataFrame, means: pd.Series, draws: Mapping[str, NDArray[np.float64]], answers: Mapping[str, Answers]
) -> pd.DataFrame:
    """Return each method's score minus the prompt's on the same examples (without a prompt, the first method's)."""
    reference = "prompt" if "prompt" in answers else next(iter(answers))
    rows = []
    for name in answers:
        if name == reference:
            continue
        low, high = interval(draws[name] - draws[reference])
        first = summary.iloc[0]
        rows.append(
            {
                **{key: first[key] for key in ("task", "backbone", "split", "metric", "n")},
                **{"method": name, "reference": reference, "seeds": len(answers[name])},
                **{"difference": means[name] - means[reference], "low": low, "high": high},
            }
        )
    return pd.DataFrame(rows)


def _draw(
    study: CompareStudy, inputs: CompareInputs, frame: pd.DataFrame, summary: pd.DataFrame, cells: list[Cell]
) -> None:
    ax = comparison_plots.scores(summary, frame, TITLES)
    plots.save(ax, inputs.folder / "compare.png", captions.COMPARISON)
    curves = []
    for cell in cells:
        path = cell.folder(study.output) / CONVERGENCE
        if path.is_file():
            curves.append(pd.read_csv(path).assign(method=cell.method, seed=cell.seed))
    if curves:
        metric, majority = inputs.target.task.metric, float(curves[0]["majority"].iloc[0])
        evaluations = pd.concat(curves, ignore_index=True)
        results.write(evaluations, inputs.folder / "curves.csv")
        ax = comparison_plots.curves(evaluations, TITLES, metric, majority)
        plots.save(ax, inputs.folder / "curves.png", captions.COMPARISON_CURVES)
