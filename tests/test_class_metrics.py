"""Metrics of single classes, calibration, and paired differences: values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from prompt_transfer.commands.class_report import parse
from prompt_transfer.commands.tasks import list_tasks
from prompt_transfer.tasks.class_metrics import calibration, confusion_matrix, per_class
from prompt_transfer.tasks.metrics import bootstrap_metric_interval, class_metric
from prompt_transfer.tasks.paired import paired_mean_interval, paired_metric_interval, spread
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

LABELS = [0, 0, 0, 1, 1, 2]
ANSWERS = [0, 0, 1, 1, 2, 1]


def test_every_class_by_hand() -> None:
    rows = per_class(ANSWERS, LABELS, 4)
    # Class 0: 2 of 2 predicted are right, 2 of 3 found. Class 1: 1 of 3, 1 of 2. Class 2: 0 of 1. Class 3 is absent.
    expected = [(1, 2 / 3, 4 / 5, 3, 2), (1 / 3, 1 / 2, 2 / 5, 2, 3), (0, 0, 0, 1, 1), (0, 0, 0, 0, 0)]
    for number, (row, (precision, recall, f1, n, predicted)) in enumerate(zip(rows, expected, strict=False)):
        assert row == {
            "class": number,
            "precision": pytest.approx(precision),
            "recall": pytest.approx(recall),
            "f1": pytest.approx(f1),
            "n": n,
            "predicted": predicted,
        }
    # The macro means are over the three classes that occur.
    assert rows[4]["class"] is None
    assert rows[4]["precision"] == pytest.approx((1 + 1 / 3) / 3)
    assert rows[4]["recall"] == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert rows[4]["f1"] == pytest.approx((4 / 5 + 2 / 5) / 3)
    assert rows[4]["f1"] == pytest.approx(class_metric("f1", ANSWERS, LABELS, 4))
    assert (rows[4]["n"], rows[4]["predicted"]) == (6, 6)


def test_confusion_matrix_by_hand() -> None:
    assert confusion_matrix(ANSWERS, LABELS, 3).tolist() == [[2, 1, 0], [0, 1, 1], [0, 1, 0]]


def test_calibration_by_hand() -> None:
    # Bins are 1/15 wide. 0.70 and 0.72 share bin 10, [0.667, 0.733): accuracy 1/2, confidence 0.71. 0.95 is right in
    # bin 14, 0.55 wrong in bin 8.
    shares = [[0.70, 0.30], [0.28, 0.72], [0.95, 0.05], [0.45, 0.55]]
    error, bins = calibration(shares, [0, 0, 0, 0])
    assert error == pytest.approx((2 * abs(0.5 - 0.71) + abs(1 - 0.95) + abs(0 - 0.55)) / 4, abs=1e-6)
    assert [row["n"] for row in bins] == [1, 2, 1]
    assert [row["accuracy"] for row in bins] == [0, 0.5, 1]
    assert [row["confidence"] for row in bins] == pytest.approx([0.55, 0.71, 0.95])
    assert (bins[1]["low"], bins[1]["high"]) == (pytest.approx(10 / 15), pytest.approx(11 / 15))
    assert sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / 4 == pytest.approx(
        error, abs=1e-6
    )


def test_a_probability_that_rounding_puts_above_one_is_no_logit() -> None:
    error, bins = calibration([[1 + 1e-7, 0.0], [1.0, 0.0]], [0, 1])
    assert error == pytest.approx(0.5)
    assert bins == [{"low": 1.0, "high": 1.0, "n": 2, "confidence": 1.0, "accuracy": 0.5}]


def test_the_name_of_f1_says_its_average() -> None:
    two = Task(name="t", type="x", text_a="a", label_words=("no", "yes"), metric="f1")
    three = Task(name="t", type="x", text_a="a", label_words=("no", "maybe", "yes"), metric="f1")
    assert (two.metric_label("f1"), three.metric_label("f1")) == ("f1 (of 'yes')", "f1 (macro)")
    assert two.metric_label("accuracy") == "accuracy"
    assert get_task("squad").metric_label("squad_f1") == "squad_f1"


def test_the_list_of_tasks_says_which_f1_they_have(capsys: pytest.CaptureFixture[str]) -> None:
    list_tasks()
    lines = capsys.readouterr().out.splitlines()
    assert "f1 (macro): cb" in lines
    assert "f1 (of 'true'): qqp, mrpc" in lines


def test_names_of_metrics() -> None:
    words = [get_task("sst2")]
    assert parse("per_class,confusion_matrix", words) == parse("[per_class, confusion_matrix]", words)
    assert parse(None, words) == []
    with pytest.raises(UserError, match=r"^unknown metric 'ece' in --metrics"):
        parse("ece", words)
    with pytest.raises(UserError, match=r"^--metrics per_class is for tasks with classes: squad generates text"):
        parse(["per_class"], [get_task("squad")])


def test_mean_and_deviation_by_hand() -> None:
    # Squared deviations 0.04, 0 and 0.04 over n - 1 = 2.
    assert spread([0.5, 0.7, 0.9]) == (pytest.approx(0.7), pytest.approx(0.2))
    assert spread([0.5]) == (0.5, None)


def test_a_paired_interval_is_that_of_the_differences() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200)
    first = np.where(generator.random(200) < 0.8, labels, 1 - labels)
    second = np.where(generator.random(200) < 0.9, first, 1 - first)
    low, high = paired_metric_interval("accuracy", first, second, labels, 2, n=20_000)
    mean = np.mean((first == labels).astype(float) - (second == labels))
    # The standard error of the mean of the paired differences.
    width = 1.96 * np.std((first == labels).astype(float) - (second == labels)) / np.sqrt(200)
    assert (low, high) == (pytest.approx(mean - width, abs=0.006), pytest.approx(mean + width, abs=0.006))
    same = paired_mean_interval(first == labels, second == labels)
    assert (low, high) == (pytest.approx(same[0], abs=0.011), pytest.approx(same[1], abs=0.011))
    # Prompts with the same answers do not differ, whatever the sampling of examples.
    for name in ("accuracy", "f1", "matthews"):
        assert paired_metric_interval(name, first, first, labels, 2) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews"])
def test_a_paired_interval_against_constant_answers(name: str) -> None:
    """The constant's metric: accuracy varies with the labels drawn, F1 of class 1 and Matthews are 0."""
    labels = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 0] * 10)
    first = np.array([0, 1, 0, 0, 1, 1, 0, 1, 1, 0] * 10)
    low, high = paired_metric_interval(name, first, np.zeros(100), labels, 2, seed=3, n=4000)
    if name == "accuracy":
        # 1 where only the first is right, -1 where only the constant is.
        differences = (first == labels).astype(float) - (labels == 0)
        assert (low, high) == pytest.approx(paired_mean_interval(differences, np.zeros(100)), abs=0.03)
    else:
        assert (low, high) == pytest.approx(bootstrap_metric_interval(name, first, labels, 2, 3, n=4000), abs=0.02)


def test_a_paired_interval_of_three_classes() -> None:
    labels, first, second = [0, 1, 2] * 20, [0, 1, 1] * 20, [0, 2, 1] * 20
    low, high = paired_metric_interval("f1", first, second, labels, 3)
    # F1 of the first: 1, 2/3 and 0; of the second: 1, 0 and 0.
    exact = class_metric("f1", first, labels, 3) - class_metric("f1", second, labels, 3)
    assert exact == pytest.approx(2 / 9)
    assert 0 < low < exact < high < 1


def test_multiple_choice_has_no_classes() -> None:
    task = Task(name="copa", type="qa", text_a="a", choices=("one", "two"))
    with pytest.raises(UserError, match="copa is multiple choice"):
        parse("per_class", [task])
