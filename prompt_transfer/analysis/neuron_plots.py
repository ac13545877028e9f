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

from prompt_transfer.analysis.masking import KINDS

MASK_COLOURS = dict(zip(KINDS, ("C3", "C1", "C0", "0.5"), strict=True))


def masking_curve(summary: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw points lost against the share of masked neurons, one line per kind of mask; bands: 95 % interval over tasks.

    Args:
        summary: table of `analysis.masking.summarize`; each method has its own line style.
        ax: axes to draw on; None: a new figure 4.6 inches wide, with the legend next to the axes.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 2.8), layout="constrained")
    methods = list(dict.fromkeys(summary["method"]))
    for kind, colour in MASK_COLOURS.items():
        for method, style in zip(methods, ("-", "--", ":"), strict=False):
            rows = summary[(summary["mask"] == kind) & (summary["method"] == method)].sort_values("ratio")
            if rows.empty:
                continue
            label = kind.replace("_", " ") + (f", {method}" if len(methods) > 1 else "")
            ax.plot(rows["ratio"], 100 * rows["drop"], style, marker="o", markersize=3, color=colour, label=label)
            ax.fill_between(rows["ratio"], 100 * rows["low"], 100 * rows["high"], color=colour, alpha=0.15, linewidth=0)
    ax.axhline(0, color="0.7", linewidth=0.8)
    _finish(ax, "share of neurons masked", f"points lost, mean over {summary['tasks'].max()} tasks")
    ax.legend(
        frameon=False, fontsize=7, title="neurons of", title_fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    return ax


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
    sns.heatmap(np.stack(columns, axis=1), cmap="viridis", vmin=0, vmax=1, ax=ax, xticklabels=False, yticklabels=names,
                cbar_kws={"label": "share active", "shrink": 0.8})  # fmt: skip
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
    side = max(3.6, 1.6 + 0.2 * len(square))
    if ax is None:
        _, ax = plt.subplots(figsize=(side, side), layout="constrained")
    distance = 1 - (square.to_numpy(float) + square.to_numpy(float).T) / 2
    np.fill_diagonal(distance, 0)
    links = linkage(squareform(distance.clip(min=0), checks=False), "average", optimal_ordering=True)
    top = ax.inset_axes((0, 1.01, 1, 0.18))
    tree = dendrogram(links, ax=top, no_labels=True, color_threshold=0, above_threshold_color="0.3")
    order = tree["leaves"]
    top.set_axis_off()
    whole = square.iloc[order, order]
    ax.set_facecolor("0.9")
    sns.heatmap(whole, cmap="viridis", ax=ax, xticklabels=True, yticklabels=True,
                cbar_kws={"label": "ON", "shrink": 0.7})  # fmt: skip
    colours = dict(zip(dict.fromkeys(types), sns.color_palette("dark"), strict=False))
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        for label, place in zip(labels, order, strict=True):
            label.set_color(colours.get(types[place], "black"))
    ax.tick_params(labelsize=7, length=0)
    ax.tick_params(axis="y", rotation=0)
    plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlabel("")
    ax.set_ylabel("")
    return ax


def overlap_by_layer(layers: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the mean ON per layer for task pairs of the same and of different types; bands: 95 % interval over pairs.

    Args:
        layers: columns `layer`, `value`, `pair` ("same type", "different type").
        ax: axes to draw on; None: a new figure 3.5 inches wide.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(3.5, 2.6), layout="constrained")
    order = ["same type", "different type"]
    sns.lineplot(layers, x="layer", y="value", hue="pair", hue_order=order, palette=["C3", "0.55"], marker="o",
                 markersize=4, seed=0, ax=ax)  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(ax, "layer, from the input", "ON")
    ax.legend(frameon=False, fontsize=7, title=None)
    return ax


def _finish(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.tick_params(labelsize=8)
    sns.despine(ax=ax)
