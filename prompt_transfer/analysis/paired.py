"""Paired bootstrap over examples and seeds, for methods that answered the same examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
# (answers [n], rows [n] to score) -> metric.
Score = Callable[[NDArray[np.float32], NDArray[np.int64]], float]


def resampled_scores(
    score: Score, answers: Mapping[str, NDArray[np.float32]], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, NDArray[np.float64]]:
    """Return each method's mean score over seeds in every resample, `[resamples]`.

    A resample draws examples and seeds with replacement; all methods share the draw of examples, and methods with
    equally many seeds share the draw of seeds. Differences between two results are therefore paired.

    Args:
        score: computes the metric of some rows.
        answers: method -> `[S, n]`, one row per seed, in the same order of seeds and examples.
        seed: seed of the resampling.
        resamples: number of resamples.

    Raises:
        ValueError: the methods have different numbers of examples.
    """
    if len({values.shape[1] for values in answers.values()}) != 1:
        raise ValueError("a paired bootstrap needs the same examples for all methods")
    examples = next(iter(answers.values())).shape[1]
    sizes = sorted({len(values) for values in answers.values()})
    generator = np.random.default_rng(seed)
    found = {name: np.empty(resamples) for name in answers}
    for number in range(resamples):
        rows: NDArray[np.int64] = generator.integers(0, examples, size=(examples,))
        draws = {size: np.bincount(generator.integers(0, size, size), minlength=size) for size in sizes}
        for name, values in answers.items():
            times = draws[len(values)]
            scores = [count * score(row, rows) for count, row in zip(times, values, strict=True) if count]
            found[name][number] = sum(scores) / len(values)
    return found


def interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of resampled values `[resamples]`."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
