"""The report section of `compare`: methods on one task."""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd

from prompt_transfer.analysis import captions, comparison_plots
from prompt_transfer.studies.report import charts
from prompt_transfer.studies.report.analysis import read
from prompt_transfer.studies.report.content import (
    Chart,
    Column,
    Figure,
    Section,
    Table,
    Tile,
    first_tiles,
    number,
    records,
)
from prompt_transfer.tasks.registry import display_name

ENDS = ("low", "high")


def comparison(path: Path) -> Section:
    """Return the section of a folder of `compare`: scores, paired differences and costs of every method."""
    # Imports torch.
    from prompt_transfer.studies.compare.methods import TITLES

    summary = pd.read_csv(path)
    rows = [{**row, "method": TITLES.get(row["method"], row["method"])} for row in records(summary)]
    first = rows[0]
    found = Section("Methods", "", "compare", path.parent)
    found.lead = (
        f"Methods on {display_name(first['task'])} with {first['backbone']}, {first['split']} split, {first['n']} "
        "examples: same training batches, model selection and test examples."
    )
    value = Column("value", str(first["metric"]), "number", ends=ENDS)
    names = [str(row["method"]) for row in rows]
    spec = charts.dots(
        "Score of each method",
        [{**row, "kind": "mean over seeds", "text": value.text(row)} for row in rows],
        charts.axis("method", names, None),
        str(first["metric"]),
        ("kind", ["mean over seeds"]),
        {"text": "score [95 % interval]", "seeds": "seeds", "n": "examples"},
    )
    found.charts = [
        Chart("methods", "Scores", spec, "Means over seeds with 95 % bootstrap intervals over examples and seeds.")
    ]
    columns = [
        Column("method", "method"),
        value,
        Column("seeds", "seeds", "number", 0),
        Column("trained_parameters", "trained parameters", "number", 0),
        Column("stored_bytes", "bytes per task", "number", 0),
        Column("seconds_to_best", "seconds to the best score", "number", 1),
        Column("seconds", "seconds", "number", 1),
        Column("peak_memory_mib", "peak memory, MiB", "number", 0),
        Column("learning_rate", "learning rate", "number", 5),
    ]
    found.tables = [Table("methods", "Scores and costs", columns, rows)]
    differences = path.with_name("differences.csv")
    if differences.is_file():
        pairs = records(pd.read_csv(differences))
        pairs = [{**row, **{key: TITLES.get(row[key], row[key]) for key in ("method", "reference")}} for row in pairs]
        shown = [
            Column("method", "method"),
            Column("difference", "difference", "number", ends=ENDS),
            Column("reference", "from"),
        ]
        caption = "Paired on the same test examples; 95 % bootstrap intervals over examples and seeds."
        found.tables.append(Table("differences", "Paired differences", shown, pairs, caption))
    tiles = [
        Tile(str(row["method"]), number(row["value"], 3), str(first["metric"]))
        for row in rows
        if row["value"] is not None
    ]
    found.tiles, found.tile_note = first_tiles(tiles, "methods")
    found.figures = _figures(path.parent, summary, TITLES)
    return found


def _figures(folder: Path, summary: pd.DataFrame, titles: dict[str, str]) -> list[Figure]:
    """Return the figures of the command: scores and costs, and validation curves."""
    tables = [folder / f"results.{suffix}" for suffix in ("parquet", "csv")]
    runs = next((read(path) for path in tables if path.is_file()), pd.DataFrame(columns=["method", "value"]))
    found = [Figure("compare", captions.COMPARISON, lambda: comparison_plots.scores(summary, runs, titles))]
    log = folder / "curves.csv"
    if log.is_file():
        evaluations, metric = pd.read_csv(log), str(summary["metric"].iloc[0])
        majority = float(evaluations["majority"].iloc[0])
        draw = functools.partial(comparison_plots.curves, evaluations, titles, metric, majority)
        found.append(Figure("curves", captions.COMPARISON_CURVES, draw))
    return found
