"""Figures of neurons: functions that take a table and return Axes."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from prompt_transfer.analysis.indicator_plots import PAIR_COLOURS
from prompt_transfer.analysis.masking import KINDS
from prompt_transfer.analysis.style import COLOURS, cell_size, colour_range, draw_cells, range_label, task_labels

# Colour and marker of each kind of mask.
MASK_STYLES = dict(zip(KINDS, (("#D55E00", "o"), ("#E69F00", "s"), ("#0072B2", "^"), ("0.45", "D")), strict=True))


def masking_curve(summary: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw points lost against the share of masked neurons, one line per kind of mask; bars: 95 % interval over tasks.

    The kinds stand next to each other at every share, so that no interval hides another.

    Args:
        summary: table of `analysis.masking.summarize`; each method has its own line style.
        ax: axes to draw on; None: a new figure 4.6 inches wide, with the legend next to the axes.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 2.8), layout="constrained")
    methods = list(dict.fromkeys(summary["method"]))
    shares = sorted(summary["ratio"].unique())
    lines = [(kind, method) for kind in MASK_STYLES for method in methods]
    lines = [(kind, method) for kind, method in lines if len(_of(summary, kind, method))]
    for number, (kind, method) in enumerate(lines):
        rows = _of(summary, kind, method)
        places = rows["ratio"].map(shares.index) + 0.13 * (number - (len(lines) - 1) / 2) * min(1, 6 / len(lines))
        colour, marker = MASK_STYLES[kind]
        style = ("-", "--", ":")[methods.index(method) % 3]
        # NaN, no bar: fewer than three tasks have no interval.
        spread = np.abs(rows[["low", "high"]].to_numpy(float).T - rows["drop"].to_numpy(float))
        label = kind.replace("_", " ") + (f", {method}" if len(methods) > 1 else "")
        ax.errorbar(places, 100 * rows["drop"], yerr=100 * spread, linestyle=style, marker=marker, markersize=4,
                    linewidth=1.2, elinewidth=1, capsize=2, color=colour, label=label)  # fmt: skip
    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.set_xticks(range(len(shares)), [f"{share:.0%}" for share in shares])
    ax.set_xlim(-0.5, len(shares) - 0.5)
    _finish(ax, "share of neurons masked", "points lost")
    ax.legend(
        frameon=False, fontsize=7, title="neurons of", title_fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    return ax


def _of(summary: pd.DataFrame, kind: str, method: str) -> pd.DataFrame:
    return summary[(summary["mask"] == kind) & (summary["method"] == method)].sort_values("ratio")


def activation_heatmap(
    neurons: NDArray[np.float32], names: Sequence[str], bins: int = 120, ax: Axes | None = None
) -> Axes:
    """Draw the share of active neurons: prompts in rows, neurons from the first to the last layer in columns.

    Neurons of a layer are sorted by the number of prompts that activate them and binned: neurons shared by all prompts
    are at the left of each layer, those that distinguish prompts in the middle.

    Args:
        neurons: [N, L, F], active where > 0.
        names: names of the N prompts.
        bins: number of columns over all layers.
        ax: axes to draw on; None: a new figure 7 inches wide, or more for long names.
    """
    active = np.asarray(neurons) > 0
    number, layers, width = active.shape
    each = max(1, min(width, bins // layers))
    columns = []
    for layer in range(layers):
        order = np.argsort(-active[:, layer].sum(axis=0), kind="stable")
        columns += [active[:, layer, part].mean(axis=1) for part in np.array_split(order, each)]
    if ax is None:
        # A letter at 7 points takes 0.06 inches, so long names need a wider figure.
        width = max(7, 4 + 0.06 * max(map(len, names)))
        _, ax = plt.subplots(figsize=(width, 1.2 + 0.17 * number), layout="constrained")
    low, high = colour_range(columns)
    label = range_label("share active", low, high)
    sns.heatmap(np.stack(columns, axis=1), cmap=COLOURS, vmin=low, vmax=high, ax=ax, xticklabels=False,
                yticklabels=names, cbar_kws={"label": label, "shrink": 0.8})  # fmt: skip
    bar = ax.collections[0].colorbar
    assert bar is not None
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    ax.vlines(np.arange(1, layers) * each, 0, number, colors="white", linewidth=1)
    ax.set_xticks((np.arange(layers) + 0.5) * each, [str(layer) for layer in range(layers)], rotation=0)
    ax.tick_params(labelsize=7, length=0)
    ax.tick_params(axis="y", rotation=0)
    ax.set_xlabel("layer; in each its neurons, those that most prompts activate first", fontsize=8)
    return ax


def overlap_dendrogram(square: pd.DataFrame, types: Sequence[str], ax: Axes | None = None) -> Axes:
    """Draw a heat map of ON between tasks, ordered by average-linkage clustering of 1 - ON, with its dendrogram.

    Task names are coloured by type.

    Args:
        square: ON, tasks in rows and columns; NaN on the diagonal is grey.
        types: types of the tasks.
        ax: axes of the heat map, with the dendrogram above; None: a new figure at least 3.6 inches wide.
    """
    names = task_labels(square.index)
    if ax is None:
        width, height = cell_size(square.shape, names)
        _, ax = plt.subplots(figsize=(width, height * 1.15), layout="constrained")
    distance = 1 - (square.to_numpy(float) + square.to_numpy(float).T) / 2
    np.fill_diagonal(distance, 0)
    links = linkage(squareform(distance.clip(min=0), checks=False), "average", optimal_ordering=True)
    top = ax.inset_axes((0, 1.01, 1, 0.18))
    tree = dendrogram(links, ax=top, no_labels=True, color_threshold=0, above_threshold_color="0.3")
    order = tree["leaves"]
    top.set_axis_off()
    whole = square.iloc[order, order]
    names = [names[place] for place in order]
    draw_cells(whole.set_axis(names, axis=0).set_axis(names, axis=1), ax, "ON")
    colours = dict(zip(dict.fromkeys(types), sns.color_palette("dark"), strict=False))
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        for label, place in zip(labels, order, strict=True):
            label.set_color(colours.get(types[place], "black"))
    return ax


def overlap_by_layer(layers: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the mean ON per layer for task pairs of the same and of different types; bars: 95 % interval over pairs.

    Args:
        layers: columns `layer`, `value`, `pair` ("same type", "different type").
        ax: axes to draw on; None: a new figure 3.5 inches wide.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(3.5, 2.6), layout="constrained")
    order = ["same type", "different type"]
    # Next to each other, so that no interval hides another.
    places = layers["layer"] + layers["pair"].map(dict(zip(order, (-0.06, 0.06), strict=True)))
    look = {"palette": list(PAIR_COLOURS), "markers": ["o", "X"], "dashes": False, "markersize": 5}
    sns.lineplot(layers.assign(layer=places), x="layer", y="value", hue="pair", hue_order=order, style="pair",
                 style_order=order, err_style="bars", err_kws={"capsize": 2}, seed=0, ax=ax, **look)  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(ax, "layer, from the input", "ON")
    ax.legend(frameon=False, fontsize=7, title=None)
    return ax


def _finish(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.tick_params(labelsize=8)
    sns.despine(ax=ax)
