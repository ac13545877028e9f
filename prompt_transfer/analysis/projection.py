"""The figure of a projection study."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from prompt_transfer.analysis.style import task_labels

# Markers and sizes: large for own and projected prompts, small for the controls.
MARKS = {
    "own": ("D", 34),
    "projected": ("o", 44),
    "shuffled_source": ("v", 22),
    "constant_source": ("s", 18),
    "mean_source": ("P", 24),
    "least_squares": ("x", 26),
    "relative": ("+", 32),
    "random_vocabulary": (".", 30),
}


def scores_figure(table: pd.DataFrame) -> Axes:
    """Draw one panel per projector: scores of each kind of prompt by task, tasks grouped; a dash is the baseline.

    Args:
        table: table of `prompt_transfer.studies.projection.study.projection`.

    Returns:
        The axes of the first panel; its figure holds all panels.
    """
    table = table[table["metric"].notna()]
    names = list(dict.fromkeys(table["projector"]))
    order = {"trained": 0, "same_type": 1, "other_type": 2}
    tasks = list(dict.fromkeys(table.sort_values("group", key=lambda groups: groups.map(order), kind="stable")["task"]))
    groups = dict(zip(table["task"], table["group"], strict=True))
    names_of = dict(zip(tasks, task_labels(tasks), strict=True))
    labels = [
        names_of[task] if groups[task] == "other_type" else f"{names_of[task]} ({groups[task].replace('_', ' ')})"
        for task in tasks
    ]
    # Inches for labels, legend and panels.
    width = 0.085 * max(map(len, labels)) + 1.8 + 2.6 * len(names)
    figure, grid = plt.subplots(
        1, len(names), figsize=(width, 1.6 + 0.3 * len(tasks)), layout="constrained", squeeze=False, sharey=True
    )
    colours = dict(zip(MARKS, sns.color_palette("colorblind", len(MARKS)), strict=True))
    for ax, name in zip(grid.flat, names, strict=True):
        mine = table[table["projector"] == name]
        for what, (marker, size) in MARKS.items():
            some = mine[(mine["what"] == what) & mine["value"].notna()]
            if some.empty:
                continue
            places = [float(tasks.index(task)) for task in some["task"]]
            if what in ("projected", "own"):
                # Own prompts below, so that the two intervals of a task are both visible.
                places = [place + (0.18 if what == "own" else -0.08) for place in places]
                ax.hlines(places, some["low"], some["high"], color=colours[what], linewidth=1)
            ax.scatter(
                some["value"],
                places,
                marker=marker,
                s=size,
                color=[colours[what]],
                label=task_labels([what])[0].replace("_", " "),
            )
        chance = mine[mine["what"] == "baseline"]
        ax.scatter(chance["value"], [tasks.index(task) for task in chance["task"]], marker="|", s=90, color="0.4",
                   label="majority class")  # fmt: skip
        ax.set_title(f"{name}\ncosine between projections {_number(mine['cosine'].iloc[0])}", fontsize=9)
        ax.set_xlabel("score")
        ax.grid(axis="y", color="0.92")
        ax.set_axisbelow(True)
        sns.despine(ax=ax)
    grid.flat[0].set_yticks(range(len(tasks)), labels)
    grid.flat[0].invert_yaxis()
    handles, titles = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside right upper", frameon=False, fontsize=8)
    return grid.flat[0]


def _number(value: float) -> str:
    """Format a cosine; a dash for one projection, which has none."""
    return "\N{EN DASH}" if pd.isna(value) else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
