"""Paired comparison of two prompts on the same examples, with bootstrap intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prompt_transfer.tasks.metrics import bootstrap_mean_interval, from_confusion


def paired_metric_interval(
    name: str,
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    seed: int = 0,
    n: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a difference of metrics, `first` - `second`.

    Each resample draws examples, with the predictions of both prompts.

    Args:
        name: one of `prompt_transfer.tasks.metrics.METRICS`.
        first, second: predictions of the two prompts, int `[N]`.
        labels: int `[N]`.
        num_classes: C.
        seed: seed of the resampling.
        n: number of resamples.
        level: share of resamples within the interval.
    """
    one, other, true = (np.asarray(values, dtype=np.int64) for values in (first, second, labels))
    # The metrics depend only on the counts of (true, first, second), and those of a resample are multinomial.
    cells, counts = np.unique((true * num_classes + one) * num_classes + other, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=n)
    label, one, other = cells // num_classes**2, cells // num_classes % num_classes, cells % num_classes
    values = [_metrics(name, drawn, label * num_classes + answer, num_classes) for answer in (one, other)]
    low, high = np.quantile(values[0] - values[1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _metrics(name: str, drawn: NDArray[np.int64], cells: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Return the metric `[n]` of resamples `[n, cells]`; `cells` are places in the flattened confusion matrix."""
    confusion = np.zeros((len(drawn), num_classes**2))
    np.add.at(confusion.T, cells, drawn.T)
    return from_confusion(name, confusion.reshape(-1, num_classes, num_classes))


def paired_mean_interval(first: ArrayLike, second: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Return the bootstrap interval of a mean difference of example scores `[N]`, `first` - `second`."""
    return bootstrap_mean_interval(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), seed)


def spread(values: ArrayLike) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation (n - 1) of scores; None for fewer than two."""
    found = np.asarray(values, dtype=np.float64)
    return float(found.mean()), float(found.std(ddof=1)) if found.size > 1 else None
