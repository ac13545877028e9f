"""Figures of transfer matrices."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from prompt_transfer.analysis.matrix import Matrix
from prompt_transfer.analysis.style import cell_size, draw_cells, task_labels, type_label

# Different in lightness too.
KIND_COLOURS = ("#0072B2", "#E69F00", "0.5")
KINDS = {"same": "same type", "different": "different type", "random": "random prompt"}


def transfer_heatmap(matrix: Matrix, clustered: bool = False, ax: Axes | None = None) -> Axes:
    """Draw the transfer matrix as a heat map.

    Colours are relative performance, over the range of the coloured cells; numbers are scores in per cent. A frame
    marks a target's own prompt. Targets without one are grey, and so are targets that were not learned (with a star):
    their relative performance compares noise.

    Args:
        matrix: scores of sources on targets; random prompts and baseline are drawn on the right.
        clustered: order targets and sources by similarity (average linkage of Euclidean distances) instead of by type.
            Targets that were not learned have no influence and come last.
        ax: axes to draw on; None: a new figure sized for the matrix.
    """
    scores = matrix.scores
    rows, columns = matrix.by_type(scores.index), matrix.by_type(scores.columns)
    if clustered:
        others = [name for name in rows if name in matrix.not_learned]
        known = matrix.measured(scores, "relative").drop(index=others)
        if len(known):
            rows = [*(known.index[place] for place in linkage_order(_filled(known))), *others]
            columns = [known.columns[place] for place in linkage_order(_filled(known.T))]
    baseline = matrix.baseline.rename("majority").to_frame().dropna(axis=1, how="all")
    whole = pd.concat([scores[columns], matrix.random, baseline], axis=1).loc[rows]
    names = [
        f"{name} *" if row in matrix.not_learned else name for row, name in zip(rows, task_labels(rows), strict=True)
    ]
    titles = task_labels(whole.columns)
    if ax is None:
        _, ax = plt.subplots(figsize=cell_size(whole.shape, [*names, *titles], 1.3), layout="constrained")
    colours = matrix.measured(whole, "relative")
    colours.loc[colours.index.isin(matrix.not_learned)] = np.nan
    texts = (whole * 100).map(lambda value: "\N{EN DASH}" if pd.isna(value) else f"{value:.0f}")
    # The colour bar of a small matrix is too short for a one-line label.
    about = "relative performance" if whole.shape[0] > 6 else "relative\nperformance\n"
    shown, texts = (table.set_axis(names, axis=0).set_axis(titles, axis=1) for table in (colours, texts))
    draw_cells(shown, ax, about, matrix.noise, texts)
    for row, target in enumerate(rows):
        if target in columns:
            ax.add_patch(Rectangle((columns.index(target), row), 1, 1, fill=False, edgecolor="black", linewidth=1.5))
    if not clustered:
        _separate(ax, [matrix.types.get(name, "") for name in rows], horizontal=True)
        _separate(ax, [matrix.types.get(name, "") for name in columns], horizontal=False)
    ax.axvline(len(columns), color="black", linewidth=2)
    ax.set_xlabel("source of the prompt", fontsize=9)
    ax.set_ylabel("target task", fontsize=9)
    return ax


def _separate(ax: Axes, types: Sequence[str], horizontal: bool) -> None:
    draw = ax.axhline if horizontal else ax.axvline
    for place in range(1, len(types)):
        if types[place] != types[place - 1]:
            draw(place, color="black", linewidth=0.8)


def _filled(table: pd.DataFrame) -> NDArray[np.float64]:
    values = table.to_numpy(dtype=float)
    if np.isnan(values).all():
        return np.zeros(values.shape)
    return np.where(np.isnan(values), np.nanmean(values), values)


def linkage_order(values: NDArray[np.float64]) -> list[int]:
    """Return the leaf order of an average-linkage clustering of the rows of `values` [n, d].

    Merged clusters are oriented with their nearest ends adjacent.
    """
    distance = np.sqrt(((values[:, None] - values[None]) ** 2).sum(axis=-1))
    clusters = [[row] for row in range(len(values))]
    while len(clusters) > 1:
        choices = [(left, right) for left in range(len(clusters)) for right in range(left + 1, len(clusters))]
        gaps = [distance[np.ix_(clusters[left], clusters[right])].mean() for left, right in choices]
        left, right = choices[int(np.argmin(gaps))]
        second, first = clusters.pop(right), clusters.pop(left)
        ends = [(a, b) for a in (first, first[::-1]) for b in (second, second[::-1])]
        joined = min(ends, key=lambda pair: distance[pair[0][-1], pair[1][0]])
        clusters.insert(left, [*joined[0], *joined[1]])
    return clusters[0] if clusters else []


def summary_figure(summary: pd.DataFrame, measure: str = "relative", ax: Axes | None = None) -> Axes:
    """Draw the mean transfer from same-type, different-type and random prompts, over all targets and per type.

    Args:
        summary: table of `analysis.matrix_summary.summarize`.
        measure: `relative` or `chance_corrected`.
        ax: axes to draw on; None: a new figure.
    """
    table = summary[(summary["measure"] == measure) & (summary["targets"] == "all") & summary["kind"].isin(KINDS)]
    types = list(dict.fromkeys(table["type"]))
    if ax is None:
        _, ax = plt.subplots(figsize=(2.8 + 0.8 * len(types), 2.8), layout="constrained")
    for number, (kind, label) in enumerate(KINDS.items()):
        mine = table[table["kind"] == kind].set_index("type").reindex(types)
        if mine["mean"].isna().all():
            continue
        places = np.arange(len(types)) + (number - 1) * 0.22
        # NaN, no bar: fewer than three targets have no interval.
        spread = np.abs(mine[["low", "high"]].to_numpy(float).T - mine["mean"].to_numpy(float))
        ax.errorbar(places, mine["mean"], yerr=spread, fmt="os^"[number], markersize=4, capsize=2, elinewidth=1,
                    color=KIND_COLOURS[number], label=label)  # fmt: skip
    ax.axhline(1, color="0.5", linewidth=0.8, linestyle="--")
    counts = table.groupby("type")["n_targets"].max()
    ax.set_xticks(range(len(types)), [f"{type_label(name)}\n({counts[name]})" for name in types])
    ax.set_xlabel("type of the target (number of targets)", fontsize=9)
    ax.set_ylabel(measure.replace("_", "-") + (" performance" if measure == "relative" else " score"), fontsize=9)
    ax.tick_params(labelsize=8)
    # Outside the axes: points can be in any corner.
    ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    sns.despine(ax=ax)
    return ax
