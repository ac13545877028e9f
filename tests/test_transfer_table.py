"""Relative and chance-corrected scores, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from prompt_transfer.data.tokens import TokenTable
from prompt_transfer.studies.entries import Entry
from prompt_transfer.studies.targets import Target
from prompt_transfer.studies.transfer.table import check_names, target_rows, tidy
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

LABELS = np.array([0] * 6 + [1] * 4)


def target(metric: str = "accuracy") -> Target:
    task = Task("toy", "sentiment", "text", label_words=("terrible", "great"), metric=metric)
    nothing = np.zeros(0, dtype=np.int64)
    table = TokenTable(nothing, np.zeros(11, dtype=np.int64), LABELS, LABELS * 0, np.arange(10))
    return Target(task, "test (official)", table, [], np.zeros(10, dtype=np.float32), {})


def entry(name: str, source: str, kind: str = "trained", seed: int = 0) -> Entry:
    return Entry(name, kind, source, seed, torch.full((1, 1), float(hash(name) % 1000)))


def answers(right: int) -> np.ndarray:
    """Return answers with the given number of correct ones."""
    return np.where(np.arange(10) < right, LABELS, 1 - LABELS).astype(np.float32)


def rows(*scored: tuple[Entry, int], metric: str = "accuracy") -> dict[str, dict[str, Any]]:
    entries, right = zip(*scored, strict=True)
    found = target_rows(target(metric), list(entries), np.stack([answers(one) for one in right]), {"backbone": "b"})
    return {row["prompt"]: row for row in found}


def test_by_hand() -> None:
    found = rows((entry("own-0", "toy"), 10), (entry("own-1", "toy", seed=1), 8), (entry("sst2-0", "sst2"), 7))
    # o = (1.0 + 0.8) / 2 = 0.9, c = 0.6.
    assert [found[name]["value"] for name in ("own-0", "own-1", "sst2-0", "majority")] == [1.0, 0.8, 0.7, 0.6]
    assert found["sst2-0"]["relative"] == pytest.approx(0.7 / 0.9)
    assert found["sst2-0"]["chance_corrected"] == pytest.approx((0.7 - 0.6) / (0.9 - 0.6))
    assert found["majority"]["relative"] == pytest.approx(0.6 / 0.9)
    assert found["majority"]["chance_corrected"] == 0
    assert found["own-0"]["relative"] == pytest.approx(1 / 0.9)
    assert found["sst2-0"]["source_type"] == "sentiment"
    assert found["majority"]["source_type"] is None
    assert {row["n"] for row in found.values()} == {10}
    assert {row["learned"] for row in found.values()} == {True}


def test_a_target_whose_own_prompt_is_within_chance_is_not_learned() -> None:
    found = rows((entry("own", "toy"), 7), (entry("other", "qnli"), 10))
    assert found["own"]["learned"] is False
    # The number is computed all the same: (1.0 - 0.6) / (0.7 - 0.6).
    assert found["other"]["chance_corrected"] == pytest.approx(4)
    found = rows((entry("own", "toy"), 6), (entry("other", "qnli"), 10))
    assert math.isnan(found["other"]["chance_corrected"])


def test_without_an_own_prompt_nothing_is_relative() -> None:
    found = rows((entry("other", "qnli"), 7), (entry("drawn", "random_uniform", "random"), 5))
    assert found["other"]["value"] == 0.7
    assert math.isnan(found["other"]["relative"])
    assert math.isnan(found["other"]["chance_corrected"])
    assert found["other"]["learned"] is None


def test_the_baseline_of_f1_is_what_always_answering_the_commonest_class_gives() -> None:
    found = rows((entry("own", "toy"), 10), (entry("other", "qnli"), 6), metric="f1")
    assert found["majority"]["value"] == 0.0
    assert found["own"]["value"] == 1.0
    # Six correct, all of class 0: class 1 has no true positive.
    assert found["other"]["value"] == 0.0
    assert found["own"]["learned"] is True


def test_types_of_sources_that_only_the_study_knows() -> None:
    found = target_rows(target(), [entry("a", "mine"), entry("b", "toy")], np.stack([answers(7), answers(9)]), {})
    frame = tidy(found, {"mine": "topic", "toy": "sentiment"}).set_index("prompt")
    assert frame["source_type"].tolist()[:2] == ["topic", "sentiment"]
    assert str(frame["seed"].dtype) == "Int64"


def test_names_of_random_prompts_are_taken() -> None:
    with pytest.raises(UserError, match="reserved for random prompts"):
        check_names([entry("random uniform 1", "sst2"), entry("random uniform 1", "random_uniform", "random")])
