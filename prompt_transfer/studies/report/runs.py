"""Report sections of training: a run of `fit`, and a sweep of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from prompt_transfer.analysis import captions, interval_plots, plots
from prompt_transfer.studies.report import charts
from prompt_transfer.studies.report.analysis import curve_chart
from prompt_transfer.studies.report.content import Chart, Column, Figure, Section, Table, Tile, counted, number, records
from prompt_transfer.tasks.registry import display_name

SCORE = "validation/score"
# Runs of a task with colours of their own.
MOST_RUNS = 8


def fit(path: Path) -> Section:
    """Return the section of a run of `fit`, from its `metrics.csv`."""
    folder = path.parent.parent if path.parent.name == "logs" else path.parent
    log = pd.read_csv(path)
    results = folder / "results.csv"
    rows = records(pd.read_csv(results)) if results.is_file() else []
    trained = ", ".join(dict.fromkeys(display_name(row["task"]) for row in rows)) or folder.name
    found = Section(f"Training: {trained}", "", "fit", folder)
    backbone = ", ".join(dict.fromkeys(str(row["backbone"]) for row in rows if row.get("backbone")))
    steps = int(log["step"].max()) + 1
    found.lead = f"{counted(steps, 'optimizer step')}" + (f" on the backbone {backbone}." if backbone else ".")
    for row in rows[:4]:
        note = f"majority class {number(row['majority'], 3)}" if row.get("majority") is not None else ""
        found.tiles.append(Tile(f"best {row['metric']}, {display_name(row['task'])}", number(row["value"], 3), note))
    majority = next((row["majority"] for row in rows if row.get("majority") is not None), None)
    if SCORE in log:
        evaluations = folder / "convergence.csv"
        curves = pd.read_csv(evaluations) if evaluations.is_file() else pd.DataFrame({"prompt": []})
        if curves["prompt"].nunique() > 1:
            # Of several prompts the log has only the best score.
            several = curves.assign(task=trained, start=curves["prompt"], seed=curves["prompt"])
            found.charts.append(curve_chart(several))
            found.figures.append(Figure("learning_curve", captions.RUNS, lambda: interval_plots.run_curves(several)))
        else:
            found.charts.append(_score_chart(log, majority))
            curve = plots.read_curve(path)
            found.figures.append(
                Figure("learning_curve", captions.LEARNING_CURVE, lambda: plots.learning_curve(curve, majority))
            )
    found.charts += [chart for chart in (_loss_chart(log),) if chart is not None]
    if rows:
        found.tables.append(_results_table(rows))
    if SCORE in log:
        columns = [Column("step", "step", "number", 0), Column(SCORE, "score", "number")]
        columns += [Column("validation/loss", "loss", "number", 4)] if "validation/loss" in log else []
        found.tables.append(
            Table(
                "evaluations",
                "Evaluations",
                columns,
                records(log.dropna(subset=[SCORE]).assign(step=lambda f: f["step"] + 1)),
            )
        )
    return found


def fit_results(path: Path) -> Section:
    """Return the section of a run of `fit` without a log (`--logger none`), from its `results.csv`."""
    rows = records(pd.read_csv(path))
    trained = ", ".join(dict.fromkeys(display_name(row["task"]) for row in rows))
    lead = "The run has no log: --logger csv adds learning curves."
    found = Section(f"Training: {trained}", lead, "fit", path.parent)
    found.tables.append(_results_table(rows))
    return found


def _score_chart(log: pd.DataFrame, majority: float | None) -> Chart:
    rows = [
        {"x": int(row["step"]) + 1, "y": row[SCORE], "series": "prompt", "text": number(float(row[SCORE]), 3)}
        | ({} if majority is None else {"majority": majority})
        for row in records(log.dropna(subset=[SCORE]))
    ]
    options: dict[str, Any] = {} if majority is None else {"reference": "majority"}
    spec = charts.lines(
        "Score on validation by step",
        rows,
        ("optimizer steps", "score on validation"),
        ("series", ["prompt"]),
        {"x": "step", "text": "score"},
        options,
    )
    return Chart(
        "score", "Learning curve", spec, "" if majority is None else f"Dashed: majority class, {number(majority, 3)}."
    )


def _loss_chart(log: pd.DataFrame) -> Chart | None:
    names = {"train/loss": "training", "validation/loss": "validation"}
    rows = [
        {"x": int(row["step"]) + 1, "y": row[column], "series": title, "text": number(float(row[column]), 4)}
        for column, title in names.items()
        if column in log
        for row in records(log.dropna(subset=[column]))
    ]
    if not rows:
        return None
    series = [title for title in names.values() if title in {row["series"] for row in rows}]
    spec = charts.lines(
        "Loss by step",
        rows,
        ("optimizer steps", "loss"),
        ("series", series),
        {"series": "split", "x": "step", "text": "loss"},
    )
    # Every tenth step has a training loss: marks would hide the line.
    spec["layer"][-1]["encoding"] |= {
        "size": {"condition": {"test": "datum.series == 'training'", "value": 8}, "value": 45}
    }
    return Chart("loss", "Loss", spec)


def _results_table(rows: list[dict[str, Any]]) -> Table:
    columns = [
        Column("task", "task", "task"),
        Column("prompt", "prompt"),
        Column("seed", "seed", "number", 0),
        Column("split", "split"),
        Column("metric", "metric"),
        Column("value", "score", "number", ends=("low", "high")),
        Column("n", "examples", "number", 0),
        Column("majority", "majority class", "number"),
        Column("best_step", "best step", "number", 0),
    ]
    return Table(
        "results", "Best scores", [column for column in columns if any(column.key in row for row in rows)], rows
    )


def sweep(path: Path) -> Section:
    """Return the section of a sweep, from its `sweep.csv`: all runs, their scores and learning curves."""
    folder, frame = path.parent, pd.read_csv(path)
    found = Section("Sweep", "", "sweep", folder)
    done = int((frame["status"] == "done").sum())
    found.lead = f"{counted(len(frame), 'run')} of fit, {done} done."
    found.tiles = [
        Tile("runs done", f"{done} of {len(frame)}"),
        Tile("training time", f"{number(frame['seconds'].sum() / 60, 1)} min", "all runs together"),
    ]
    curves = _curves(folder, list(frame["run"].astype(str)))
    if len(curves):
        found.charts.append(curve_chart(curves))
        named = curves.assign(task=curves["task"].map(display_name))
        found.figures.append(Figure("curves", captions.RUNS, lambda: interval_plots.run_curves(named)))
    scores = folder / "results.csv"
    if scores.is_file():
        table = pd.read_csv(scores)
        columns = [Column("run", "run"), Column("task", "task", "task"), Column("seed", "seed", "number", 0)]
        columns += [
            Column(name, name.rpartition(".")[2].replace("_", " "))
            for name in map(str, table)
            if "." in name and name != "data.task"
        ]
        columns += [
            Column("metric", "metric"),
            Column("value", "score", "number"),
            Column("majority", "majority class", "number"),
            Column("best_step", "best step", "number", 0),
        ]
        found.tables.append(
            Table("scores", "Scores of all runs", [column for column in columns if column.key in table], records(table))
        )
    columns = [
        Column("run", "run"),
        Column("status", "status"),
        Column("attempts", "attempts", "number", 0),
        Column("seconds", "seconds", "number", 1),
        Column("error", "error", missing="no error"),
    ]
    found.tables.append(Table("runs", "Runs", columns, records(frame)))
    failed = frame[frame["status"] == "failed"]
    if len(failed):
        found.notes.append(f"{counted(len(failed), 'run')} failed: {', '.join(map(str, failed['run']))}.")
    return found


def _curves(folder: Path, names: list[str]) -> pd.DataFrame:
    """Return the evaluations of all runs, from `convergence.csv` where it exists."""
    tables = []
    for name in names:
        place = folder / "runs" / name
        log, results = place / "convergence.csv", place / "results.csv"
        if not log.is_file() or not results.is_file():
            continue
        tasks = pd.read_csv(results)["task"].unique()
        table = pd.read_csv(log)
        tables.append(table.assign(task="+".join(map(str, tasks)), start=name, seed=table["prompt"]))
    if not tables:
        return pd.DataFrame()
    found = pd.concat(tables, ignore_index=True)
    # More colours than these nobody tells apart.
    if found.groupby("task")["start"].nunique().max() > MOST_RUNS:
        found = found.assign(seed=found["start"] + " " + found["seed"].astype(str), start="runs")
    return found
