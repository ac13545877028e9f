"""Figures of a comparison of methods: functions that take tables and return Axes."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from prompt_transfer.tasks.metrics import MIN_TARGETS
from prompt_transfer.tasks.registry import display_name

MARKERS = ("D", "o", "s", "^", "v", "P", "X")


def scores(summary: pd.DataFrame, runs: pd.DataFrame, titles: Mapping[str, str]) -> Axes:
    """Draw scores with intervals, and the same marks against trained parameters.

    Args:
        summary: one row per method: `method`, `value`, `low`, `high`, `trained_parameters`, `metric`, `task`, `n`.
        runs: one row per method and seed: `method`, `value`.
        titles: method -> name.

    Returns:
        The axes of the scores; their figure holds both panels.
    """
    colours = dict(zip(summary["method"], sns.color_palette("colorblind", len(summary)), strict=True))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(7.2, 0.9 + 0.38 * len(summary)), layout="constrained", width_ratios=(3, 2), sharex=False
    )
    for place, row in enumerate(summary.to_dict("records")):
        method, value, parameters = str(row["method"]), float(row["value"]), int(row["trained_parameters"])
        error = [[max(0.0, value - row["low"])], [max(0.0, row["high"] - value)]]
        # No names in the right panel: they would cover intervals. Colour and marker are those of the left one.
        style = {"fmt": MARKERS[place % len(MARKERS)], "ms": 5, "capsize": 3, "color": colours[method]}
        left.errorbar(value, place, xerr=error, **style)
        mine = runs.loc[runs["method"] == method, "value"]
        if len(mine) > 1:
            left.scatter(mine, [place + 0.25] * len(mine), s=9, color=colours[method], alpha=0.6)
        if parameters:
            right.errorbar(parameters, value, yerr=error, **style)
        elif method == "majority":
            for draw in (left.axvline, right.axhline):
                draw(value, linestyle="--", color="0.6", linewidth=1, zorder=0)
    first = summary.iloc[0]
    left.set_yticks(range(len(summary)), [titles[name] for name in summary["method"]])
    left.invert_yaxis()
    left.set_xlabel(f"{first['metric']} on {display_name(first['task'])} (test, n = {first['n']})")
    left.xaxis.set_major_locator(MaxNLocator(5))
    right.set_xscale("log")
    right.set_xlabel("trained parameters")
    right.set_ylabel(first["metric"])
    right.margins(x=0.15)
    sns.despine(figure)
    return left


def curves(evaluations: pd.DataFrame, titles: Mapping[str, str], metric: str, majority: float) -> Axes:
    """Draw the validation score against optimizer steps: the mean over seeds, with its range for three or more.

    Args:
        evaluations: columns `method`, `seed`, `step`, `value`.
        titles: method -> name.
        metric: label of the vertical axis.
        majority: score of the majority class.
    """
    _, ax = plt.subplots(figsize=(5.2, 2.8), layout="constrained")
    methods = list(dict.fromkeys(evaluations["method"]))
    for method, colour, marker in zip(methods, sns.color_palette("colorblind", len(methods)), MARKERS, strict=False):
        mine = evaluations[evaluations["method"] == method]
        errorbar = ("pi", 100) if mine["seed"].nunique() >= MIN_TARGETS else None
        sns.lineplot(
            mine, x="step", y="value", errorbar=errorbar, color=colour, marker=marker, markersize=5,
            label=titles[method], ax=ax,
        )  # fmt: skip
    ax.axhline(majority, linestyle="--", color="0.6", linewidth=1, label="majority class")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel("optimizer steps")
    ax.set_ylabel(f"{metric} on validation")
    # Outside the axes: curves can be in any corner.
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    sns.despine(ax=ax)
    return ax
