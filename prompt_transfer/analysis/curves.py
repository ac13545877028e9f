"""Convergence curves: the score over steps, of vanilla and of transferred runs."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from prompt_transfer.analysis.convergence import TOLERANCE, Curve
from prompt_transfer.tasks.registry import display_name

COLUMNS = 3


def convergence(curves: Sequence[Curve], tolerance: float = TOLERANCE) -> Axes:
    """Draw one panel per task: the mean score over seeds, with its 95 % interval for several seeds.

    A dot marks the convergence of each run: the first evaluation within `tolerance` of its best. Vanilla runs are
    dashed; the dotted line is the majority class.

    Args:
        curves: curves of one or several tasks.
        tolerance: a fraction.

    Returns:
        The axes of the first panel; its figure holds all panels.
    """
    tasks = list(dict.fromkeys(curve.task for curve in curves))
    across = min(COLUMNS, len(tasks))
    down = -(-len(tasks) // across)
    _, grid = plt.subplots(
        down, across, figsize=(0.8 + 3.4 * across, 1.0 + 2.7 * down), layout="constrained", squeeze=False
    )
    starts = sorted({curve.source for curve in curves if curve.source is not None})
    styles = dict(zip(["vanilla", *starts], ["0.35", *sns.color_palette("colorblind", len(starts))], strict=True))
    for number, ax in enumerate(grid.flat):
        if number >= len(tasks):
            ax.set_axis_off()
            continue
        _panel(ax, [curve for curve in curves if curve.task == tasks[number]], styles, tolerance)
        ax.set_title(display_name(tasks[number]), fontsize=10)
    return grid.flat[0]


def _panel(ax: Axes, curves: Sequence[Curve], colours: dict[str, object], tolerance: float) -> None:
    for start, colour in colours.items():
        mine = [curve for curve in curves if (curve.source or "vanilla") == start]
        if not mine:
            continue
        frame = pd.concat([curve.evaluations for curve in mine], ignore_index=True)
        label = start if start == "vanilla" else f"from {display_name(start)}"
        errorbar = ("ci", 95) if len(mine) > 1 else None
        dashes = "--" if start == "vanilla" else "-"
        sns.lineplot(
            frame, x="step", y="value", color=colour, label=label, errorbar=errorbar, seed=0, linestyle=dashes, ax=ax
        )
        at = [curve.evaluations.iloc[curve.converged(tolerance)] for curve in mine]
        ax.scatter([row["step"] for row in at], [row["value"] for row in at], s=16, color=[colour], zorder=3)
    ax.axhline(curves[0].majority, linestyle=":", color="0.4", linewidth=1)
    ax.set_xlabel("optimizer steps")
    ax.set_ylabel(f"{curves[0].metric} on validation")
    ax.legend(frameon=False, fontsize=8)
    sns.despine(ax=ax)
