"""What all figures share: names of tasks, colour scales, cells with numbers. One place for the look in print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from numpy.typing import ArrayLike

from prompt_transfer.tasks.registry import display_name

# Lightness grows steadily, so the scale is readable in black and white; distinct for colour-blind readers too.
COLOURS = "viridis"
# Numbers are written into the cells of matrices up to this size.
MOST_CELLS = 20
RANDOM_NAMES = {"random_vocabulary": "random tokens", "random_uniform": "random uniform"}


def task_labels(names: Iterable[object]) -> list[str]:
    """Return the display names of tasks, random prompts and baselines."""
    return [RANDOM_NAMES.get(str(name)) or display_name(name) for name in names]


def type_label(name: str) -> str:
    """Return the display name of a task type."""
    return {"nli": "NLI", "qa": "QA", "all": "all targets"}.get(name, name)


def colour_range(values: ArrayLike, noise: float = 0.0) -> tuple[float, float]:
    """Return the ends of a colour scale: those of the data, or a range as wide as the noise if the data is narrower.

    Args:
        values: the shown numbers; NaN are ignored.
        noise: difference that may be chance: the width of an interval. Colours must not show less.
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    least = max(noise, 1e-9)
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    return low, high


def range_label(label: str, low: float, high: float) -> str:
    """Return the label of a colour bar with the range of its colours."""
    return f"{label} ({low:.2f} to {high:.2f})".replace("-", "\N{MINUS SIGN}")


def draw_cells(
    table: pd.DataFrame, ax: Axes, label: str, noise: float = 0.0, texts: pd.DataFrame | None = None
) -> Colorbar | None:
    """Draw a matrix as coloured cells with a colour bar, and numbers in the cells of a small matrix.

    Missing cells are grey, with a dash.

    Args:
        table: values of the colours, with readable names in rows and columns.
        ax: axes to draw on.
        label: name of the values, for the colour bar; the range is added.
        noise: see `colour_range`.
        texts: numbers in the cells, if they are not the values.

    Returns:
        The colour bar; None if no cell has a value.
    """
    low, high = colour_range(table.to_numpy(), noise)
    known = bool(np.isfinite(table.to_numpy(dtype=float)).any())
    small = max(table.shape) <= MOST_CELLS
    shown = table.map(lambda value: f"{value:.2f}".replace("-", "\N{MINUS SIGN}")) if texts is None else texts
    ax.set_facecolor("0.9")
    options: dict[str, Any] = {"annot": shown, "fmt": "", "annot_kws": {"fontsize": 6}} if small else {}
    sns.heatmap(
        table, vmin=low, vmax=high, cmap=COLOURS, ax=ax, linewidths=0.5, xticklabels=True, yticklabels=True,
        cbar=known, cbar_kws={"shrink": 0.75}, **options,
    )  # fmt: skip
    if small:
        # seaborn leaves cells without a colour empty.
        for row, column in zip(*np.nonzero(table.isna().to_numpy()), strict=True):
            text = "\N{EN DASH}" if texts is None else str(texts.iat[row, column])
            ax.text(column + 0.5, row + 0.5, text, fontsize=6, ha="center", va="center")
    turn_labels(ax)
    bar = ax.collections[0].colorbar
    if bar is not None:
        bar.set_label(range_label(label, low, high), fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return bar


def turn_labels(ax: Axes) -> None:
    """Make room for the names of columns: turned by 45 degrees, end at their column."""
    ax.tick_params(axis="both", labelsize=8, length=0)
    ax.tick_params(axis="y", rotation=0)
    for label in ax.get_xticklabels():
        label.set(rotation=45, ha="right", rotation_mode="anchor")
    ax.set(xlabel="", ylabel="")


def cell_size(shape: tuple[int, int], names: Sequence[str], bar: float = 1.0) -> tuple[float, float]:
    """Return the size of a figure in inches: room for every number, or for every name of a large matrix.

    Args:
        shape: rows and columns.
        names: names of the columns and rows.
        bar: width of the colour bar.
    """
    side = 0.34 if max(shape) <= MOST_CELLS else 0.17
    margin = 0.5 + 0.065 * max(map(len, names), default=0)
    return max(3.4, margin + bar + side * shape[1]), max(2.4, margin * 0.8 + 0.3 + side * shape[0])
