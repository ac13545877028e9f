"""What masked neurons cost: means over tasks, with intervals."""

from __future__ import annotations

import pandas as pd

from prompt_transfer.tasks.metrics import interval_over

KINDS = ("own", "same_type", "different_type", "random")
OVER_RANDOM = "own - random"


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean drop of the score by kind of mask, method and ratio.

    A task's drop is the mean over its prompts and over the masks of a kind; the mean is over tasks, its 95 % interval a
    bootstrap over tasks. `own - random` is the difference of the two in each task: random masks have as many neurons in
    each layer, so it is what these neurons cost beyond their number.

    Args:
        frame: rows with `task`, `mask`, `method`, `ratio`, `drop`; those of the mask `none` do not count.

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
