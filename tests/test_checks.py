"""Data checks: problems that make scores less meaningful are reported on loading."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from fake_encoder import FakeEncoder

from prompt_transfer.data import readers
from prompt_transfer.data.checks import shared_rows, text_keys
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.selection import Selection
from prompt_transfer.data.sources import load_task
from prompt_transfer.studies.targets import EvaluationData, load_target, warn_of_shared_rows
from prompt_transfer.tasks.task import HubSource, Task
from prompt_transfer.utils.errors import UserError

TASK = Task(name="toy", type="sentiment", text_a="text", label_words=("bad", "good"))
LIMITS: dict[str, int | None] = dict.fromkeys(("train", "validation", "test"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def write(root: Path, name: str = "toy", **splits: list[str]) -> Path:
    """Write the texts of each split, with alternating labels."""
    (root / name).mkdir(parents=True)
    for split, texts in splits.items():
        lines = [json.dumps({"text": text, "label": row % 2}) + "\n" for row, text in enumerate(texts)]
        (root / name / f"{split}.jsonl").write_text("".join(lines))
    return root


@contextmanager
def told() -> Iterator[list[str]]:
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found += [str(warning.message) for warning in caught]


def test_empty_texts_and_splits_of_one_class_are_told(tmp_path: Path) -> None:
    write(tmp_path, train=["a", "b", " ", "d", "", "f"], validation=["v", "w", "x"], test=["one"])
    (tmp_path / "toy" / "validation.jsonl").write_text('{"text": "v", "label": 1}\n' * 3)
    with told() as lines:
        load_task(TASK, "local", tmp_path)
    assert lines == [
        "task toy: all 3 validation rows are of one class ('good'); scores on it are meaningless",
        "task toy: 2 rows of the train split have an empty text, the first is row 2 (counted from 0); answers to them "
        "are meaningless",
    ]


def test_texts_are_one_text_whatever_their_case_blanks_and_punctuation() -> None:
    rows = datasets.Dataset.from_dict(
        {"text_a": ["It 's fine .", "it's FINE", "its", "?!", "a b"], "text_b": ["", "", "fine", "", "c"]}
    )
    keys = text_keys(rows)
    assert len(keys) == 4  # rows without letters have nothing to compare
    assert keys[0] == keys[1]
    assert len(np.unique(keys)) == 3
    other = text_keys(datasets.Dataset.from_dict({"text_a": ["its fine", "AB"], "text_b": ["", "c"]}))
    assert shared_rows({"x": keys, "y": other}, {"y": other, "z": keys[:0]}) == [
        "3 of 4 rows of x are training rows of y"
    ]


def two_tasks(tmp_path: Path) -> list[Task]:
    """Write two tasks; two of the three test rows of `b` are training rows of `a`."""
    write(tmp_path, "a", train=["one", "two", "three", "four"], validation=["v", "w"], test=["x", "y"])
    write(tmp_path, "b", train=["p", "q"], validation=["r", "s"], test=["Two !", "z", "four"])
    return [Task(**{**TASK.__dict__, "name": name}) for name in ("a", "b")]


def test_rows_that_another_task_of_the_run_trains_on(tmp_path: Path) -> None:
    tasks = two_tasks(tmp_path)
    shared = "test split: 2 of 3 rows of b are training rows of a"
    with told() as lines:
        _ = Selection(tasks, "local", str(tmp_path), 0, "default", LIMITS).data
    assert lines == [shared]
    # A held-out task is not trained on.
    with told() as lines:
        _ = Selection(tasks, "local", str(tmp_path), 0, "default", LIMITS, frozenset({"a"})).data
    assert lines == []


def test_a_matrix_says_which_targets_a_prompt_has_seen(tmp_path: Path) -> None:
    data = EvaluationData("local", str(tmp_path))
    targets = [load_target(task, data, "default", "test", FakeEncoder(), True) for task in two_tasks(tmp_path)]
    with told() as lines:
        warn_of_shared_rows(targets, {"b", "somewhere else"})
    assert lines == []
    with told() as lines:
        warn_of_shared_rows(targets, {"a"})
    assert lines == ["transfer between these tasks is not to unseen texts: 2 of 3 rows of b are training rows of a"]


def test_texts_to_predict_have_ids_of_their_own(tmp_path: Path) -> None:
    data = TaskDataModule("builtin_movies").connect(FakeEncoder())
    doubled = datasets.Dataset.from_dict({"id": [0, 1, 0], "text_a": ["a", "b", "c"], "text_b": [""] * 3})
    with pytest.raises(UserError, match="1 of the texts to predict have an id that another one has"):
        data.set_predict_texts(doubled)


def test_a_revision_of_the_hub_wins_over_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(hub: HubSource) -> dict[str, datasets.Dataset]:
        asked.append(hub.revision)
        rows = {"text": [f"t{row}" for row in range(6)], "label": [0, 1] * 3}
        return {split: datasets.Dataset.from_dict(rows) for split in ("train", "validation", "test")}

    monkeypatch.setattr(readers, "_load_from_hub", load)
    hub = HubSource("owner/toy", None, "registry", {name: name for name in ("train", "validation", "test")})
    task = Task(**{**TASK.__dict__, "hub": hub})
    with told():
        for revision in (None, "0123abc"):
            _ = Selection([task], "hub", None, 0, "default", LIMITS, revision=revision).data
    assert asked == ["registry", "0123abc"]
    with pytest.raises(UserError, match=r"--data\.revision x is for hub repositories: use --data\.source hub"):
        Selection([task], "local", None, 0, "default", LIMITS, revision="x")
