"""The report section of `test` and `validate`: prompts next to their baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from prompt_transfer.analysis import captions, interval_plots
from prompt_transfer.studies.report import charts
from prompt_transfer.studies.report.content import (
    Chart,
    Column,
    Figure,
    Section,
    Table,
    Tile,
    counted,
    first_tiles,
    number,
    records,
)
from prompt_transfer.tasks.registry import display_name

ENDS = ("low", "high")
THIS = "this prompt"
# Columns in which experiments of one table may differ -> heading.
SETTINGS = {
    **{"backbone": "backbone", "method": "method", "layout": "layout", "attention": "attention", "dtype": "dtype"},
    **{"calibrated": "calibrated", "split": "split"},
}


def scores(path: Path) -> Section:
    """Return the section of a `test` or `validate` folder: prompts next to random prompts and the majority class.

    Rows of different experiments (another dtype, layout, backbone, seed, ...) keep names of their own.
    """
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    varying = [key for key in SETTINGS if key in frame and _varies(frame, key)]
    rows = _named(records(frame), varying)
    tasks = list(dict.fromkeys(display_name(row["task"]) for row in rows))
    prompts = list(dict.fromkeys(str(row["prompt"]) for row in rows if row["own"]))
    seeds = {row["seed"] for row in rows if row["own"] and row.get("seed") is not None}
    found = Section("Scores", "", "test", path.parent)
    which, whose = ("One prompt", "its") if len(prompts) < 2 else (f"{len(prompts)} prompts", "their")
    found.lead = (
        f"{which} on {', '.join(tasks)} next to {whose} baselines, "
        f"{', '.join(map(str, frame['split'].unique()))} split."
    )
    if varying:
        settings = {tuple(row[f"shown_{key}"] for key in varying) for row in rows if row["own"]}
        found.lead += (
            f" {counted(len(settings), 'setting')} that differ in {', '.join(SETTINGS[key] for key in varying)}."
        )
    shown = Column("value", "score", "number", ends=ENDS)
    points = [{**row, "text": shown.text(row)} for row in rows]
    kinds, names = (list(dict.fromkeys(str(row[key]) for row in rows)) for key in ("what", "name"))
    spec = charts.dots(
        f"Score of the prompt{'s' * (len(prompts) > 1)}, of random prompts and of the majority class",
        points,
        charts.axis("name", names, None),
        "score",
        ("what", kinds),
        {"name": "task", "what": "prompt", "text": "score [95 % interval]", "n": "examples", "prompt": "file"},
    )
    found.charts = [Chart("scores", "Scores and baselines", spec, captions.SCORES)]
    columns = [
        Column("task", "task", "task"),
        Column("what", "prompt"),
        *(Column(f"shown_{key}", SETTINGS[key]) for key in varying if key != "split"),
        Column("metric", "metric"),
        shown,
        *([Column("seed", "seed", "number", 0, missing="a baseline has no seed")] if len(seeds) > 1 else []),
        Column("n", "examples", "number", 0),
        Column("split", "split"),
        *([Column("prompt", "file", missing="a baseline has no file")] if len(prompts) > 1 else []),
    ]
    found.tables = [Table("scores", "Scores and baselines", columns, rows)]
    tiles = [
        Tile(f"{row['metric']}, {display_name(row['task'])}", number(row["value"], 3), _note(row, varying))
        for row in rows
        if row["own"] and row["value"] is not None
    ]
    found.tiles, found.tile_note = first_tiles(tiles, "scores of prompts")
    figure = pd.DataFrame(points).rename(columns={"what": "group"})
    found.figures = [Figure("scores", captions.SCORES, lambda: interval_plots.dots(figure, "score"))]
    return found


def _varies(frame: pd.DataFrame, key: str) -> bool:
    """Return whether the experiments on one task differ in a setting."""
    # Only calibrated rows have a value; in other columns a missing value is that of a baseline.
    return bool(frame.groupby("task")[key].nunique(dropna=key != "calibrated").max() > 1)


def _named(rows: list[dict[str, Any]], varying: Sequence[str]) -> list[dict[str, Any]]:
    """Return rows with unique names.

    Adds `own` (a row of a given prompt), `shown_KEY` (text of a setting), `name` (task, metric and settings), and
    replaces `what` by the name of the prompt where one name and setting has several.
    """
    files = _short(list(dict.fromkeys(str(row["prompt"]) for row in rows if row["what"] == THIS)))
    last: dict[str, Any] = {}
    found = []
    for row in rows:
        # Some baselines have no backbone: they belong to the prompts before them.
        last |= {key: row[key] for key in varying if row.get(key) is not None}
        texts = {key: _text(key, row.get(key) if key == "calibrated" else last.get(key)) for key in varying}
        name = ", ".join([display_name(row["task"]), str(row["metric"]), *filter(None, texts.values())])
        shown = {f"shown_{key}": text for key, text in texts.items()}
        found.append({**row, **shown, "own": row["what"] == THIS, "name": name})
    for name in {row["name"] for row in found}:
        mine = [row for row in found if row["own"] and row["name"] == name]
        same_file = len({row["prompt"] for row in mine}) < len(mine)
        for row in mine if len(mine) > 1 else []:
            seed = f", seed {row['seed']:.0f}" if same_file and row.get("seed") is not None else ""
            row["what"] = (files.get(str(row["prompt"])) or THIS) + seed
    return found


def _text(key: str, value: Any) -> str:
    if key == "calibrated":
        return "calibrated" if value else "not calibrated"
    return "" if value is None else str(value)


def _note(row: dict[str, Any], varying: Sequence[str]) -> str:
    parts = [row[f"shown_{key}"] for key in varying]
    return ", ".join([*filter(None, parts), *([row["what"]] if row["what"] != THIS or not varying else [])])


def _short(paths: Sequence[str]) -> dict[str, str]:
    """Return short names of prompt files: their paths without the common first and last parts."""
    parts = [PurePath(path).parts for path in paths]
    if len(parts) < 2:
        return {}
    first = next((place for place, same in enumerate(zip(*parts, strict=False)) if len(set(same)) > 1), None)
    backwards = [tuple(reversed(some)) for some in parts]
    last = next((place for place, same in enumerate(zip(*backwards, strict=False)) if len(set(same)) > 1), None)
    if first is None or last is None:
        return dict(zip(paths, paths, strict=True))
    return {path: "/".join(some[first : len(some) - last]) for path, some in zip(paths, parts, strict=True)}
