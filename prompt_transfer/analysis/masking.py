"""Score drops by masked neurons: means over tasks, with intervals."""

from __future__ import annotations

import pandas as pd

from prompt_transfer.analysis.mask_kinds import KINDS
from prompt_transfer.tasks.metrics import interval_over

OVER_RANDOM = "own - random"


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean drop of the score by kind of mask, method and ratio.

    A task's drop is the mean over its prompts and the masks of a kind; the mean is over tasks, with a 95 % bootstrap
    interval over tasks. `own - random` is their difference within each task. Random masks have the same number of
    neurons in each layer, so the difference isolates the effect of the chosen neurons.

    Args:
        frame: rows with `task`, `mask`, `method`, `ratio`, `drop`; rows of the mask `none` are ignored.

    Returns:
        Columns mask, method, ratio, drop, low, high, tasks; drops are fractions.
    """
    masked = frame[frame["mask"] != "none"]
    means = masked.groupby(["mask", "method", "ratio", "task"])["drop"].mean().unstack("mask")
    if {"own", "random"} <= set(means.columns):
        means[OVER_RANDOM] = means["own"] - means["random"]
    rows = []
    for kind in (*KINDS, OVER_RANDOM):
        if kind not in means:
            continue
        for (method, ratio), values in means[kind].dropna().groupby(["method", "ratio"]):
            low, high = interval_over(values.to_numpy())
            drop = float(values.mean())
            rows.append(dict(zip(_COLUMNS, (kind, method, ratio, drop, low, high, len(values)), strict=True)))
    return pd.DataFrame(rows, columns=list(_COLUMNS))


_COLUMNS = ("mask", "method", "ratio", "drop", "low", "high", "tasks")
