"""Report sections of neurons: overlap between tasks, captured activations, masks."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from prompt_transfer.analysis import captions, indicator_plots, neuron_plots
from prompt_transfer.analysis.style import colour_range
from prompt_transfer.studies.report import charts
from prompt_transfer.studies.report.content import (
    Chart,
    Column,
    Figure,
    Section,
    Table,
    Tile,
    counted,
    number,
    records,
)
from prompt_transfer.tasks.metrics import interval_over
from prompt_transfer.tasks.registry import display_name, get_task, task_names

LAYER = "neuron_overlap_per_layer/"
PAIRS = ("same type", "different type")


def overlap(path: Path) -> Section:
    """Return the section of `neurons compare`: `overlap.csv`, and by layer if `overlap.parquet` is next to it."""
    square = pd.read_csv(path).set_index("task")
    square = square[[task for task in square.columns if task in square.index]].loc[list(square.columns)]
    types = [_type_of(task) for task in square.index]
    found = Section("Overlap of activated neurons", "", "neurons compare", path.parent)
    found.lead = f"ON, the cosine of two prompts' activated neurons, between {counted(len(square), 'task')}."
    pairs = _pair_table(square, types)
    for kind in PAIRS:
        values = pairs.loc[pairs["pair"] == kind, "value"]
        if len(values):
            found.tiles.append(Tile(f"ON, {kind}", number(float(values.mean()), 3), counted(len(values), "pair")))
    found.charts.append(_overlap_chart(square))
    columns = [
        Column("one", "task", "task"),
        Column("other", "other task", "task"),
        Column("pair", "types"),
        Column("value", "ON", "number"),
    ]
    found.tables.append(
        Table("overlap", "ON of task pairs", columns, records(pairs), "Means over the prompts (seeds) of both tasks.")
    )
    found.figures.append(
        Figure("overlap", captions.OVERLAP, lambda: indicator_plots.similarity_matrix(square, types, "ON"))
    )
    detail = path.with_suffix(".parquet")
    if detail.is_file():
        layers = _layer_table(pd.read_parquet(detail))
        if len(layers):
            found.charts.append(_layer_chart(layers))
            found.tables.append(_layer_means(layers))
            found.figures.append(
                Figure("overlap_layers", captions.OVERLAP_LAYERS, lambda: neuron_plots.overlap_by_layer(layers))
            )
    return found


def _type_of(task: object) -> str:
    return get_task(str(task)).type if str(task) in task_names() else "unknown"


def _pair_table(square: pd.DataFrame, types: list[str]) -> pd.DataFrame:
    rows, values = [], square.to_numpy(float)
    for one, other in itertools.combinations(range(len(square)), 2):
        same = types[one] == types[other] != "unknown"
        rows.append(
            {
                "one": square.index[one],
                "other": square.index[other],
                "pair": PAIRS[0 if same else 1],
                "value": float(values[one, other]),
            }
        )
    return pd.DataFrame(rows, columns=["one", "other", "pair", "value"])


def _overlap_chart(square: pd.DataFrame) -> Chart:
    names, values = [display_name(task) for task in square.index], square.to_numpy(float).copy()
    # The ON of a single prompt with itself says nothing and would stretch the colours.
    alone = np.isclose(np.diagonal(values), 1)
    values[alone.nonzero()[0], alone.nonzero()[0]] = np.nan
    rows = [
        {
            "one": names[i],
            "other": names[j],
            "value": None if np.isnan(values[i, j]) else float(values[i, j]),
            "framed": False,
            "text": number(float(values[i, j]), 3),
        }
        for i in range(len(names))
        for j in range(len(names))
    ]
    spec = charts.heatmap(
        f"Heat map of the overlap of activated neurons between {len(names)} tasks",
        rows,
        (charts.axis("other", names, None, True), charts.axis("one", names, None)),
        {"value": colour_range(values)},
        {"one": "task", "other": "and", "text": "ON"},
    )
    caption = "Symmetric. Diagonal: overlap of a task's own prompts (seeds). Colours span the shown values."
    return Chart("overlap", "ON between tasks", spec, caption)


def _layer_table(frame: pd.DataFrame) -> pd.DataFrame:
    mine = frame[frame["indicator"].astype(str).str.startswith(LAYER)]
    mine = mine.astype(dict.fromkeys(("indicator", "source", "target", "source_type", "target_type"), str))
    means = (
        mine.groupby(["indicator", "source", "target", "source_type", "target_type"], sort=False)["value"]
        .mean()
        .reset_index()
    )
    means = means[means["source"] < means["target"]]
    same = (means["source_type"] == means["target_type"]) & (means["source_type"] != "unknown")
    return pd.DataFrame(
        {
            "layer": means["indicator"].str.removeprefix(LAYER).astype(int),
            "value": means["value"],
            "pair": same.map({True: PAIRS[0], False: PAIRS[1]}),
        }
    )


def _layer_points(layers: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for (layer, pair), values in layers.groupby(["layer", "pair"])["value"]:
        low, high = interval_over(values.to_numpy())
        rows.append(
            {"layer": layer, "pair": pair, "value": float(values.mean()), "low": low, "high": high, "n": len(values)}
        )
    return records(pd.DataFrame(rows))


def _layer_chart(layers: pd.DataFrame) -> Chart:
    value = Column("value", "", "number", ends=("low", "high"))
    rows = [{**row, "x": row["layer"], "y": row["value"], "text": value.text(row)} for row in _layer_points(layers)]
    spec = charts.lines(
        "ON by layer",
        rows,
        ("layer, from the input", "ON"),
        ("pair", PAIRS),
        {"pair": "task pairs", "x": "layer", "text": "ON [95 % interval]", "n": "pairs"},
    )
    return Chart("overlap_layers", "ON by layer", spec, "Means over task pairs with 95 % intervals over pairs.")


def _layer_means(layers: pd.DataFrame) -> Table:
    columns = [
        Column("layer", "layer", "number", 0),
        Column("pair", "task pairs"),
        Column("value", "ON", "number", ends=("low", "high")),
        Column("n", "pairs", "number", 0),
    ]
    return Table("overlap_layers", "ON by layer", columns, _layer_points(layers))


def backbone_of(path: Path) -> str | None:
    """Return the backbone and the size of captured neurons; None if a file holds none."""
    try:
        with safe_open(path, framework="np") as file:
            if "activations" not in file.keys():  # noqa: SIM118
                return None
            shape = file.get_slice("activations").get_shape()
            return f"{(file.metadata() or {}).get('backbone', '')} {shape}"
    except (SafetensorError, OSError):
        return None


def captured(folder: Path) -> Section:
    """Return the section of `neurons capture`: the share of active neurons of each prompt, by layer."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("*.safetensors")):
        if backbone_of(path) is None:
            continue
        with safe_open(path, framework="np") as file:
            active = file.get_tensor("activations") > 0
            task = (file.metadata() or {}).get("task") or path.parent.name
        name = str(path.relative_to(folder).with_suffix(""))
        rows += [
            {
                "prompt": name,
                "task": display_name(task),
                "layer": layer,
                "share": float(values.mean()),
                "neurons": len(values),
            }
            for layer, values in enumerate(active)
        ]
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    found = Section("Captured neurons", "", "neurons capture", folder)
    layers = 1 + max(int(row["layer"]) for row in rows)
    found.lead = (
        f"Activated neurons of {counted(len(prompts), 'prompt')}: "
        f"{counted(layers, 'layer')} of {rows[0]['neurons']} neurons."
    )
    points = [
        {**row, "x": row["layer"], "y": row["share"], "line": row["prompt"], "text": number(float(row["share"]), 3)}
        for row in rows
    ]
    spec = charts.lines(
        "Share of active neurons by layer",
        points,
        ("layer, from the input", "share of neurons active"),
        ("task", tasks),
        {"prompt": "prompt", "task": "task", "x": "layer", "text": "share active"},
    )
    found.charts.append(
        Chart(
            "active",
            "Active neurons by layer",
            spec,
            "A neuron is active if its activation is above 0 at the answer slot, for the prompt without input.",
        )
    )
    columns = [
        Column("prompt", "prompt"),
        Column("task", "task"),
        Column("layer", "layer", "number", 0),
        Column("share", "share active", "number"),
    ]
    found.tables.append(Table("active", "Active neurons by layer", columns, rows))
    return found
