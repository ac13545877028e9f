"""Report sections of `prompts recommend` and `quickstart`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from prompt_transfer.analysis import captions, interval_plots
from prompt_transfer.analysis.indicator_plots import STATISTIC_LABELS, readable_name
from prompt_transfer.prompts.recommendation import FACTS
from prompt_transfer.studies.report import charts
from prompt_transfer.studies.report.analysis import group_of
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

ENDS = ("low", "high")
RANDOM_ORDER = "random_order"
USES = ("trained prompt", "random prompt", "majority")


def recommendation(path: Path) -> Section:
    """Return the section of `prompts recommend`, from those of its three tables that are there."""
    folder = path.parent
    found = Section("Recommended sources", "", "prompts recommend", folder)
    table, quality, costs = (folder / f"{name}.csv" for name in ("recommendation", "quality", "costs"))
    parts = []
    if table.is_file():
        frame = pd.read_csv(table)
        targets = ", ".join(display_name(target) for target in frame["target"].unique())
        parts.append(f"{counted(frame['prompt'].nunique(), 'prompt')} as starts for {targets}.")
        found.tables.append(_recommended(frame))
    if quality.is_file():
        frame = pd.read_csv(quality)
        rankings = counted(frame.loc[frame["ranking"] != RANDOM_ORDER, "ranking"].nunique(), "ranking")
        targets = counted(int(frame["targets"].max()), "target")
        parts.append(f"{rankings} of sources, judged by a transfer matrix of {targets}.")
        _judge(found, frame)
    if costs.is_file():
        rows = [{**row, "ranking": readable_name(str(row["ranking"]))} for row in records(pd.read_csv(costs))]
        columns = [Column("ranking", "ranking"), Column("seconds", "seconds", "number", 4), Column("needs", "needs")]
        caption = "Seconds per target, on the machine that ranked."
        found.tables.append(Table("costs", "Costs of the rankings", columns, rows, caption))
    found.lead = " ".join(parts)
    return found


def _recommended(frame: pd.DataFrame) -> Table:
    rankings = [str(name) for name in frame if name not in FACTS]
    columns = [Column("target", "target", "task"), Column("source", "source", "task")]
    columns += [Column(name, readable_name(name), "number") for name in rankings]
    columns += [Column("source_type", "type of the source"), Column("prompt", "prompt")]
    caption = f"Best first, by the first ranking: {readable_name(rankings[0])}. Larger is better in every ranking."
    return Table("recommendation", "Sources by target", columns, records(frame), caption)


def _judge(found: Section, frame: pd.DataFrame) -> None:
    """Add tiles, chart, table and figure of the quality of the rankings."""
    mean = Column("mean", "mean", "number", ends=ENDS)
    rows = [
        {
            **{**row, "name": readable_name(str(row["ranking"])), "value": row["mean"], "text": mean.text(row)},
            "group": group_of(str(row["ranking"])),
        }
        for row in records(frame)
        if row["mean"] is not None
    ]
    statistics = {str(name): STATISTIC_LABELS.get(str(name), str(name)) for name in frame["statistic"].unique()}
    first, title = next(iter(statistics.items()))
    best = sorted((row for row in rows if row["statistic"] == first), key=lambda row: -float(row["value"]))
    for row in best[:3]:
        ends = "no interval" if row["low"] is None else f"[{number(row['low'], 2)}, {number(row['high'], 2)}]"
        found.tiles.append(Tile(str(row["name"]), number(row["value"], 2), f"{title}, {ends}"))
    if len(best) > 3:
        found.tile_note = f"The three best of {len(best)} rankings by {title}, a random order among them."
    spec = charts.dots(
        "Quality of each ranking",
        rows,
        charts.axis("name", [str(row["name"]) for row in best], None),
        "mean over targets",
        ("none", []),
        {"name": "ranking", "group": "needs", "text": "mean [95 % interval]", "targets": "targets", "seeds": "samples"},
    )
    colour = charts.groups("group", list(dict.fromkeys(str(row["group"]) for row in best)))
    for layer in spec["layer"]:
        layer["encoding"]["color"] = colour["color"]
    spec["layer"][-1]["encoding"] |= colour
    spec["params"] = [{"name": "statistic", "value": first}]
    spec["transform"] = [{"filter": "datum.statistic == statistic"}]
    caption = "Means over targets with 95 % bootstrap intervals over targets. A ranking must beat the random order."
    control = Control("statistic", "Statistic", statistics)
    found.charts.append(Chart("quality", "Quality of the rankings", spec, caption, [control]))
    columns = [
        Column("name", "ranking"),
        Column("statistic", "statistic"),
        mean,
        Column("targets", "targets", "number", 0),
        Column("seeds", "samples", "number", 0),
    ]
    named = [{**row, "statistic": statistics[str(row["statistic"])]} for row in rows]
    found.tables.append(Table("quality", "Quality of the rankings", columns, named))
    drawn = pd.DataFrame(best).assign(group="ranking")
    chance = next((float(row["value"]) for row in best if row["ranking"] == RANDOM_ORDER), None)
    draw = Figure("quality", captions.RECOMMENDATION, lambda: interval_plots.dots(drawn, f"{title}, mean", chance))
    found.figures.append(draw)


def quickstart(path: Path) -> Section:
    """Return the section of `quickstart`: the prompt on the task that it was trained on, and on another."""
    rows = records(pd.read_csv(path))
    found = Section("Quick start", "", "quickstart", path.parent)
    found.lead = f"A prompt of {display_name(rows[0]['task'])}, used unchanged on {display_name(rows[-1]['task'])}."
    for row in rows:
        note = ", ".join(f"{use} {number(row[use], 3)}" for use in USES[1:])
        found.tiles.append(Tile(f"accuracy, {display_name(row['task'])}", number(row[USES[0]], 3), note))
    points = [
        {
            "name": f"{display_name(row['task'])}, {row['use']}",
            **{"group": use, "value": row[use], "low": None, "high": None},
            "text": number(float(row[use]), 3),
        }
        for row in rows
        for use in USES
    ]
    spec = charts.dots(
        "Accuracy of the prompt and of its baselines",
        points,
        charts.axis("name", list(dict.fromkeys(str(point["name"]) for point in points)), None),
        "accuracy",
        ("group", USES),
        {"name": "task", "group": "prompt", "text": "accuracy"},
    )
    found.charts.append(Chart("quickstart", "Accuracy", spec, captions.QUICKSTART))
    columns = [Column("task", "task", "task"), Column("use", "use"), *(Column(use, use, "number") for use in USES)]
    found.tables.append(Table("quickstart", "Accuracy", columns, rows, captions.QUICKSTART))
    table = pd.DataFrame(points)
    found.figures.append(Figure("quickstart", captions.QUICKSTART, lambda: interval_plots.dots(table, "accuracy")))
    return found
