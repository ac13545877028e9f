"""Figures of convergence: the score over steps of vanilla and of transferred runs, and the speed-ups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from prompt_transfer.analysis.convergence import MEASURES, TOLERANCE, Curve
from prompt_transfer.tasks.metrics import MIN_TARGETS
from prompt_transfer.tasks.registry import display_name

COLUMNS = 3
UNIT_NAMES = {"step": "optimizer steps", "samples": "examples", "seconds": "seconds"}
VANILLA = "vanilla"
# Marks and dashes of transferred starts, in turn: colours alone are lost in print.
MARKS = "s^Dv*P<X>"
DASHES: tuple[Any, ...] = ("-", (0, (6, 1)), "-.", (0, (1, 0.8)), (0, (3, 1, 1, 1, 1, 1)))
# Ticks of the axis of speed-ups.
RATIOS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32, 64)


def convergence(curves: Sequence[Curve], tolerance: float = TOLERANCE) -> Axes:
    """Draw one panel per task: the mean score over seeds, with its 95 % interval for three or more seeds.

    A mark shows the convergence of each run: the first evaluation within `tolerance` of its best. Vanilla runs are
    dashed; the dotted line is the majority class.

    Args:
        curves: curves of one or several tasks.
        tolerance: a fraction.

    Returns:
        The axes of the first panel; its figure holds all panels.
    """
    tasks = list(dict.fromkeys(curve.task for curve in curves))
    # Four panels fill a square.
    across = 2 if len(tasks) == 4 else min(COLUMNS, len(tasks))
    down = -(-len(tasks) // across)
    figure, grid = plt.subplots(
        down, across, figsize=(0.8 + 3.4 * across, 1.3 + 2.7 * down), layout="constrained", squeeze=False
    )
    starts = sorted({_start(curve) for curve in curves if curve.source is not None})
    styles = {VANILLA: _Style("0.35", "o", "--")} | {
        start: _Style(colour, MARKS[number % len(MARKS)], DASHES[number % len(DASHES)])
        for number, (start, colour) in enumerate(zip(starts, sns.color_palette("colorblind", len(starts)), strict=True))
    }
    for number, ax in enumerate(grid.flat):
        if number >= len(tasks):
            ax.set_axis_off()
            continue
        _panel(ax, [curve for curve in curves if curve.task == tasks[number]], styles, tolerance)
        ax.set_title(display_name(tasks[number]), fontsize=10)
    lines = [
        Line2D([], [], color=own.colour, linestyle=own.dashes, marker=own.marker, markersize=4, label=start)
        for start, own in styles.items()
    ]
    lines.append(Line2D([], [], color="0.4", linestyle=":", linewidth=1, label="majority class"))
    # Outside the axes: curves can be in any corner.
    figure.legend(handles=lines, loc="outside lower center", ncols=max(2, 2 * across), frameon=False, fontsize=8)
    return grid.flat[0]


def _start(curve: Curve) -> str:
    """Return the text of the legend."""
    if curve.source is None:
        return VANILLA
    return "from a prompt of the same task" if curve.source == curve.task else f"from {display_name(curve.source)}"


class _Style(NamedTuple):
    """How a start is drawn."""

    colour: Any
    marker: str
    dashes: Any


def _panel(ax: Axes, curves: Sequence[Curve], styles: dict[str, _Style], tolerance: float) -> None:
    for start, (colour, marker, dashes) in styles.items():
        mine = [curve for curve in curves if _start(curve) == start]
        if not mine:
            continue
        frame = pd.concat([curve.evaluations for curve in mine], ignore_index=True)
        errorbar = ("ci", 95) if len(mine) >= MIN_TARGETS else None
        sns.lineplot(frame, x="step", y="value", color=colour, errorbar=errorbar, seed=0, linestyle=dashes, ax=ax)
        at = [curve.evaluations.iloc[curve.converged(tolerance)] for curve in mine]
        ax.scatter(
            [row["step"] for row in at], [row["value"] for row in at], s=16, color=[colour], marker=marker, zorder=3
        )
    ax.axhline(curves[0].majority, linestyle=":", color="0.4", linewidth=1)
    ax.set_xlabel("optimizer steps")
    ax.set_ylabel(f"{curves[0].metric} on validation")
    sns.despine(ax=ax)


def speedups(summary: pd.DataFrame, unit: str = "step") -> Axes:
    """Draw one panel per measure: the speed-up of each pair of a source and a target, and over all pairs.

    An open mark with an arrow is a lower bound, without an interval. At the right: pairs of runs with a speed-up, of
    all pairs.

    Args:
        summary: table of `prompt_transfer.analysis.convergence.summarise`.
        unit: `step`, `samples` or `seconds`.

    Returns:
        The axes of the first panel; its figure holds all panels.
    """
    mine = summary[(summary["unit"] == unit) & summary["measure"].isin(MEASURES)].fillna({"source": ""})
    pairs = list(dict.fromkeys(zip(mine["task"], mine["source"], strict=True)))
    figure, panels = plt.subplots(
        1, len(MEASURES), figsize=(7.2, 1.1 + 0.3 * len(pairs)), layout="constrained", squeeze=False, sharey=True
    )
    for ax, measure, marker, colour in zip(panels.flat, MEASURES, "os", ("#0072B2", "#E69F00"), strict=True):
        rows = mine[mine["measure"] == measure].set_index(["task", "source"])
        for place, pair in enumerate(pairs):
            row = rows.loc[pair]
            value, bound = row["value"], row["at_least"] > 0
            known = row["n"] - row["not_reached"] - row["not_learned"] - row["no_need"]
            ax.annotate(
                f"{known}/{row['n']}", (1.02, place), xycoords=("axes fraction", "data"), fontsize=8, va="center"
            )
            if pd.isna(value):
                continue
            if not bound and not pd.isna(row["low"]):
                ax.hlines(place, row["low"], row["high"], color=colour, linewidth=1.2)
            ax.plot(value, place, marker, color=colour, markerfacecolor="white" if bound else colour, markersize=5)
            if bound:
                ends = {"xy": (1.7 * value, place), "xytext": (value, place)}
                ax.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": colour, "shrinkA": 3})
        ax.annotate("pairs", (1.02, -0.6), xycoords=("axes fraction", "data"), fontsize=7, color="0.4", va="center")
        ax.axvline(1, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
        total = next((place for place, (task, _) in enumerate(pairs) if task == "all"), 0)
        if total:
            ax.axhline(total - 0.5, color="0.8", linewidth=0.8, zorder=0)
        ends = np.abs(np.log2(mine[["value", "low", "high"]].to_numpy(float)))
        span = max(1.0, float(np.nanmax(ends, initial=0)))
        ax.set_xscale("log", base=2)
        ax.set_xlim(2 ** (-span - 0.6), 2 ** (span + 0.9))
        ax.xaxis.set_major_locator(FixedLocator(RATIOS))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
        ax.set_title(measure, fontsize=9)
        ax.tick_params(labelsize=8)
        sns.despine(ax=ax)
    first = panels.flat[0]
    first.set_yticks(range(len(pairs)), [_pair(*pair) for pair in pairs])
    first.set_ylim(len(pairs) - 0.5, -0.5)
    figure.supxlabel(f"speed-up in {UNIT_NAMES[unit]}", fontsize=9)
    return first


def _pair(task: str, source: str) -> str:
    if task == "all":
        return f"all, {source}" if source else "all"
    start = "same task" if source == task else display_name(source)
    return f"{start} \N{RIGHTWARDS ARROW} {display_name(task)}"
