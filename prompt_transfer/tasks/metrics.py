"""Metrics of classification and generation tasks, and bootstrap intervals.

Text scores use torchmetrics' functions per example, so the metric is the mean of `example_scores`. Its metric classes
do not fit: `SQuAD` returns percentages, and `ROUGEScore` keeps one list entry per example, which processes with
different numbers of examples cannot exchange.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassF1Score
from torchmetrics.functional.text import rouge_score, squad

from prompt_transfer.tasks.example_metrics import GROUP_METRIC, GroupExactMatch, Matthews, MeanScore, exact_groups
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.tasks.registry import Task


def _accuracy(num_classes: int) -> Metric:
    return MulticlassAccuracy(num_classes, average="micro", validate_args=False)


def _f1(num_classes: int) -> Metric:
    if num_classes == 2:
        return BinaryF1Score(validate_args=False)
    return MulticlassF1Score(num_classes, average="macro", validate_args=False)


# Minimum number of targets (or tasks, or runs) for a bootstrap interval.
MIN_TARGETS = 3

METRICS: dict[str, Callable[[int], Metric]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": Matthews,
    GROUP_METRIC: GroupExactMatch,
}


def _squad(key: str) -> Callable[[str, list[str]], float]:
    def score(prediction: str, references: list[str]) -> float:
        answers = {"text": references, "answer_start": [0] * len(references)}
        values = squad({"id": "0", "prediction_text": prediction}, {"id": "0", "answers": answers})
        return float(values[key]) / 100

    return score


def _rouge(key: str) -> Callable[[str, list[str]], float]:
    # The default keys include rougeLsum, which needs nltk and its data.
    def score(prediction: str, references: list[str]) -> float:
        values = rouge_score([prediction], [references], accumulate="best", rouge_keys=key)
        return float(values[f"{key}_fmeasure"])

    return score


TEXT_SCORES: dict[str, Callable[[str, list[str]], float]] = {
    "exact_match": _squad("exact_match"),
    "squad_f1": _squad("f1"),
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
}


def text_scores(name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return one score per text, float64 `[N]`; see `example_scores`.

    Args:
        name: one of `TEXT_SCORES`.
        predictions, references: as in `example_scores`.
    """
    # A string instead of a list of strings would be read as a list of letters.
    sound = all(len(right) and not isinstance(right, str) for right in references)
    if len(predictions) != len(references) or not sound:
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references: pass one list of texts per prediction"
        )
    score, pairs = TEXT_SCORES[name], zip(predictions, references, strict=True)
    return np.array([score(prediction, list(right)) for prediction, right in pairs], dtype=np.float64)


def example_scores(
    task: Task, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, NDArray[np.float64]]:
    """Return the scores of each text for each of `task.metrics`, fractions, float64 `[N]`; their mean is the metric.

    `exact_match` and `squad_f1` normalize as SQuAD does: lower case, without punctuation and articles. `rouge1`,
    `rouge2` and `rougeL` are F-measures over lower-cased words and numbers, without stemming. The best reference
    counts, separately for each metric. An empty prediction scores 0, but 1 in `exact_match` and `squad_f1` if a
    reference normalizes to nothing too ("the").

    Args:
        task: a generation task.
        predictions: N texts.
        references: the reference texts of each prediction, at least one.

    Raises:
        UserError: the task has a metric that is not defined for texts.
        ValueError: the numbers of predictions and references differ, or an example has no reference.
    """
    _check_text_metrics(task)
    return {name: text_scores(name, predictions, references) for name in task.metrics}


def _check_text_metrics(task: Task) -> None:
    unknown = [name for name in task.metrics if name not in TEXT_SCORES]
    if unknown:
        raise UserError(
            f"task {task.name}: {', '.join(unknown)} cannot be computed from texts; generation has "
            f"{', '.join(TEXT_SCORES)}"
        )


class TextScore(Metric):
    """Mean of a text score over all examples, NaN without examples.

    Args:
        name: one of `TEXT_SCORES`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[list[str]]) -> None:
        """Score `predictions` (B texts) against `references` (a list of texts for each)."""
        scores = text_scores(self.name, predictions, references)
        self.total += float(scores.sum())
        self.count += len(scores)

    def compute(self) -> Tensor:
        """Return the mean, a fraction, float32."""
        return self.total / self.count


def make_metrics(task: Task) -> MetricCollection:
    """Return the metrics of a task by their names in `task.metrics`; all are fractions and reduce over processes.

    Classification: `accuracy`; `f1` of class 1 for two classes, else the mean over the classes that occur among labels
    or predictions; `matthews` correlation. `update` takes predictions and labels, int64 `[B]`. Generation: the scores
    of `example_scores`; `update(predictions, references)` takes B texts and a list of reference texts for each.
    Multiple choice: means of the scores of the chosen options; `update(scores)` takes [B, M].

    Raises:
        UserError: an unknown metric, or one that does not apply to the task.
    """
    if task.is_generation:
        _check_text_metrics(task)
        return MetricCollection({name: TextScore(name) for name in task.metrics}, compute_groups=False)
    if getattr(task, "is_choice", False):
        columns = {name: MeanScore(column) for column, name in enumerate(task.metrics)}
        return MetricCollection(columns, compute_groups=False)
    unknown = [name for name in task.metrics if name not in METRICS]
    if unknown or task.num_classes < 2:
        raise UserError(
            f"task {task.name}: {', '.join(unknown) or 'its metrics'} cannot be computed from "
            f"{task.num_classes} classes; classification has {', '.join(METRICS)}"
        )
    # Compute groups share states, but no two of these metrics have the same.
    return MetricCollection({name: METRICS[name](task.num_classes) for name in task.metrics}, compute_groups=False)


def bootstrap_interval(
    correct: Tensor | ArrayLike | Sequence[bool], seed: int, n: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of an accuracy.

    Args:
        correct: 0/1 or bool `[N]`, whether each example is correct.
        seed: seed of the resampling.
        n: number of resamples.
        level: share of resamples within the interval.

    Returns:
        Lower and upper end, fractions.

    Raises:
        ValueError: no examples, or values other than 0 and 1.
    """
    values = np.asarray(correct, dtype=np.float64)
    if values.size == 0 or not np.isin(values, (0, 1)).all():
        raise ValueError("bootstrapping an accuracy needs one value per example, 0 or 1")
    # The number of correct answers in a resample is binomial: equivalent to drawing indices, without an [n, N] array.
    accuracies = np.random.default_rng(seed).binomial(values.size, values.mean(), size=n) / values.size
    low, high = np.quantile(accuracies, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_mean_interval(
    values: Tensor | ArrayLike, seed: int, n: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of example scores (`example_scores`).

    Args:
        values: `[N]` scores, one per example.
        seed: seed of the resampling.
        n: number of resamples.
        level: share of resamples within the interval.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: no examples, or non-finite values.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0 or not np.isfinite(scores).all():
        raise ValueError("bootstrapping a mean needs one finite number per example")
    generator = np.random.default_rng(seed)
    # In chunks of a million indices: an [n, N] array would take gigabytes for a large split.
    rows = max(1, 1_000_000 // scores.size)
    means = np.concatenate(
        [
            scores[generator.integers(0, scores.size, (min(rows, n - start), scores.size))].mean(axis=1)
            for start in range(0, n, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval_over(values: Tensor | ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Return `bootstrap_mean_interval` over tasks, targets or runs; NaN for fewer than `MIN_TARGETS`.

    With two values the interval would always span exactly those two.
    """
    drawn = np.asarray(values, dtype=np.float64)
    return bootstrap_mean_interval(drawn, seed) if drawn.size >= MIN_TARGETS else (math.nan, math.nan)


def class_metric(
    name: str, predictions: ArrayLike, labels: ArrayLike, num_classes: int, groups: ArrayLike | None = None
) -> float:
    """Compute a metric of `METRICS` from whole arrays; equals torchmetrics' value.

    Unlike metric objects, does not synchronize between processes.

    Args:
        name: one of `METRICS`.
        predictions, labels: int `[N]`.
        num_classes: C.
        groups: int `[N]`, for `group_exact_match`.
    """
    if name == GROUP_METRIC:
        return float(exact_groups(np.equal(predictions, labels), _needed(groups)).mean())
    return float(_from_confusion(name, _confusion(predictions, labels, num_classes)[None])[0])


def bootstrap_metric_interval(
    name: str,
    predictions: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    seed: int,
    n: int = 1000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a classification metric, over examples (or groups, if it has them).

    Args:
        name: one of `METRICS`.
        predictions, labels: int `[N]`.
        num_classes: C.
        seed: seed of the resampling.
        n: number of resamples.
        level: share of resamples within the interval.
    """
    if name == GROUP_METRIC:
        return bootstrap_interval(exact_groups(np.equal(predictions, labels), _needed(groups)), seed, n, level)
    if name == "accuracy":
        return bootstrap_interval(np.equal(predictions, labels), seed, n, level)
    # The other metrics depend only on the counts of (true, predicted), and those of a resample are multinomial.
    counts = _confusion(predictions, labels, num_classes).ravel()
    drawn = np.random.default_rng(seed).multinomial(int(counts.sum()), counts / counts.sum(), size=n)
    values = _from_confusion(name, drawn.reshape(n, num_classes, num_classes).astype(np.float64))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _needed(groups: ArrayLike | None) -> ArrayLike:
    if groups is None:
        raise ValueError(f"{GROUP_METRIC} needs the group of each example")
    return groups


def _confusion(predictions: ArrayLike, labels: ArrayLike, num_classes: int) -> NDArray[np.float64]:
    """Return the confusion matrix `[C, C]`, true classes in rows."""
    predicted, true = np.asarray(predictions, dtype=np.int64), np.asarray(labels, dtype=np.int64)
    counts = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.float64)


def _from_confusion(name: str, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a metric `[n]` of confusion matrices `[n, C, C]`, true classes in rows."""
    right, true, predicted = np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=2), counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        if name == "accuracy":
            return right.sum(axis=1) / counts.sum(axis=(1, 2))
        if name == "f1":
            each = np.where(true + predicted > 0, 2 * right / (true + predicted), np.nan)
            return np.nan_to_num(each[:, 1]) if counts.shape[1] == 2 else np.nanmean(each, axis=1)
        total = counts.sum(axis=(1, 2))
        spread = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1))
        return np.where(spread > 0, (right.sum(axis=1) * total - (predicted * true).sum(axis=1)) / np.sqrt(spread), 0.0)
