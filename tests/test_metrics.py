"""Metrics of classification and generation, and bootstrap intervals."""

import math
import sys
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prompt_transfer.tasks.metrics import (
    TEXT_SCORES,
    bootstrap_interval,
    bootstrap_mean_interval,
    bootstrap_metric_interval,
    class_metric,
    example_scores,
    make_metrics,
)
from prompt_transfer.tasks.task import GENERATION_METRICS
from prompt_transfer.utils.errors import UserError

NAMES = ("accuracy", "f1", "matthews")


def task(num_classes=2, metrics=NAMES):
    return SimpleNamespace(name="t", num_classes=num_classes, metrics=metrics, is_generation=False)


def writing(*metrics):
    return SimpleNamespace(name="t", num_classes=0, metrics=metrics or GENERATION_METRICS, is_generation=True)


def values(preds, labels, num_classes=2):
    metrics = make_metrics(task(num_classes))
    metrics.update(torch.tensor(preds), torch.tensor(labels))
    return {name: value.item() for name, value in metrics.compute().items()}


def test_two_classes_by_hand():
    # tp 2, fp 1, fn 1, tn 3
    result = values([1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0])
    assert list(result) == list(NAMES)
    assert result["accuracy"] == pytest.approx(5 / 7)
    assert result["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert result["matthews"] == pytest.approx((2 * 3 - 1 * 1) / math.sqrt(3 * 3 * 4 * 4))


def test_three_classes_by_hand():
    result = values([0, 0, 1, 2, 2, 1], [0, 1, 1, 2, 0, 1], 3)
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["f1"] == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3)
    # total 6, right 4, true (2, 3, 1), predicted (2, 2, 2)
    assert result["matthews"] == pytest.approx((4 * 6 - 12) / math.sqrt((36 - 12) * (36 - 14)))


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
def test_a_constant_prediction_has_no_correlation(labels):
    for guess in (0, 1):
        assert values([guess] * 5, labels)["matthews"] == 0.0
    assert values([0, 1, 0, 1, 1], [0, 1, 0, 1, 1])["matthews"] == pytest.approx(1)
    assert values([1, 0, 1, 0, 0], [0, 1, 0, 1, 1])["matthews"] == pytest.approx(-1)


def test_batches_add_up():
    metrics = make_metrics(task())
    preds, labels = torch.tensor([1, 0, 1, 0, 1, 1]), torch.tensor([1, 0, 0, 1, 1, 0])
    for part in (slice(0, 4), slice(4, 6)):
        metrics.update(preds[part], labels[part])
    parts = {name: value.item() for name, value in metrics.compute().items()}
    assert parts == pytest.approx(values(preds.tolist(), labels.tolist()))
    metrics.reset()
    metrics.update(torch.tensor([1]), torch.tensor([1]))
    assert metrics.compute()["accuracy"] == 1


def test_only_the_metrics_of_the_task():
    assert list(make_metrics(task(metrics=("matthews",)))) == ["matthews"]
    with pytest.raises(UserError, match="rougeL"):
        make_metrics(task(metrics=("accuracy", "rougeL")))
    with pytest.raises(UserError, match="0 classes"):
        make_metrics(task(num_classes=0))
    with pytest.raises(UserError, match="accuracy cannot be computed from texts; generation has exact_match, squad_f1"):
        make_metrics(writing("rougeL", "accuracy"))
    assert list(make_metrics(writing("rouge2"))) == ["rouge2"]
    assert tuple(TEXT_SCORES) == GENERATION_METRICS


def test_two_parts_merge_to_the_whole():
    """Merging as in the all-reduce of two processes, in one process."""
    preds, labels = torch.tensor([[1, 1, 1], [0, 0, 0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    whole = values(preds.flatten().tolist(), labels.flatten().tolist())
    first, second = make_metrics(task()), make_metrics(task())
    first.update(preds[0], labels[0])
    second.update(preds[1], labels[1])
    for name in NAMES:
        first[name].merge_state(second[name])
        assert first[name].compute().item() == pytest.approx(whole[name])


# Texts.

PREDICTIONS = ["The Eiffel-Tower!", "in Paris, France", "", "a  dog", "nothing of it"]
REFERENCES = [["eiffeltower", "x"], ["Paris", "the city of Paris"], ["London"], ["Dog", "an old dog"], ["the"]]
# Normalised: eiffeltower; in paris france against paris (1 of 3, 1 of 1); empty; dog; empty.
EXACT = [1, 0, 0, 1, 0]
F1 = [1, 2 * (1 / 3) * 1 / (1 / 3 + 1), 0, 1, 0]


def test_squad_scores_by_hand():
    scores = example_scores(writing("squad_f1", "exact_match"), PREDICTIONS, REFERENCES)
    assert list(scores) == ["squad_f1", "exact_match"]
    assert scores["exact_match"].tolist() == EXACT
    assert scores["squad_f1"] == pytest.approx(F1)
    assert scores["squad_f1"].dtype == np.float64


def test_the_best_reference_counts_for_each_metric_by_itself():
    # Against "b c d e": 2 of 3 and 2 of 4 words. Against "b": 1 of 3 and 1 of 1.
    right = ["b c d e", "b"]
    scores = example_scores(writing(), ["x b c"], [right])
    assert scores["squad_f1"].tolist() == pytest.approx([2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)])
    assert scores["rouge1"].tolist() == pytest.approx([4 / 7])
    # Common bigram b c, of two and three.
    assert scores["rouge2"].tolist() == pytest.approx([2 / 5])
    assert example_scores(writing("squad_f1"), ["x b"], [right])["squad_f1"] == pytest.approx([2 / 3])


def test_nothing_is_right_where_nothing_is_asked():
    # "the" becomes empty for SQuAD but remains for ROUGE, which keeps articles.
    scores = example_scores(writing(), ["", "The", ""], [["the"], ["a"], ["b"]])
    assert scores["exact_match"].tolist() == scores["squad_f1"].tolist() == [1, 1, 0]
    assert [scores[name].tolist() for name in ("rouge1", "rouge2", "rougeL")] == [[0, 0, 0]] * 3


def test_rouge_by_hand():
    prediction = "Anna lost her keys. Paul found them at noon."
    reference = "Paul found the keys. Anna was glad at noon!"
    # 9 words each. Common words: anna keys paul found at noon. Common bigrams, across sentences: paul-found and at-noon
    # of 8 each. Longest common subsequence: paul found at noon.
    scores = example_scores(writing("rougeL", "rouge1", "rouge2"), [prediction], [[reference]])
    assert scores["rouge1"].tolist() == pytest.approx([6 / 9])
    assert scores["rouge2"].tolist() == pytest.approx([2 / 8])
    assert scores["rougeL"].tolist() == pytest.approx([4 / 9])


def text_values(predictions, references):
    metrics = make_metrics(writing())
    metrics.update(predictions, references)
    return {name: value.item() for name, value in metrics.compute().items()}


def test_the_metric_is_the_mean_of_the_examples_and_two_updates_equal_one():
    whole = text_values(PREDICTIONS, REFERENCES)
    assert set(whole) == set(GENERATION_METRICS)
    assert whole["exact_match"] == pytest.approx(2 / 5)
    assert whole["squad_f1"] == pytest.approx(sum(F1) / 5)
    scores = example_scores(writing(), PREDICTIONS, REFERENCES)
    assert whole == pytest.approx({name: values.mean() for name, values in scores.items()})
    metrics = make_metrics(writing())
    for part in (slice(0, 2), slice(2, 2), slice(2, 5)):
        metrics.update(PREDICTIONS[part], REFERENCES[part])
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(whole)
    metrics.reset()
    metrics.update(["x"], [["x"]])
    assert metrics.compute()["rougeL"] == 1


def _half(rank, folder):
    """Score one of two processes' share: all examples but the last, or the last."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    part = slice(0, 4) if rank == 0 else slice(4, 5)
    values = text_values(PREDICTIONS[part], REFERENCES[part])
    dist.destroy_process_group()
    return values


def test_two_processes_with_unequal_shares_equal_one(tmp_path):
    with get_context("fork").Pool(2) as pool:
        first, second = pool.starmap(_half, [(0, tmp_path), (1, tmp_path)], chunksize=1)
    assert first == second == pytest.approx(text_values(PREDICTIONS, REFERENCES))


def test_texts_that_do_not_pair_up():
    for references in ([["a"]], [["a"], []], [["a"], "b"]):
        with pytest.raises(ValueError, match="2 predictions and"):
            example_scores(writing("rougeL"), ["a", "b"], references)


def test_no_score_needs_nltk(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    assert text_values(["a b"], [["a b"]]) == dict.fromkeys(GENERATION_METRICS, 1.0)


def test_bootstrap_interval():
    correct = np.arange(1000) % 5 != 0
    low, high = bootstrap_interval(correct, seed=0)
    assert (low, high) == bootstrap_interval(torch.from_numpy(correct), seed=0)
    # Normal approximation: 0.8 +- 1.96 * sqrt(0.8 * 0.2 / 1000)
    assert low == pytest.approx(0.8 - 0.0248, abs=0.004)
    assert high == pytest.approx(0.8 + 0.0248, abs=0.004)
    narrow = bootstrap_interval(correct, seed=0, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert bootstrap_interval([1, 1, 1], seed=0) == (1.0, 1.0)
    for bad in ([], [0.5, 1]):
        with pytest.raises(ValueError, match="0 or 1"):
            bootstrap_interval(bad, seed=0)


def test_the_bootstrap_is_the_same_as_drawing_indices():
    correct = np.array([1, 1, 1, 0, 1, 0, 1, 1, 0, 1] * 5)
    random = np.random.default_rng(1)
    means = correct[random.integers(0, 50, (20000, 50))].mean(1)
    assert bootstrap_interval(correct, 0, n=20000) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)


def test_bootstrap_of_a_mean():
    values = np.random.default_rng(0).random(2000)
    low, high = bootstrap_mean_interval(values, seed=0)
    assert (low, high) == bootstrap_mean_interval(torch.from_numpy(values), seed=0)
    assert (low, high) != bootstrap_mean_interval(values, seed=1)
    # Normal approximation: the mean +- 1.96 * sqrt(1 / 12 / 2000)
    assert low == pytest.approx(values.mean() - 0.01265, abs=0.002)
    assert high == pytest.approx(values.mean() + 0.01265, abs=0.002)
    narrow = bootstrap_mean_interval(values, seed=0, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert bootstrap_mean_interval([0.5, 0.5], seed=0) == (0.5, 0.5)
    for bad in ([], [[1.0]], [1.0, math.nan]):
        with pytest.raises(ValueError, match="one finite number per example"):
            bootstrap_mean_interval(bad, seed=0)


def test_both_bootstraps_agree_on_an_accuracy():
    correct = np.arange(200) % 4 != 0
    one, other = bootstrap_interval(correct, 0, n=20000), bootstrap_mean_interval(correct, 0, n=20000)
    assert one == pytest.approx(other, abs=0.006)


@pytest.mark.parametrize(("metric", "classes"), [(name, count) for name in NAMES for count in (2, 3)])
def test_bootstrap_of_other_metrics(metric: str, classes: int) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, 400)
    predictions = np.where(generator.random(400) < 0.6, labels, generator.integers(0, classes, 400))
    value = values(predictions.tolist(), labels.tolist(), classes)[metric]
    assert class_metric(metric, predictions, labels, classes) == pytest.approx(value, abs=1e-6)
    low, high = bootstrap_metric_interval(metric, predictions, labels, classes, seed=0)
    assert low < value < high
    assert high - low < 0.25
    by_drawing = []
    for _ in range(400):
        rows = generator.integers(0, 400, 400)
        by_drawing.append(class_metric(metric, predictions[rows], labels[rows], classes))
    assert np.quantile(by_drawing, [0.025, 0.975]) == pytest.approx([low, high], abs=0.025)


@pytest.mark.parametrize("metric", NAMES)
@pytest.mark.parametrize("classes", [2, 3])
def test_constant_predictions_score_the_same_from_arrays(metric, classes):
    for label, prediction in ((0, 0), (0, 1), (1, 0)):
        preds, labels = [prediction] * 5, [label] * 4 + [classes - 1]
        expected = values(preds, labels, classes)[metric]
        assert class_metric(metric, preds, labels, classes) == pytest.approx(expected, abs=1e-6)
