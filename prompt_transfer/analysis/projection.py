"""The figure of a projection study."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from prompt_transfer.analysis.style import task_labels

# Colour, marker, its size and title of each kind of prompt, in the order of the lines of a task.
MARKS = {
    "own": ("#0072B2", "D", 22, "own prompt"),
    "projected": ("#D55E00", "o", 26, "projected"),
    "shuffled_source": ("#009E73", "v", 18, "shuffled source"),
    "constant_source": ("#CC79A7", "s", 15, "constant source"),
    "random_vocabulary": ("0.45", "x", 16, "random tokens"),
}
COLUMNS = 3
# Distance of the lines of a task, as a share of its height.
LINE = 0.16


def scores_figure(table: pd.DataFrame) -> Axes:
    """Draw one panel per projector: scores of each kind of prompt by task; a vertical line is the baseline.

    Projectors that differ only in their seed share a panel: the means of their scores and of the limits of their
    intervals. Every kind of prompt has a line of its own, so no mark hides another.

    Args:
        table: table of `prompt_transfer.studies.projection.study.projection`.

    Returns:
        The axes of the first panel; its figure holds all panels.
    """
    table = table[table["metric"].notna()]
    kinds = {name: re.sub(r"-?seed\d+$", "", name) or name for name in dict.fromkeys(table["projector"])}
    table = table.assign(projector=table["projector"].map(kinds))
    names = list(dict.fromkeys(kinds.values()))
    order = {"trained": 0, "same_type": 1, "other_type": 2}
    tasks = list(dict.fromkeys(table.sort_values("group", key=lambda groups: groups.map(order), kind="stable")["task"]))
    groups = dict(zip(table["task"], table["group"], strict=True))
    labels = [
        name if groups[task] == "other_type" else f"{name} ({groups[task].replace('_', ' ')})"
        for task, name in zip(tasks, task_labels(tasks), strict=True)
    ]
    across = min(COLUMNS, len(names))
    down = -(-len(names) // across)
    # Inches for labels and panels, title and legend.
    size = (0.4 + 0.07 * max(map(len, labels)) + 1.75 * max(2, across), 0.75 + down * (0.7 + 0.36 * len(tasks)))
    figure, grid = plt.subplots(
        down, across, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    for ax in grid.flat[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(grid.flat, names, strict=False):
        _panel(ax, table[table["projector"] == name], tasks)
        count = list(kinds.values()).count(name)
        title = name + (f", {count} seeds" if count > 1 else "")
        cosine = table.loc[table["projector"] == name].drop_duplicates("cosine")["cosine"].mean()
        ax.set_title(f"{title}\ncosine between projections {_number(cosine)}", fontsize=8)
    first = grid.flat[0]
    first.set_yticks(range(len(tasks)), labels)
    first.set_ylim(len(tasks) - 0.5, -0.5)
    figure.supxlabel("score", fontsize=9)
    handles, titles = first.get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return first


def _panel(ax: Axes, table: pd.DataFrame, tasks: list[str]) -> None:
    means = table.groupby(["what", "task"], sort=False)[["value", "low", "high"]].mean()
    for task in range(1, len(tasks)):
        ax.axhline(task - 0.5, color="0.9", linewidth=0.8, zorder=0)
    for number, (what, (colour, marker, size, title)) in enumerate(MARKS.items()):
        if what not in means.index.get_level_values("what"):
            continue
        some = means.loc[what].dropna(subset=["value"])
        places = [tasks.index(task) + LINE * (number - (len(MARKS) - 1) / 2) for task in some.index]
        if what in ("own", "projected"):
            ax.hlines(places, some["low"], some["high"], color=colour, linewidth=1)
        ax.scatter(some["value"], places, marker=marker, s=size, color=colour, label=title, linewidth=1)
    if "baseline" in means.index.get_level_values("what"):
        chance = means.loc["baseline"].dropna(subset=["value"])
        places = [tasks.index(task) for task in chance.index]
        ax.vlines(chance["value"], [place - 0.42 for place in places], [place + 0.42 for place in places],
                  color="0.3", linewidth=1, linestyle=":", label="majority class")  # fmt: skip
    ax.tick_params(labelsize=8)
    ax.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _number(value: float) -> str:
    """Format a cosine; a dash for one projection, which has none."""
    return "\N{EN DASH}" if pd.isna(value) else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
