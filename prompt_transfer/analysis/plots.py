"""Figures: functions that take a table and return Axes."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from prompt_transfer.analysis.style import colour_range, range_label
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.figures import figure_formats
from prompt_transfer.utils.files import atomic_path, write_text_atomic


def read_curve(path: str | Path) -> pd.DataFrame:
    """Read the evaluations of the CSV logger's `metrics.csv`: `step`, `validation/loss`, `validation/score`, ..."""
    frame = pd.read_csv(path)
    columns = [column for column in frame.columns if column.startswith("validation/")]
    if "validation/score" not in columns:
        raise UserError(f"{path} holds no evaluations: the run ended before the first one; train it longer")
    return frame.dropna(subset=["validation/score"])[["step", *columns]].reset_index(drop=True)


def learning_curve(curve: pd.DataFrame, majority: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw the score against optimizer steps, with the majority class as a dashed line.

    Args:
        curve: columns `step` and `validation/score` (see `read_curve`).
        majority: share of the majority class, 0 to 1.
        ax: axes to draw on; None: a new figure 3.5 inches wide (one column of a paper).
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(3.5, 2.6), layout="constrained")
    # The log counts steps from 0, and an evaluation follows the step it names.
    data = pd.DataFrame({"step": curve["step"] + 1, "score": curve["validation/score"]})
    sns.lineplot(data, x="step", y="score", marker="o", ax=ax, label="prompt")
    if majority is not None:
        ax.axhline(majority, linestyle="--", color="0.5", linewidth=1, label="majority class")
    ax.set_xlabel("optimizer steps")
    ax.set_ylabel("score on validation")
    ax.legend(frameon=False)
    sns.despine(ax=ax)
    return ax


def confusion(table: pd.DataFrame) -> Axes:
    """Draw a confusion matrix per prompt: labels in rows, answers in columns.

    Colours are shares of the label's examples, numbers count examples.

    Args:
        table: table of `prompt_transfer.studies.inspection.confusion`.

    Returns:
        The axes of the first panel; its figure holds all panels.
    """
    names = list(dict.fromkeys(table["prompt"]))
    words = list(dict.fromkeys(table["label"]))
    low, high = colour_range(table["share"])
    side = 1.0 + 0.55 * len(words)
    figure, grid = plt.subplots(
        1, len(names), figsize=(0.8 + side * len(names), 0.4 + side), layout="constrained", squeeze=False, sharey=True
    )
    for ax, name in zip(grid.flat, names, strict=True):
        mine = table[table["prompt"] == name]
        shares, rows = (
            mine.pivot_table(index="label", columns="answer", values=values, aggfunc="first").reindex(words)[words]
            for values in ("share", "rows")
        )
        sns.heatmap(shares, annot=rows, fmt="d", vmin=low, vmax=high, cmap="Blues", cbar=False, square=True, ax=ax)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("answer")
        ax.set_ylabel("label" if ax is grid.flat[0] else "")
        ax.tick_params(labelsize=8, length=0)
    label = range_label("share of the label", low, high)
    figure.colorbar(grid.flat[-1].collections[0], ax=grid.ravel().tolist(), label=label, shrink=0.7)
    return grid.flat[0]


def save(ax: Axes, path: str | Path, caption: str = "") -> Path:
    """Write the figure of `ax` atomically and close it.

    Args:
        ax: axes of the figure.
        path: a name in `.png` is written in the formats of `--figures`; `.pdf` and `.svg` as they are.
        caption: text for a `.txt` file of the same name: figures hold no captions.

    Returns:
        The path of the first file.
    """
    path = Path(path)
    figure = ax.get_figure(root=True)
    assert figure is not None
    formats = figure_formats() if path.suffix == ".png" else (path.suffix[1:],)
    # Text stays text in PDF and SVG files, and equal figures give equal files.
    with plt.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": path.stem}):
        for kind in formats:
            with atomic_path(path.with_suffix(f".{kind}")) as temporary:
                if kind == "png":
                    figure.savefig(temporary, dpi=200, pil_kwargs={"optimize": True})
                else:
                    figure.savefig(temporary, metadata={"CreationDate" if kind == "pdf" else "Date": None})
    plt.close(figure)
    if caption:
        write_text_atomic(path.with_suffix(".txt"), caption + "\n")
    return path.with_suffix(f".{formats[0]}")
