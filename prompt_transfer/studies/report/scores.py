"""The report section of `test` and `validate`: one prompt next to its baselines."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from prompt_transfer.studies.report import charts
from prompt_transfer.studies.report.content import (
    Chart,
    Column,
    Section,
    Table,
    Tile,
    number,
    records,
)
from prompt_transfer.tasks.registry import display_name

ENDS = ("low", "high")


def scores(path: Path) -> Section:
    """Return the section of a `test` or `validate` folder: a prompt next to random prompts and the majority class."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    rows = records(frame)
    tasks = list(dict.fromkeys(display_name(row["task"]) for row in rows))
    kinds = list(dict.fromkeys(str(row["what"]) for row in rows))
    found = Section("Scores", "", "test", path.parent)
    found.lead = (
        f"One prompt on {', '.join(tasks)} next to its baselines, {', '.join(map(str, frame['split'].unique()))} split."
    )
    shown = Column("value", "score", "number", ends=ENDS)
    points = [{**row, "name": f"{display_name(row['task'])}, {row['metric']}", "text": shown.text(row)} for row in rows]
    spec = charts.dots(
        "Score of the prompt, of random prompts and of the majority class",
        points,
        charts.axis("name", list(dict.fromkeys(str(row["name"]) for row in points)), None),
        "score",
        ("what", kinds),
        {"what": "prompt", "text": "score [95 % interval]", "n": "examples", "prompt": "file"},
    )
    found.charts = [Chart("scores", "Scores and baselines", spec, "95 % bootstrap intervals over examples.")]
    columns = [
        Column("task", "task", "task"),
        Column("what", "prompt"),
        Column("metric", "metric"),
        shown,
        Column("n", "examples", "number", 0),
        Column("split", "split"),
    ]
    found.tables = [Table("scores", "Scores and baselines", columns, rows)]
    found.tiles = [
        Tile(f"{row['metric']}, {display_name(row['task'])}", number(row["value"], 3), "this prompt")
        for row in rows
        if row["what"] == "this prompt" and row["value"] is not None
    ][:4]
    return found
