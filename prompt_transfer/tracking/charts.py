"""W&B charts and headline numbers, computed from the tables of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Frames = Mapping[str, "pd.DataFrame"]
# Presets available to every W&B account. The confusion matrix is the only one with two categorical axes and a color.
HEATMAP = "wandb/confusion_matrix/v1"
LINES = "wandb/lineseries/v0"


def heatmap(square: pd.DataFrame, title: str) -> Any:
    """Return a heatmap of a table with targets as rows (names in the first column) and sources as columns."""
    import wandb

    first = square.columns[0]
    cells = square.melt(first, var_name="source", value_name="value").dropna(subset="value")
    rows = [[str(row[first]), str(row["source"]), round(float(row["value"]), 4)] for row in cells.to_dict("records")]
    fields = {"Actual": "target", "Predicted": "source", "nPredictions": "value"}
    return wandb.plot_table(
        HEATMAP, wandb.Table(columns=["target", "source", "value"], data=rows), fields, {"title": title}
    )


def bars(values: Mapping[str, float], title: str) -> Any:
    """Return a bar chart of named numbers."""
    import wandb

    table = wandb.Table(columns=["name", "value"], data=[[str(name), float(value)] for name, value in values.items()])
    return wandb.plot.bar(table, "name", "value", title=title)


def curves(frame: pd.DataFrame, line: str, title: str) -> Any:
    """Return a line chart of scores over optimizer steps.

    Args:
        frame: columns `step`, `value` and `line`.
        line: column with the name of each line.
        title: chart title.
    """
    import wandb

    rows = [[int(row["step"]), str(row[line]), float(row["value"])] for row in frame.to_dict("records")]
    fields = {"step": "step", "lineKey": "line", "lineVal": "score"}
    table = wandb.Table(columns=["step", "line", "score"], data=rows)
    return wandb.plot_table(LINES, table, fields, {"title": title, "xname": "optimizer steps"})


def matrix_means(frames: Frames) -> dict[str, float]:
    """Return the means of a transfer matrix over all targets: `relative/same`, `relative/different`, ..."""
    summary = frames.get("summary.csv")
    if summary is None or not len(summary):
        return {}
    rows = summary[(summary["type"] == "all") & (summary["targets"] == "all")].to_dict("records")
    return {f"{row['measure']}/{row['kind']}": float(row["mean"]) for row in rows if row["mean"] == row["mean"]}


def speedups(frames: Frames) -> dict[str, float]:
    """Return geometric mean speed-ups in steps; rows without a finite value are skipped."""
    table = frames["speedups.csv"]
    rows = table[(table["unit"] == "step") & table["value"].notna()].to_dict("records")
    return {
        f"{row['measure']}/{row['task']}"
        + (f" from {row['source']}" if isinstance(row["source"], str) and row["source"] else ""): float(row["value"])
        for row in rows
    }


def overlap(frames: Frames) -> dict[str, float]:
    """Return the mean ON over pairs of different tasks."""
    square = frames["overlap.csv"].set_index("task").to_numpy(float)
    off = [float(value) for row, line in enumerate(square) for column, value in enumerate(line) if row != column]
    return {"mean_overlap": sum(off) / len(off)} if off else {}


def ranking(frames: Frames) -> dict[str, float]:
    """Return the mean Spearman correlation per target of each indicator, best first.

    Without a transfer matrix: the AUC of separating same-type pairs. Single-layer indicators are skipped.
    """
    table = frames["correlations.csv"]
    known = set(table["statistic"])
    by = "spearman_per_target" if "spearman_per_target" in known else "same_type_auc"
    mine = table[(table["statistic"] == by) & ~table["indicator"].str.contains("/") & table["value"].notna()]
    mine = mine.sort_values("value", ascending=False)
    return {f"{by}/{row['indicator']}": float(row["value"]) for row in mine.to_dict("records")}


def projected(frames: Frames) -> dict[str, float]:
    """Return the mean scores of each projector over held-out and other tasks."""
    table = frames["projection.csv"]
    rows = table[table["tasks"].notna() & table["value"].notna()].to_dict("records") if "tasks" in table else []
    return {f"{row['projector']}/{row['task']}/{row['what']}": float(row["value"]) for row in rows}


def masked(frames: Frames) -> dict[str, float]:
    """Return the points lost per mask, method and share of neurons."""
    rows = frames["summary.csv"].to_dict("records")
    return {f"{row['mask']}/{row['method']}/{row['ratio']}": 100 * float(row["drop"]) for row in rows}


def scored(frames: Frames) -> dict[str, float]:
    """Return the prompt's metrics per task, of several prompts their means, without random prompts and baselines."""
    rows = frames["results.csv"].to_dict("records")
    mean = [row for row in rows if str(row["what"]).startswith("mean of ")]
    chosen = mean or [row for row in rows if row["what"] == "this prompt"]
    return {f"{row['task']}/{row['metric']}": float(row["value"]) for row in chosen}


# File of a square table -> heatmap title.
HEATMAPS = {"matrix.csv": "transfer matrix: score", "overlap.csv": "ON: overlap of activated neurons"}
Headline = Callable[[Frames], dict[str, float]]
