"""Metrics of single classes, the confusion matrix and calibration, computed by torchmetrics on request."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

# Names for `--metrics`.
CLASS_METRICS = ("per_class", "confusion_matrix", "calibration")
# Bins of equal width over the confidence, 0 to 1 (Guo et al. 2017).
CALIBRATION_BINS = 15


def per_class(predictions: ArrayLike, labels: ArrayLike, num_classes: int) -> list[dict[str, Any]]:
    """Return precision, recall and F1 of each class, then their macro means.

    A quotient with denominator 0 counts as 0. The macro means are over the classes that occur among labels or
    predictions.

    Args:
        predictions, labels: int `[N]`.
        num_classes: C.

    Returns:
        C + 1 dicts with class (number, None for the means), precision, recall, f1, n (examples of the class) and
        predicted (examples that are predicted as it).
    """
    answers = torch.as_tensor(np.asarray(predictions)), torch.as_tensor(np.asarray(labels))
    scores = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}
    own, means = (
        {name: score(*answers, num_classes, average=average) for name, score in scores.items()}
        for average in ("none", "macro")
    )
    truth, guessed = (torch.bincount(values, minlength=num_classes).tolist() for values in (answers[1], answers[0]))
    rows: list[dict[str, Any]] = [
        {"class": number, **{name: float(values[number]) for name, values in own.items()},
         "n": truth[number], "predicted": guessed[number]}
        for number in range(num_classes)
    ]  # fmt: skip
    total = {"n": len(answers[1]), "predicted": len(answers[0])}
    return [*rows, {"class": None, **{name: float(value) for name, value in means.items()}, **total}]


def confusion_matrix(predictions: ArrayLike, labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Return the confusion matrix `[C, C]`, labels in rows and predictions in columns; arguments as in `per_class`."""
    answers = torch.as_tensor(np.asarray(predictions)), torch.as_tensor(np.asarray(labels))
    return multiclass_confusion_matrix(*answers, num_classes).numpy().astype(np.int64)


def calibration(probabilities: ArrayLike, labels: ArrayLike) -> tuple[float, list[dict[str, Any]]]:
    """Return the expected calibration error and its bins.

    The confidence is the highest probability. The error is the mean over `CALIBRATION_BINS` bins of equal width,
    weighted by examples, of |accuracy - mean confidence| (torchmetrics, norm l1).

    Args:
        probabilities: float `[N, C]` over the label words; rows sum to 1.
        labels: int `[N]`.

    Returns:
        The error, and the bins with examples: low, high, n, confidence, accuracy.
    """
    # torchmetrics takes values above 1, which rounding makes, for logits.
    shares = torch.as_tensor(np.asarray(probabilities, dtype=np.float32)).clamp(0, 1)
    true = torch.as_tensor(np.asarray(labels, dtype=np.int64))
    error = float(multiclass_calibration_error(shares, true, shares.shape[1], n_bins=CALIBRATION_BINS, norm="l1"))
    highest = shares.max(dim=1)
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1)
    # As in torchmetrics, a bin holds its lower edge, and a confidence of exactly 1 is a bin of its own.
    place = (torch.bucketize(highest.values, edges, right=True) - 1).numpy()
    confidence, right = highest.values.double().numpy(), (highest.indices == true).numpy()
    rows = []
    for number in np.unique(place):
        mine = place == number
        rows.append(
            {
                "low": float(edges[number]),
                "high": float(edges[min(number + 1, CALIBRATION_BINS)]),
                "n": int(mine.sum()),
                "confidence": float(confidence[mine].mean()),
                "accuracy": float(right[mine].mean()),
            }
        )
    return error, rows
