"""The paired bootstrap against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from prompt_transfer.analysis.paired import interval, resampled_scores


def mean(answers: NDArray[np.float32], rows: NDArray[np.int64]) -> float:
    return float(answers[rows].mean())


def test_equal_methods_never_differ() -> None:
    answers = np.random.default_rng(0).random((3, 40)).astype(np.float32)
    draws = resampled_scores(mean, {"a": answers, "b": answers.copy()}, resamples=50)
    assert np.array_equal(draws["a"], draws["b"])
    assert draws["a"].std() > 0


def test_a_constant_gain_has_an_interval_of_zero_width() -> None:
    """Pairing removes the variance that both methods share."""
    first = np.random.default_rng(0).random((2, 40)).astype(np.float64)
    draws = resampled_scores(mean, {"a": first, "b": first + 0.25}, resamples=50)
    assert interval(draws["b"] - draws["a"]) == pytest.approx((0.25, 0.25))
    low, high = interval(draws["a"])
    assert high - low > 0.05


def test_seeds_are_resampled_too() -> None:
    """Two seeds at 0 and 1 on every example: a resample's mean is 0, 0.5 or 1, half of the time 0.5."""
    answers = np.stack([np.zeros(10), np.ones(10)]).astype(np.float32)
    draws = resampled_scores(mean, {"a": answers}, resamples=2000)["a"]
    assert set(draws) == {0.0, 0.5, 1.0}
    assert np.mean(draws == 0.5) == pytest.approx(0.5, abs=0.04)
    assert interval(draws) == (0.0, 1.0)


def test_the_interval_of_one_seed_is_that_of_the_mean() -> None:
    """The standard error of 400 examples of a fair coin is 0.025."""
    answers = (np.arange(400) % 2).astype(np.float32)[None]
    low, high = interval(resampled_scores(mean, {"a": answers})["a"])
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.01)


def test_methods_scored_on_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="same examples"):
        resampled_scores(mean, {"a": np.zeros((1, 3), np.float32), "b": np.zeros((1, 4), np.float32)})
