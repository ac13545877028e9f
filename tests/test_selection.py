"""Quality of rankings: values by hand, and a random order as the mean over all orders."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from prompt_transfer.analysis.selection import JUDGED, RANDOM_ORDER, judge, quality, summarize

TRUE = np.array([0.4, 0.8, 0.6, 0.2])


def test_a_perfect_ranking_and_its_opposite() -> None:
    found = judge(np.stack([TRUE * 2 - 7, -TRUE]), TRUE)
    assert set(found) == set(JUDGED)
    assert found["ndcg"][0] == pytest.approx(1)
    assert found["spearman_per_target"] == pytest.approx([1, -1])
    assert found["regret_at_1"] == pytest.approx([0, (0.8 - 0.2) / 0.8])
    assert found["regret_at_3"] == pytest.approx([0, (0.8 - 0.6) / 0.8])
    discounts = 1 / np.log2([2, 3, 4, 5])
    best, worst = (0.8, 0.6, 0.4, 0.2), (0.2, 0.4, 0.6, 0.8)
    assert found["ndcg"][1] == pytest.approx(np.dot(worst, discounts) / np.dot(best, discounts))


def test_a_random_order_is_the_mean_over_all_orders() -> None:
    orders = np.array(list(itertools.permutations(range(4))), dtype=float)
    every, none = judge(orders, TRUE), judge(np.zeros(4), TRUE)
    for name in JUDGED:
        assert float(none[name]) == pytest.approx(every[name].mean()), name


def test_prompts_of_one_task_count_with_their_mean() -> None:
    rankings = {"good": np.array([[1.0, 3.0, 1.5, np.nan]]), "samples": np.array([[3.0, 3.0, 1, 0], [0, 0, 1, 2]])}
    rows = quality("t", rankings, ["a", "a", "b", "unknown"], {"a": 0.9, "b": 0.5, "c": 0.1})
    table = {(row["ranking"], row["seed"], row["statistic"]): row for row in rows}
    # The two prompts of a have the mean 2, before b with 1.5; tasks outside the matrix are not sources.
    assert table["good", None, "regret_at_1"]["value"] == 0
    assert table["good", None, "ndcg"]["n"] == 2
    assert table["samples", 0, "regret_at_1"]["value"] == 0
    assert table["samples", 1, "regret_at_1"]["value"] == pytest.approx(0.4 / 0.9)
    assert table[RANDOM_ORDER, None, "regret_at_1"]["value"] == pytest.approx(0.2 / 0.9)
    assert len(rows) == 4 * (1 + 2 + 1)


def test_means_over_targets_and_samples() -> None:
    def row(target: str, seed: int, value: float) -> dict[str, object]:
        return {"target": target, "ranking": "r", "seed": seed, "statistic": "ndcg", "value": value, "n": 3}

    # One target: interval over its samples. Several: over targets, each with the mean of its samples.
    one = summarize([row("t", 0, 0.5), row("t", 1, 0.6), row("t", 2, 0.7)]).iloc[0]
    assert (one["mean"], one["targets"], one["seeds"]) == (pytest.approx(0.6), 1, 3)
    assert (one["low"], one["high"]) == (pytest.approx(0.5), pytest.approx(0.7))
    rows = [row("t", 0, 0.5), row("t", 1, 0.7), row("u", 0, 1.0), row("w", 0, 0.8), row("v", 0, math.nan)]
    several = summarize(rows).iloc[0]
    assert (several["mean"], several["targets"]) == (pytest.approx(0.8), 3)
    assert (several["low"], several["high"]) == (pytest.approx(0.6), pytest.approx(1))
    # With two targets an interval would just be the two values.
    assert math.isnan(summarize([row("t", 0, 0.5), row("u", 0, 0.7)]).iloc[0]["low"])


def test_no_source_is_known() -> None:
    rows = quality("t", {"good": np.array([[1.0]])}, ["a"], {})
    assert all(math.isnan(float(str(row["value"]))) for row in rows)
    assert math.isnan(summarize(rows).iloc[0]["mean"])
