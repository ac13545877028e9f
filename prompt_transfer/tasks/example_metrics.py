"""Metrics as classes: Matthews correlation, means of given scores, and exact match over groups of examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

GROUP_METRIC = "group_exact_match"


class Matthews(Metric):
    """Matthews correlation (Gorodkin's R_K for more than two classes), 0 if predictions or labels are constant.

    torchmetrics' version is non-zero for constant predictions of two classes, which would give the majority class a
    score on CoLA.

    Args:
        num_classes: C.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count predicted and true classes, both int64 `[B]`."""
        cells = torch.bincount(target * self.num_classes + preds, minlength=self.num_classes**2)
        self.confusion += cells.reshape_as(self.confusion)

    def compute(self) -> Tensor:
        """Return the correlation, between -1 and 1, float32."""
        counts = self.confusion.cpu().double()
        total, right = counts.sum(), counts.trace()
        true, predicted = counts.sum(1), counts.sum(0)
        spread = (total**2 - (predicted**2).sum()) * (total**2 - (true**2).sum())
        value = torch.zeros(()) if spread == 0 else (right * total - (predicted * true).sum()) / spread.sqrt()
        return value.to(self.confusion.device, torch.float32)


class MeanScore(Metric):
    """Mean of one column of scores [B, M] over all examples.

    Args:
        column: its index.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, column: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.column = column
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor) -> None:
        """Add scores [B, M]."""
        self.total += scores[:, self.column].double().sum()
        self.count += len(scores)

    def compute(self) -> Tensor:
        """Return the mean, float32."""
        return (self.total / self.count).float()


class GroupExactMatch(Metric):
    """Share of groups whose examples are all predicted right (EM of MultiRC, where a group is a question).

    Args:
        num_classes: unused; all metrics over classes take it.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    groups: list[Tensor]
    correct: list[Tensor]

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("groups", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor, groups: Tensor) -> None:
        """Add predictions, labels and numbers of groups, each int64 `[B]`."""
        self.groups.append(groups)
        self.correct.append((preds == target).long())

    def compute(self) -> Tensor:
        """Return the share, float32."""
        groups, correct = dim_zero_cat(self.groups), dim_zero_cat(self.correct)
        exact = exact_groups(correct.cpu().numpy().astype(bool), groups.cpu().numpy())
        return torch.tensor(exact.mean(), dtype=torch.float32, device=correct.device)


def exact_groups(correct: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """Return whether each group's examples are all correct, 0 or 1 [groups], from `correct` and `groups` [N]."""
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    wrong = np.bincount(numbers.ravel(), weights=~np.asarray(correct, dtype=bool))
    return (wrong == 0).astype(np.float64)
