"""Figures of indicators: functions that take a table and return Axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from prompt_transfer.analysis.indicators import INDICATORS
from prompt_transfer.analysis.statistics import MIN_PAIRS
from prompt_transfer.analysis.style import cell_size, draw_cells, task_labels

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
# Same type, different type.
PAIR_COLOURS = ("#0072B2", "0.6")
GROUP_COLOURS = {"embeddings": "#0072B2", "neurons": "#009E73", "labels": "#E69F00", "confounder": "0.45"}
# Shapes repeat the groups in black and white.
GROUP_MARKERS = {"embeddings": "o", "neurons": "^", "labels": "s", "confounder": "D"}
STATISTIC_LABELS = {
    "spearman_per_target": "Spearman, mean per target",
    "spearman_pooled": "Spearman, all pairs",
    "spearman_per_target_with_diagonal": "Spearman, mean per target, own prompts included",
    "spearman_pooled_with_diagonal": "Spearman, all pairs, own prompts included",
    "kendall_per_target": "Kendall, mean per target",
    "kendall_pooled": "Kendall, all pairs",
    "ndcg": "nDCG",
    "regret_at_1": "Regret@1",
    "regret_at_3": "Regret@3",
    "same_type_auc": "AUC, same type over different",
    "nearest_neighbour": "nearest neighbour of same type",
    "mean_same_type": "mean over pairs of the same type",
    "mean_different_type": "mean over pairs of different types",
}
CHANCE = {"spearman_per_target": 0.0, "spearman_pooled": 0.0, "same_type_auc": 0.5}


def readable_name(indicator: str) -> str:
    """Return the display name of an indicator: `neuron_overlap_per_layer/03` -> `neuron overlap, layer 3`."""
    name, _, part = indicator.partition("/")
    words = name.replace("_", " ").replace("cka", "CKA").replace("leep", "LEEP")
    # The indicator is a similarity, 1 / (1 + distance).
    words = words.replace("euclidean", "Euclidean similarity,")
    return f"{words.replace(' per ', ', ')} {int(part)}" if part else words


def _label(ax: Axes, x: str, y: str) -> None:
    """Set axis labels, sized for a one-column figure."""
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)


def similarity_matrix(square: pd.DataFrame, types: Sequence[str], label: str, ax: Axes | None = None) -> Axes:
    """Draw a heat map of one indicator, with lines between task types; NaN cells are grey.

    The axes are named target and source only if the indicator depends on the direction.

    Args:
        square: targets in rows, sources in columns, in the same order, grouped by type.
        types: types of the tasks.
        label: label of the colour bar; the range of the colours is added.
        ax: axes to draw on; None: a new figure with room for every number.
    """
    tasks = list(square.index)
    names = task_labels(tasks)
    if ax is None:
        _, ax = plt.subplots(figsize=cell_size(square.shape, names), layout="constrained")
    values = square.loc[:, tasks]
    draw_cells(values.set_axis(names, axis=0).set_axis(names, axis=1), ax, label)
    ends = [index for index in range(1, len(tasks)) if types[index] != types[index - 1]]
    # Black with a white edge: visible between light cells and between dark ones.
    line: dict[str, Any] = {
        "colors": "black",
        "linewidth": 0.8,
        "path_effects": [withStroke(linewidth=3, foreground="white")],
    }
    ax.hlines(ends, 0, len(tasks), **line)
    ax.vlines(ends, 0, len(tasks), **line)
    if not is_symmetric(values):
        _label(ax, "source", "target")
    return ax


def is_symmetric(square: pd.DataFrame) -> bool:
    """Return whether a square table equals its transpose, up to rounding."""
    values = square.to_numpy(dtype=float)
    return bool(np.allclose(values, values.T, rtol=1e-5, atol=1e-7, equal_nan=True))


def indicator_against_transfer(pairs: pd.DataFrame, rho: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw a scatter plot of an indicator against relative transfer, one dot per pair of different tasks.

    Args:
        pairs: columns `value` (of one indicator), `transfer`, `target`, `source`, `target_type`, `source_type`.
        rho: Spearman's rho over these pairs, for the title; NaN, or rho of few pairs, is not printed.
        ax: axes to draw on; None: a new figure 3.5 inches wide.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(3.5, 2.6), layout="constrained")
    shown = pairs[pairs["target"] != pairs["source"]].dropna(subset=["transfer"])
    same = (shown["source_type"] == shown["target_type"]).map({True: "same type", False: "different type"})
    sns.scatterplot(
        x=shown["value"],
        y=shown["transfer"],
        hue=same,
        style=same,
        hue_order=["same type", "different type"],
        style_order=["same type", "different type"],
        palette=list(PAIR_COLOURS),
        s=18,
        linewidth=0.3,
        ax=ax,
    )
    ax.axhline(1, linestyle="--", color="0.5", linewidth=0.8)
    ax.locator_params(axis="x", nbins=4)
    _label(ax, "indicator", "transfer, relative")
    if rho is not None:
        few = len(shown) < MIN_PAIRS or np.isnan(rho)
        text = f"Spearman {DASH}: {len(shown)} pairs" if few else f"Spearman {rho:.2f}, all pairs".replace("-", MINUS)
        ax.set_title(text, fontsize=9)
    ax.legend(frameon=False, title=None, fontsize=7, handletextpad=0.2, loc="best")
    ax.tick_params(labelsize=8)
    sns.despine(ax=ax)
    return ax


def indicator_ranking(
    correlations: pd.DataFrame, statistic: str = "spearman_per_target", ax: Axes | None = None
) -> Axes:
    """Draw a statistic of all indicators, best first, with 95 % intervals over tasks.

    Args:
        correlations: table of `correlation.correlations`.
        statistic: the statistic to draw.
        ax: axes to draw on; None: a new figure 3.5 inches wide.
    """
    rows = correlations[correlations["statistic"] == statistic].dropna(subset=["value"])
    rows = rows.sort_values("value", ascending=statistic.startswith("regret"))
    if ax is None:
        _, ax = plt.subplots(figsize=(3.5, 0.9 + 0.19 * len(rows)), layout="constrained")
    places = np.arange(len(rows))
    groups = [INDICATORS[name.partition("/")[0]].group for name in rows["indicator"]]
    for group, colour in GROUP_COLOURS.items():
        mine = np.array([found == group for found in groups], dtype=bool)
        if mine.any():
            part = rows[mine]
            ax.hlines(places[mine], part["low"], part["high"], colors=colour, linewidth=1.2)
            ax.plot(part["value"], places[mine], GROUP_MARKERS[group], color=colour, markersize=4, label=group)
    if statistic in CHANCE:
        ax.axvline(CHANCE[statistic], linestyle="--", color="0.5", linewidth=0.8)
    ax.tick_params(axis="x", labelsize=8)
    ax.set_yticks(places, [readable_name(name) for name in rows["indicator"]], fontsize=7)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    _label(ax, STATISTIC_LABELS.get(statistic, statistic.replace("_", " ")), "")
    # Above the axes: a long list leaves no free corner inside.
    ax.legend(frameon=False, fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.4, 1.0), handletextpad=0.1)
    sns.despine(ax=ax, left=True)
    ax.tick_params(axis="y", length=0)
    return ax


def layer_curve(
    correlations: pd.DataFrame,
    statistic: str = "spearman_per_target",
    indicator: str = "neuron_overlap_per_layer",
    references: Sequence[str] = ("neuron_overlap",),
    ax: Axes | None = None,
) -> Axes:
    """Draw a statistic of an indicator per layer, with its 95 % interval as a band.

    Args:
        correlations: table of `correlation.correlations`, with rows `indicator/00`, `indicator/01`, ...
        statistic: the statistic to draw.
        indicator: an indicator with one part per layer.
        references: indicators to draw as dashed lines.
        ax: axes to draw on; None: a new figure 3.5 inches wide.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(3.5, 2.6), layout="constrained")
    of = correlations[correlations["statistic"] == statistic]
    rows = of[of["indicator"].str.startswith(f"{indicator}/")].sort_values("indicator")
    layers = rows["indicator"].str.rpartition("/")[2].astype(int)
    ax.plot(layers, rows["value"], "o-", color=GROUP_COLOURS["neurons"], markersize=4, label="one layer")
    ax.fill_between(layers, rows["low"], rows["high"], color=GROUP_COLOURS["neurons"], alpha=0.2, linewidth=0)
    if statistic in CHANCE:
        ax.axhline(CHANCE[statistic], color="0.5", linewidth=0.8)
    for index, name in enumerate(references):
        for value in of.loc[of["indicator"] == name, "value"]:
            label = "all layers" if name == "neuron_overlap" else readable_name(name)
            ax.axhline(value, linestyle=("--", "-.", ":")[index % 3], color="0.2", linewidth=1, label=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label(ax, "layer, from the input", STATISTIC_LABELS.get(statistic, statistic))
    ax.legend(frameon=False, fontsize=7)
    ax.tick_params(labelsize=8)
    sns.despine(ax=ax)
    return ax
