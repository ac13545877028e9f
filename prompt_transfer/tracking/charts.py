"""Charts and headline numbers of studies for W&B, made from the tables that the studies left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Frames = Mapping[str, "pd.DataFrame"]
# Presets that every W&B account has. The confusion matrix is the one that draws two kinds of names and a colour.
HEATMAP = "wandb/confusion_matrix/v1"
LINES = "wandb/lineseries/v0"


def heatmap(square: pd.DataFrame, title: str) -> Any:
    """A table with targets in rows (their names in the first column) and sources in columns, as a heatmap."""
    import wandb

    first = square.columns[0]
    cells = square.melt(first, var_name="source", value_name="value").dropna(subset="value")
    rows = [[str(row[first]), str(row["source"]), round(float(row["value"]), 4)] for row in cells.to_dict("records")]
    fields = {"Actual": "target", "Predicted": "source", "nPredictions": "value"}
    return wandb.plot_table(
        HEATMAP, wandb.Table(columns=["target", "source", "value"], data=rows), fields, {"title": title}
    )


def bars(values: Mapping[str, float], title: str) -> Any:
    """Named numbers as bars."""
    import wandb

    table = wandb.Table(columns=["name", "value"], data=[[str(name), float(value)] for name, value in values.items()])
    return wandb.plot.bar(table, "name", "value", title=title)


def curves(frame: pd.DataFrame, line: str, title: str) -> Any:
    """Scores over optimizer steps.

    Args:
        frame: columns step, value, and the one that names the lines.
        line: that column.
        title: of the chart.
    """
    import wandb

    rows = [[int(row["step"]), str(row[line]), float(row["value"])] for row in frame.to_dict("records")]
    fields = {"step": "step", "lineKey": "line", "lineVal": "score"}
    table = wandb.Table(columns=["step", "line", "score"], data=rows)
    return wandb.plot_table(LINES, table, fields, {"title": title, "xname": "optimizer steps"})


def matrix_means(frames: Frames) -> dict[str, float]:
    """Headline of a transfer matrix: `relative/same`, `relative/different`, `relative/random`, ... over all targets."""
    summary = frames.get("summary.csv")
    if summary is None or not len(summary):
        return {}
    rows = summary[(summary["type"] == "all") & (summary["targets"] == "all")].to_dict("records")
    return {f"{row['measure']}/{row['kind']}": float(row["mean"]) for row in rows if row["mean"] == row["mean"]}


def speedups(frames: Frames) -> dict[str, float]:
    """Headline of convergence: geometric means of the speed-ups in steps; without a finite one a row is left out."""
    table = frames["speedups.csv"]
    rows = table[(table["unit"] == "step") & table["value"].notna()].to_dict("records")
    return {
        f"{row['measure']}/{row['task']}"
        + (f" from {row['source']}" if isinstance(row["source"], str) and row["source"] else ""): float(row["value"])
        for row in rows
    }


def overlap(frames: Frames) -> dict[str, float]:
    """Headline of ON: its mean over pairs of different tasks."""
    square = frames["overlap.csv"].set_index("task").to_numpy(float)
    off = [float(value) for row, line in enumerate(square) for column, value in enumerate(line) if row != column]
    return {"mean_overlap": sum(off) / len(off)} if off else {}


def ranking(frames: Frames) -> dict[str, float]:
    """Headline of indicators: how well each ranks sources (mean Spearman per target), the best first.

    Without a transfer matrix: how well each tells types apart (AUC). Single layers are left out.
    """
    table = frames["correlations.csv"]
    known = set(table["statistic"])
    by = "spearman_per_target" if "spearman_per_target" in known else "same_type_auc"
    mine = table[(table["statistic"] == by) & ~table["indicator"].str.contains("/") & table["value"].notna()]
    mine = mine.sort_values("value", ascending=False)
    return {f"{by}/{row['indicator']}": float(row["value"]) for row in mine.to_dict("records")}


def projected(frames: Frames) -> dict[str, float]:
    """Headline of projectors: the mean scores over held-out and other tasks, as the study has worked them out."""
    table = frames["projection.csv"]
    rows = table[table["tasks"].notna() & table["value"].notna()].to_dict("records") if "tasks" in table else []
    return {f"{row['projector']}/{row['task']}/{row['what']}": float(row["value"]) for row in rows}


def masked(frames: Frames) -> dict[str, float]:
    """Headline of masking: points lost by mask, method and share of neurons."""
    rows = frames["summary.csv"].to_dict("records")
    return {f"{row['mask']}/{row['method']}/{row['ratio']}": 100 * float(row["drop"]) for row in rows}


def scored(frames: Frames) -> dict[str, float]:
    """Headline of `test` and `validate`: the prompt's metrics by task, without random prompts and baselines."""
    rows = frames["results.csv"].to_dict("records")
    return {f"{row['task']}/{row['metric']}": float(row["value"]) for row in rows if row["what"] == "this prompt"}


# file of a square table -> title of its heatmap
HEATMAPS = {"matrix.csv": "transfer matrix: score", "overlap.csv": "ON: overlap of activated neurons"}
Headline = Callable[[Frames], dict[str, float]]
