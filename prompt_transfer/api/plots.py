"""Figures of the results of runs and studies: `from prompt_transfer import plots`."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from prompt_transfer.analysis import heatmaps, neuron_plots
from prompt_transfer.analysis.masking import summarize
from prompt_transfer.analysis.matrix import from_results
from prompt_transfer.analysis.plots import confusion, read_curve, save
from prompt_transfer.analysis.plots import learning_curve as draw_curve
from prompt_transfer.analysis.projection import scores_figure
from prompt_transfer.api.returns import TrainingResult

__all__ = ["confusion", "learning_curve", "masking", "projection", "save", "transfer"]


def learning_curve(trained: TrainingResult) -> Axes:
    """Draw the validation score of a training run against optimizer steps, with the majority class."""
    return draw_curve(read_curve(trained.path.parent / "logs" / "metrics.csv"), trained.majority)


def transfer(results: pd.DataFrame, clustered: bool = False) -> Axes:
    """Draw the table of `transfer` as a heatmap: targets in rows, sources, random prompts and baseline in columns.

    Args:
        results: the table of `transfer`.
        clustered: order tasks by similarity instead of by type.
    """
    return heatmaps.transfer_heatmap(from_results(results), clustered)


def projection(table: pd.DataFrame) -> Axes:
    """Draw the table of `projection`: one panel per projector, scores of each kind of prompt by task."""
    return scores_figure(table)


def masking(table: pd.DataFrame) -> Axes:
    """Draw the table of `mask`: points lost against the share of masked neurons, by the prompt that selected them."""
    return neuron_plots.masking_curve(summarize(table))
