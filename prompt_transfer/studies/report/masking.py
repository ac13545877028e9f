"""The report section of masked neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from prompt_transfer.analysis import captions, neuron_plots
from prompt_transfer.analysis.masking import OVER_RANDOM, summarize
from prompt_transfer.studies.report import charts
from prompt_transfer.studies.report.content import (
    Chart,
    Column,
    Control,
    Figure,
    Section,
    Table,
    Tile,
    counted,
    number,
    records,
)
from prompt_transfer.tasks.registry import display_name

MASKS = {"own": "own", "same_type": "same type", "different_type": "different type", "random": "random"}
MASKS[OVER_RANDOM] = "own minus random"


def masking(path: Path) -> Section:
    """Return the section of `neurons mask`, from its table of results."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    summary = summarize(frame)
    points = records(summary)
    found = Section("Masked neurons", "", "neurons mask", path.parent)
    found.lead = (
        f"Points lost when a prompt's activated neurons are masked, in {counted(frame['task'].nunique(), 'task')}: "
        f"{', '.join(display_name(task) for task in frame['task'].unique())}."
    )
    for row in points:
        if row["mask"] == OVER_RANDOM:
            found.tiles.append(
                Tile(
                    f"own minus random, {row['ratio']:.0%}, {row['method']}",
                    f"{number(100 * row['drop'], 1)} points",
                    _ends(row),
                )
            )
    shown = [row for row in points if row["mask"] in MASKS and row["mask"] != OVER_RANDOM]
    methods = list(dict.fromkeys(str(row["method"]) for row in shown))
    kinds = [MASKS[kind] for kind in MASKS if kind in {row["mask"] for row in shown}]
    width = max(row["ratio"] for row in shown) * 0.008
    value = Column("drop", "", "number", 1, ("low", "high"))
    rows = []
    for row in shown:
        kind = MASKS[row["mask"]]
        scaled = {key: None if row[key] is None else 100 * row[key] for key in ("drop", "low", "high")}
        # A small shift keeps the error bars of the kinds apart.
        place = row["ratio"] + width * (kinds.index(kind) - (len(kinds) - 1) / 2)
        rows.append(
            {
                **scaled,
                "x": place,
                "y": scaled["drop"],
                "kind": kind,
                "method": row["method"],
                "ratio": f"{row['ratio']:.0%}",
                "text": value.text(scaled),
                "tasks": row["tasks"],
            }
        )
    spec = charts.lines(
        "Points lost by share of masked neurons",
        rows,
        ("share of neurons masked", "points lost"),
        ("kind", kinds),
        {"kind": "neurons of", "ratio": "masked", "text": "points lost [95 % interval]", "tasks": "tasks"},
        {"select": ("method", methods[0])},
    )
    found.charts.append(
        Chart(
            "masking",
            "Points lost by masks",
            spec,
            "Means over tasks with 95 % intervals over tasks. Random masks have the same size in every layer.",
            [Control("method", "Replaced by", {method: method for method in methods})],
        )
    )
    found.tables += [_mask_table(points), _mask_cells(frame)]
    found.figures.append(
        Figure(
            "masking",
            captions.MASKING.format(tasks=summary["tasks"].max()),
            lambda: neuron_plots.masking_curve(summary),
        )
    )
    return found


def _ends(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return counted(row["tasks"], "task")
    return f"[{number(100 * row['low'], 1)}, {number(100 * row['high'], 1)}], {counted(row['tasks'], 'task')}"


def _mask_table(points: list[dict[str, Any]]) -> Table:
    rows = [
        {
            **row,
            "mask": MASKS.get(row["mask"], row["mask"]),
            **{key: None if row[key] is None else 100 * row[key] for key in ("drop", "low", "high")},
        }
        for row in points
    ]
    columns = [
        Column("mask", "neurons of"),
        Column("method", "replaced by"),
        Column("ratio", "share masked", "number", 2),
        Column("drop", "points lost", "number", 1, ("low", "high")),
        Column("tasks", "tasks", "number", 0),
    ]
    return Table("masking", "Points lost, means over tasks", columns, rows)


def _mask_cells(frame: pd.DataFrame) -> Table:
    rows = [
        {**row, "mask": MASKS.get(str(row["mask"]), row["mask"])} for row in records(frame[frame["mask"] != "none"])
    ]
    columns = [
        Column("task", "task", "task"),
        Column("prompt", "prompt"),
        Column("mask", "neurons of"),
        Column("method", "replaced by"),
        Column("ratio", "share masked", "number", 2),
        Column("value", "score", "number", ends=("low", "high")),
        Column("unmasked", "unmasked", "number"),
        Column("majority", "majority class", "number"),
    ]
    return Table("masks", "Every mask", columns, rows, "95 % bootstrap intervals over examples.")
