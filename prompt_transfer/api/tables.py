"""Summaries of the results of studies, printed as tables: `from prompt_transfer import tables`."""

from __future__ import annotations

import pandas as pd

from prompt_transfer.analysis.masking import summarize as summarize_masks
from prompt_transfer.analysis.matrix import from_results
from prompt_transfer.analysis.matrix_summary import summarize
from prompt_transfer.commands.transfer import show
from prompt_transfer.studies.transfer.matrix import show_summary

__all__ = ["masking", "transfer", "transfer_by_type"]


def transfer(results: pd.DataFrame) -> None:
    """Print one line per target of `transfer`: its own prompt, the best other prompt, random prompts, baseline."""
    show(results)


def transfer_by_type(results: pd.DataFrame) -> pd.DataFrame:
    """Print and return mean scores of `transfer` from tasks of the same and of other types, with intervals."""
    summary = summarize(from_results(results))
    show_summary(summary)
    return summary


def masking(table: pd.DataFrame) -> pd.DataFrame:
    """Return the points lost by masking, mean over tasks, with intervals: kinds of masks in rows, shares in columns."""
    found = summarize_masks(table)
    return (100 * found.pivot_table(index="mask", columns="ratio", values="drop", sort=False)).round(1)
