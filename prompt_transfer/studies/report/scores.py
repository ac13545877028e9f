"""The report section of `test` and `validate`: prompts next to their baselines."""

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
THIS = "this prompt"


def scores(path: Path) -> Section:
    """Return the section of a `test` or `validate` folder: prompts next to random prompts and the majority class."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    rows = records(frame)
    tasks = list(dict.fromkeys(display_name(row["task"]) for row in rows))
    prompts = list(dict.fromkeys(str(row["prompt"]) for row in rows if row["what"] == THIS))
    if len(prompts) > 1:
        rows = [{**row, "what": str(row["prompt"])} if row["what"] == THIS else row for row in rows]
    kinds = list(dict.fromkeys(str(row["what"]) for row in rows))
    found = Section("Scores", "", "test", path.parent)
    which, whose = ("One prompt", "its") if len(prompts) < 2 else (f"{len(prompts)} prompts", "their")
    found.lead = (
        f"{which} on {', '.join(tasks)} next to {whose} baselines, "
        f"{', '.join(map(str, frame['split'].unique()))} split."
    )
    shown = Column("value", "score", "number", ends=ENDS)
    points = [{**row, "name": f"{display_name(row['task'])}, {row['metric']}", "text": shown.text(row)} for row in rows]
    spec = charts.dots(
        f"Score of the prompt{'s' * (len(prompts) > 1)}, of random prompts and of the majority class",
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
        Tile(f"{row['metric']}, {display_name(row['task'])}", number(row["value"], 3), str(row["what"]))
        for row in rows
        if row["what"] in (THIS, *prompts) and row["value"] is not None
    ][:4]
    return found
