"""Baselines without a model: the first words of a text, and the majority class."""

from pathlib import Path

import pytest
from datasets import Dataset

from prompt_transfer.data.baselines import trivial_answers, trivial_score
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.sources import TaskData
from prompt_transfer.tasks.metrics import example_scores
from prompt_transfer.tasks.registry import Task

TASK = Task(name="toy", type="summarization", text_a="t", label_column=None, target_column="s", metric="rougeL")


def _data(*targets: list[str]) -> TaskData:
    rows = {"id": range(len(targets)), "text_a": ["a"] * len(targets), "target": list(targets)}
    return TaskData(TASK, {"train": Dataset.from_dict(rows)}, {"train": "official"}, "")


def test_the_first_words_as_many_as_a_target_has() -> None:
    rows = Dataset.from_dict({"text_a": ["Anna: I  lost\nmy keys", "no"]})
    # The first targets have 2, 3 and 5 words; the mean 10 / 3 rounds to 3.
    data = _data(["a b", "a b c d e f g h"], ["a b c"], ["a b c d e"])
    assert trivial_answers(data, rows) == ["Anna: I lost", "no"]
    assert trivial_answers(_data(["a"]), rows) == ["Anna:", "no"]
    scores = example_scores(TASK, trivial_answers(data, rows), [["Anna lost her keys"], ["yes"]])
    # Common subsequence: anna lost, in texts of three and four words.
    assert scores["rougeL"].tolist() == pytest.approx([4 / 7, 0])


def test_the_commonest_class_in_the_metric_of_the_task(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.csv").write_text("text,label\na,1\nb,1\nc,1\nd,0\n")
    for metric, expected in (("accuracy", 0.75), ("f1", 2 * 0.75 / 1.75), ("matthews", 0.0)):
        (tmp_path / "toy.yaml").write_text(
            "name: toy\ntype: sentiment\ncolumns: {text_a: text, text_b: null}\nlabel_column: label\n"
            f"label_words: [bad, good]\nmetric: {metric}\nlocal: toy\n"
        )
        data = TaskDataModule(str(tmp_path / "toy.yaml"), "local")
        assert trivial_score(data, "validation") == pytest.approx(expected)
