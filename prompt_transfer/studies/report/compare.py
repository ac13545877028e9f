"""The report section of `compare`: methods on one task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    """Return the figures of the command: scores and costs, and validation curves where the cells are at hand."""
    tables = [folder / f"results.{suffix}" for suffix in ("parquet", "csv")]
    runs = next((read(path) for path in tables if path.is_file()), pd.DataFrame(columns=["method", "value"]))
    found = [Figure("compare", captions.METHODS, lambda: comparison_plots.scores(summary, runs, titles))]
    curves = [
        pd.read_csv(log).assign(method=row["method"], seed=row["seed"])
        for row in records(runs)
        if (log := folder / "cells" / _cell(row) / "convergence.csv").is_file()
    ]
    if curves:
        metric, majority = str(summary["metric"].iloc[0]), float(curves[0]["majority"].iloc[0])
        table = pd.concat(curves, ignore_index=True)
        found.append(
            Figure("curves", captions.METHOD_CURVES, lambda: comparison_plots.curves(table, titles, metric, majority))
        )
    return found


def _cell(row: Mapping[str, Any]) -> str:
    """Return the name of the folder of a row's cell."""
    seed, rate = row.get("seed"), row.get("learning_rate")
    return f"{row['method']}-seed{seed or 0:.0f}" + ("" if rate is None else f"-lr{rate:g}")
