"""Figures for print of reports: scores with intervals, and learning curves of many runs."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

MARKERS = "os^Dv<>pPX"
# Runs of a task with colours of their own; more cannot be told apart.
MOST_RUNS = 8
COLUMNS = 3


def dots(table: pd.DataFrame, label: str, reference: float | None = None) -> Axes:
    """Draw values with intervals: one row per name, groups next to each other within a row.

    Args:
        table: columns `name`, `group`, `value`, `low`, `high`; limits may be missing, rows without value are omitted.
        label: label of the value axis.
        reference: position of a dashed line.
    """
    rows = table.dropna(subset=["value"])
    names, groups = list(dict.fromkeys(rows["name"])), list(dict.fromkeys(rows["group"]))
    step = 0.8 / len(groups)
    inches = 0.16 * max(1.6, len(groups)) * len(names)
    width = min(7.0, 3.0 + 0.05 * max(map(len, names), default=0))
    # One legend entry per line where names are long.
    across = 3 if max(map(len, groups), default=0) < 18 else 1
    lines = -(-len(groups) // across) if len(groups) > 1 else 0
    _, ax = plt.subplots(figsize=(width, 0.8 + inches + 0.17 * lines), layout="constrained")
    for number, (group, colour) in enumerate(zip(groups, sns.color_palette("colorblind", len(groups)), strict=True)):
        mine = rows[rows["group"] == group]
        places = [names.index(name) + step * (number - (len(groups) - 1) / 2) for name in mine["name"]]
        ax.hlines(places, mine["low"], mine["high"], colors=[colour], linewidth=1.2)
        marker = MARKERS[number % len(MARKERS)]
        ax.plot(mine["value"], places, marker, color=colour, markersize=4, label=group)
    if reference is not None:
        ax.axvline(reference, linestyle="--", color="0.5", linewidth=0.8)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="x", labelsize=8)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(label, fontsize=9)
    if len(groups) > 1:
        # Above the axes: rows may fill every corner inside.
        anchor = (0.5, 1.0)
        ax.legend(frameon=False, fontsize=7, ncols=across, loc="lower center", bbox_to_anchor=anchor, handletextpad=0.1)
    sns.despine(ax=ax, left=True)
    return ax


def run_curves(table: pd.DataFrame) -> Axes:
    """Draw the score over steps, one panel per task and one line per run; many runs are grey.

    Args:
        table: columns `task` (display names), `start` (name of the run), `seed`, `step`, `value`, `majority`.

    Returns:
        The axes of the first panel; its figure holds all panels.
    """
    tasks = list(dict.fromkeys(table["task"]))
    across = min(COLUMNS, len(tasks))
    down = -(-len(tasks) // across)
    _, grid = plt.subplots(
        down, across, figsize=(0.8 + 3.2 * across, 0.6 + 2.6 * down), layout="constrained", squeeze=False
    )
    for ax, task in zip(grid.flat, tasks, strict=False):
        mine = table[table["task"] == task]
        runs = list(dict.fromkeys(mine["start"]))
        colours = sns.color_palette("colorblind", len(runs)) if len(runs) <= MOST_RUNS else ["0.6"] * len(runs)
        for number, (run, colour) in enumerate(zip(runs, colours, strict=True)):
            for line, (_, points) in enumerate(mine[mine["start"] == run].groupby("seed", sort=False)):
                points = points.sort_values("step")
                marker = MARKERS[number % len(MARKERS)] if len(runs) <= MOST_RUNS else ""
                label = run if not line and len(runs) <= MOST_RUNS else None
                ax.plot(points["step"], points["value"], color=colour, marker=marker, markersize=3, label=label)
        if mine["majority"].notna().any():
            ax.axhline(mine["majority"].max(), linestyle="--", color="0.5", linewidth=0.8)
        ax.set_title(task, fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.tick_params(labelsize=8)
        ax.set_xlabel("optimizer steps", fontsize=9)
        ax.set_ylabel("score on validation", fontsize=9)
        if 1 < len(runs) <= MOST_RUNS:
            ax.legend(frameon=False, fontsize=7)
        sns.despine(ax=ax)
    for ax in grid.flat[len(tasks) :]:
        ax.set_axis_off()
    return grid.flat[0]
