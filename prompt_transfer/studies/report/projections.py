"""The report section of projections between backbones."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from prompt_transfer.analysis import captions, projection
from prompt_transfer.studies.report import charts
from prompt_transfer.studies.report.analysis import read
from prompt_transfer.studies.report.content import (
    Chart,
    Column,
    Control,
    Figure,
    Section,
    Table,
    counted,
    records,
)
from prompt_transfer.tasks.registry import display_name

ENDS = ("low", "high")

WHAT = {
    "own": "own prompt",
    "projected": "projected",
    "shuffled_source": "shuffled source",
    "constant_source": "constant source",
    "mean_source": "mean source",
    "least_squares": "least squares",
    "linear_combination": "linear combination",
    "relative": "relative representation",
    "random_vocabulary": "random tokens",
    "random_uniform": "random uniform",
    "baseline": "majority class",
}


def projections(path: Path) -> Section:
    """Return the section of `analyze projection`, from its table."""
    frame = read(path)
    tasks = frame[frame["metric"].notna()] if "metric" in frame else frame
    source = ", ".join(dict.fromkeys(frame["source_backbone"])) if "source_backbone" in frame else "another backbone"
    found = Section("Transfer between backbones", "", "analyze projection", path.parent)
    found.lead = (
        f"Prompts of {source} projected to {', '.join(dict.fromkeys(frame['backbone']))}, "
        f"next to the target's own prompts "
        f"and to all controls: {counted(frame['projector'].nunique(), 'projector')}, "
        f"{counted(tasks['task'].nunique(), 'task')}."
    )
    ahead = ("ahead_low", "ahead_high")
    value, lead = (
        Column("value", "score", "number", ends=ENDS),
        Column("ahead", "projected ahead by", "number", ends=ahead),
    )
    rows = [
        {
            **{key: row.get(key) for key in ("projector", "value", "low", "high", "n", "group")},
            "task": display_name(row["task"]),
            "what": WHAT.get(str(row["what"]), str(row["what"])),
            "text": value.text(row),
            "ahead": lead.text(row),
        }
        for row in records(tasks)
        if row["value"] is not None
    ]
    names = list(dict.fromkeys(str(row["projector"]) for row in rows))
    hover = {
        "task": "task",
        "what": "prompt",
        "text": "score [95 % interval]",
        "ahead": "projected ahead by",
        "n": "examples",
        "group": "group",
    }
    present = [title for title in WHAT.values() if title in {row["what"] for row in rows}]
    spec = charts.dots(
        "Scores of projected prompts and controls",
        rows,
        charts.axis("task", list(dict.fromkeys(str(row["task"]) for row in rows)), None),
        "score",
        ("none", []),
        hover,
    )
    colour = charts.groups("what", present)
    # Intervals of ten controls on one line would hide each other: only those of projected prompts are drawn.
    spec["layer"][0]["transform"] = [{"filter": "datum.what == 'projected'"}]
    for layer in spec["layer"]:
        layer["encoding"]["color"] = colour["color"]
    spec["layer"][-1]["encoding"] |= colour
    spec["height"] = 26 * tasks["task"].nunique()
    spec["params"] = [{"name": "projector", "value": names[0]}]
    spec["transform"] = [{"filter": "datum.projector == projector"}]
    caption = "Line: 95 % interval of the projected prompt over examples; the tooltip and the table have all intervals."
    found.charts.append(
        Chart(
            "projection",
            "Projected prompts and controls",
            spec,
            caption,
            [Control("projector", "Projector", {name: name for name in names})],
        )
    )
    found.tables += [_group_table(frame, lead), _projection_table(tasks, value, lead)]
    found.figures.append(Figure("projection", captions.PROJECTION, lambda: projection.scores_figure(frame)))
    return found


def _group_table(frame: pd.DataFrame, lead: Column) -> Table:
    mine = frame[frame["tasks"].notna()] if "tasks" in frame else frame.iloc[:0]
    rows = [{**row, "what": WHAT.get(str(row["what"]), row["what"])} for row in records(mine)]
    columns = [
        Column("projector", "projector"),
        Column("task", "tasks"),
        Column("what", "prompt"),
        Column("value", "score", "number"),
        lead,
        Column("relative", "relative", "number"),
        Column("cosine", "cosine of projections", "number", 2),
        Column("tasks", "number of tasks", "number", 0),
    ]
    caption = (
        "Ahead: score of the projected prompts minus this one, over the same examples; "
        "a projector beats a control if the interval is above 0."
    )
    return Table("groups", "Means over groups of tasks", columns, rows, caption)


def _projection_table(tasks: pd.DataFrame, value: Column, lead: Column) -> Table:
    rows = [{**row, "what": WHAT.get(str(row["what"]), row["what"])} for row in records(tasks)]
    columns = [
        Column("projector", "projector"),
        Column("task", "task", "task"),
        Column("group", "group"),
        Column("what", "prompt"),
        value,
        lead,
        Column("relative", "relative", "number"),
        Column("n", "examples", "number", 0),
        Column("learned", "learned"),
    ]
    return Table("projection", "Every task", columns, rows)
