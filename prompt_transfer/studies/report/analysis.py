"""Report sections of indicators, convergence and projections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from prompt_transfer.analysis import captions, curves, indicator_plots
from prompt_transfer.analysis.indicators import INDICATORS
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
from prompt_transfer.studies.report.convergence_curves import curve_figure
from prompt_transfer.tasks.registry import display_name

ENDS = ("low", "high")
PER_LAYER = "neuron_overlap_per_layer"
SAME_TASK = "the same task"
FEW = "too few sources or targets"


def read(path: Path) -> pd.DataFrame:
    """Read a CSV or Parquet table."""
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def indicators(path: Path) -> Section:
    """Return the section of `analyze indicators`, from its `correlations.csv`."""
    frame = read(path)
    whole = frame[~frame["indicator"].str.contains("/")]
    statistics = {
        name: title for name, title in indicator_plots.STATISTIC_LABELS.items() if name in set(whole["statistic"])
    }
    statistics |= {name: name.replace("_", " ") for name in whole["statistic"].unique() if name not in statistics}
    ranked = "spearman_per_target" if "spearman_per_target" in statistics else next(iter(statistics))
    found = Section("Indicators of transfer", "", "analyze indicators", path.parent)
    tasks = counted(int(frame["tasks"].max()), "task")
    found.lead = f"How well {counted(whole['indicator'].nunique(), 'indicator')} rank the sources of {tasks}."
    values = whole[whole["statistic"] == ranked].dropna(subset=["value"])
    best = values.sort_values("value", ascending=ranked.startswith("regret"))
    for row in records(best.head(3)):
        name = indicator_plots.readable_name(str(row["indicator"]))
        found.tiles.append(Tile(name, number(row["value"], 2), f"{statistics[ranked]}, {_interval(row)}"))
    if len(best) > 3:
        found.tile_note = f"The three best of {len(best)} indicators by this statistic: the best of many is lucky too."
    found.charts.append(_ranking(whole, statistics, ranked))
    if frame["indicator"].str.startswith(f"{PER_LAYER}/").any():
        found.charts.append(_layers(frame, statistics))
        found.figures.append(
            Figure("layers", captions.INDICATOR_LAYERS, lambda: indicator_plots.layer_curve(frame, ranked))
        )
    found.figures.insert(
        0, Figure("ranking", captions.RANKING, lambda: indicator_plots.indicator_ranking(whole, ranked))
    )
    found.tables.append(_statistics_table(whole, statistics))
    return found


def _interval(row: dict[str, object]) -> str:
    return f"[{number(row['low'], 2)}, {number(row['high'], 2)}]" if row["low"] is not None else "no interval"  # type: ignore[arg-type]


def _ranking(whole: pd.DataFrame, statistics: dict[str, str], ranked: str) -> Chart:
    value = Column("value", "", "number", ends=ENDS)
    rows = [
        {
            **row,
            "name": indicator_plots.readable_name(str(row["indicator"])),
            "group": group_of(str(row["indicator"])),
            "text": value.text(row),
            "p": Column("p_value", "", "number").text(row),
        }
        for row in records(whole)
        if row["value"] is not None
    ]
    order = whole[whole["statistic"] == ranked].sort_values("value", ascending=False)["indicator"]
    spec = charts.dots(
        "Statistic of every indicator with its interval",
        rows,
        charts.axis("name", [indicator_plots.readable_name(name) for name in order], None),
        "value",
        ("none", []),
        {
            "name": "indicator",
            "group": "needs",
            "text": "value [95 % interval]",
            "p": "p (permutation)",
            "tasks": "tasks",
        },
    )
    colour = charts.groups("group", list(dict.fromkeys(str(row["group"]) for row in rows)))
    for layer in spec["layer"]:
        layer["encoding"]["color"] = colour["color"]
    spec["layer"][-1]["encoding"] |= colour
    spec["params"] = [{"name": "statistic", "value": ranked}]
    spec["transform"] = [{"filter": "datum.statistic == statistic"}]
    caption = (
        "Intervals are 95 % bootstraps over tasks. A confounder ignores what prompts do: an indicator must beat it."
    )
    options = {ranked: statistics[ranked], **statistics}
    return Chart("indicators", "Indicators", spec, caption, [Control("statistic", "Statistic", options)])


def group_of(indicator: str) -> str:
    """Return the inputs that an indicator needs."""
    row = INDICATORS.get(indicator.partition("/")[0])
    return row.group if row else "other"


def _layers(frame: pd.DataFrame, statistics: dict[str, str]) -> Chart:
    mine = frame[frame["indicator"].str.startswith(f"{PER_LAYER}/")]
    value = Column("value", "", "number", ends=ENDS)
    rows = [
        {
            **row,
            "x": int(str(row["indicator"]).rpartition("/")[2]),
            "y": row["value"],
            "series": "one layer",
            "text": value.text(row),
        }
        for row in records(mine)
        if row["statistic"] in statistics
    ]
    first = str(rows[0]["statistic"])
    hover = {"x": "layer", "text": "value [95 % interval]"}
    spec = charts.lines(
        "Statistic of ON by layer",
        rows,
        ("layer, from the input", "value"),
        ("series", ["one layer"]),
        hover,
        {"select": ("statistic", first)},
    )
    options = {name: title for name, title in statistics.items() if name in {row["statistic"] for row in rows}}
    control = Control("statistic", "Statistic", {first: statistics[first], **options})
    return Chart(
        "layers",
        "ON of single layers",
        spec,
        "The best of several layers is more likely to be good by chance.",
        [control],
    )


def _statistics_table(whole: pd.DataFrame, statistics: dict[str, str]) -> Table:
    rows = [
        {
            **row,
            "indicator": indicator_plots.readable_name(str(row["indicator"])),
            "group": group_of(str(row["indicator"])),
            "statistic": statistics[str(row["statistic"])],
        }
        for row in records(whole)
    ]
    columns = [
        Column("indicator", "indicator"),
        Column("statistic", "statistic"),
        Column("value", "value", "number", ends=ENDS, missing=FEW),
        Column("p_value", "p", "number", missing="not tested"),
        Column("group", "needs"),
        Column("tasks", "tasks", "number", 0),
        Column("pairs", "pairs", "number", 0),
    ]
    return Table(
        "indicators", "Statistics of all indicators", columns, rows, "p: one-sided permutation test over tasks."
    )


def convergence(path: Path) -> Section:
    """Return the section of `analyze convergence`, from its `speedups.csv`."""
    frame = read(path)
    found = Section("Convergence", "", "analyze convergence", path.parent)
    sources = frame.loc[frame["task"] != "all", ["task", "source"]]
    start = "another task's prompt" if (sources["task"] != sources["source"]).any() else "a prompt of the same task"
    found.lead = f"Speed-up of training that starts from {start}, against the same run from scratch."
    steps = frame[frame["unit"] == "step"]
    for row in records(steps[steps["task"] == "all"]):
        kind = f", {row['source']}" if row["source"] else ""
        found.tiles.append(
            Tile(f"{row['measure']} speed-up{kind}", str(row["result"]).split(";")[0], f"{row['n']} pairs, in steps")
        )
    value = Column("value", "", "number", 2, ENDS)
    rows = [
        {
            **row,
            "name": f"{_start(row)} → {display_name(row['task'])}",
            "text": ("at least " if row["at_least"] else "") + value.text(row),
            "bound": bool(row["at_least"]),
            # A lower bound has no upper end.
            "high": None if row["at_least"] else row["high"],
        }
        for row in records(steps[steps["task"] != "all"])
        if row["value"] is not None
    ]
    if rows:
        order = list(dict.fromkeys(str(row["name"]) for row in rows))
        spec = charts.dots(
            "Speed-up in steps by source and target",
            rows,
            charts.axis("name", order, None),
            "times faster than from scratch, in steps",
            ("measure", list(dict.fromkeys(str(row["measure"]) for row in rows))),
            {
                "name": "source → target",
                "measure": "measure",
                "text": "speed-up [95 % interval]",
                "n": "pairs",
                "result": "result",
            },
            reference=1,
        )
        caption = (
            "Geometric means over seeds. 1: as fast as training from scratch. Open marks: lower bounds, without an "
            "interval. Runs that never reach the score are missing here; the table counts them."
        )
        found.charts.append(Chart("speedups", "Speed-ups", spec, caption))
        found.figures.append(Figure("speedups", captions.SPEEDUPS, lambda: curves.speedups(frame)))
    evaluations = path.with_name("curves.csv")
    if evaluations.is_file():
        found.charts.append(curve_chart(pd.read_csv(evaluations)))
        found.figures.insert(0, curve_figure(evaluations))
    columns = [
        Column("task", "target", "task"),
        Column("source", "source", missing="all sources"),
        Column("measure", "measure"),
        Column("unit", "unit"),
        Column("value", "value", "number", 2, ENDS, "no run reached it"),
        Column("n", "pairs", "number", 0),
        Column("at_least", "at least", "number", 0),
        Column("not_reached", "not reached", "number", 0),
        Column("not_learned", "did not learn", "number", 0),
        Column("result", "result"),
    ]
    named = [{**row, "source": _start(row)} for row in records(frame)]
    found.tables.append(Table("speedups", "Speed-ups", columns, named))
    runs = path.with_name("runs.csv")
    if runs.is_file():
        found.tables.append(_runs_table(pd.read_csv(runs)))
    return found


def _start(row: Mapping[str, Any]) -> str | None:
    """Return the display name of the source of a run's start; None for a run from scratch."""
    if not row.get("source"):
        return None
    return SAME_TASK if row["source"] == row["task"] else display_name(row["source"])


def curve_chart(frame: pd.DataFrame) -> Chart:
    """Return learning curves.

    Args:
        frame: columns task, seed, step, value, majority, and either source (empty: from scratch) or start, the text of
            the legend.
    """
    rows = []
    for row in records(frame):
        source = _start(row)
        start = str(row.get("start") or (f"from {source}" if source else "from scratch"))
        label = {"start": start, "line": f"{start} {row.get('seed')}", "name": display_name(row["task"])}
        rows.append(
            {
                **label,
                "x": row["step"],
                "y": row["value"],
                "majority": row.get("majority"),
                "seed": row.get("seed"),
                "text": number(float(row["value"]), 3),
            }
        )
    tasks = list(dict.fromkeys(str(row["name"]) for row in rows))
    starts = sorted({str(row["start"]) for row in rows}, key=lambda start: (start != "from scratch", start))
    hover = {"start": "start", "seed": "seed", "x": "step", "text": "score", "majority": "majority class"}
    spec = charts.lines(
        "Learning curves",
        rows,
        ("optimizer steps", "score on validation"),
        ("start", starts),
        hover,
        {"select": ("name", tasks[0]), "reference": "majority"},
    )
    return Chart(
        "curves",
        "Learning curves",
        spec,
        "One line per run. Dashed: majority class.",
        [Control("name", "Task", {task: task for task in tasks})],
    )


def _runs_table(frame: pd.DataFrame) -> Table:
    columns = [
        Column("task", "task", "task"),
        Column("source", "source", missing="from scratch"),
        Column("seed", "seed", "number", 0),
        Column("start", "score at step 0", "number"),
        Column("best", "best", "number"),
        Column("step", "converged at step", "number", 0),
        Column("area", "mean score in training", "number"),
        Column("majority", "majority class", "number"),
        Column("learned", "learned"),
    ]
    return Table("runs", "Runs", columns, [{**row, "source": _start(row)} for row in records(frame)])
