"""Skill neurons (Wang et al. 2022): how well one neuron alone tells the classes of a task apart.

Shape letters: B batch, C classes, S binary sub-tasks, L layers, F neurons a layer, P' places (prompt rows, or 1).
"""

from __future__ import annotations

import torch
from torch import Tensor


class ClassSums:
    """Sums over the examples of each class: of neurons, or of how often they are above a threshold of each sub-task.

    Args:
        classes: C.
        layers: L.
        thresholds: [S, L, P', F]; None: neurons themselves are summed.
    """

    def __init__(self, classes: int, layers: int, thresholds: Tensor | None = None) -> None:
        self.classes, self.layers, self.thresholds = classes, layers, thresholds
        self.labels = torch.zeros(0, dtype=torch.long)
        self._sums: Tensor | None = None
        self._counts = torch.zeros(classes)

    def next(self, labels: Tensor) -> None:
        """The neurons that come now are of examples with these labels [B]."""
        self.labels = labels
        self._counts = self._counts + torch.bincount(labels, minlength=self.classes).cpu()

    def add(self, layer: int, neurons: Tensor) -> None:
        """Neurons [B, P', F] of a layer."""
        values = neurons.float().unsqueeze(1)
        if self.thresholds is not None:
            values = (values > self.thresholds[:, layer]).float()
        if self._sums is None:
            self._sums = values.new_zeros(self.classes, self.layers, *values.shape[1:])
        self._sums[:, layer].index_add_(0, self.labels, values)

    @property
    def sums(self) -> Tensor:
        """[C, S, L, P', F]; S is 1 without thresholds."""
        if self._sums is None:
            raise ValueError("no examples")
        return self._sums.transpose(1, 2)

    @property
    def counts(self) -> Tensor:
        """Examples of each class [C]."""
        return self._counts


def subtasks(classes: int) -> list[int]:
    """The class that each binary sub-task tells from all others; of two classes one task is enough."""
    return [1] if classes == 2 else list(range(classes))


def baselines(means: ClassSums) -> Tensor:
    """The threshold of each sub-task, [S, L, P', F]: the mean of a neuron over training examples, balanced.

    Balanced: the mean of its mean over the class and its mean over all other examples, as if both were as frequent.
    """
    sums, counts = means.sums[:, 0], means.counts
    found = []
    for one in subtasks(len(counts)):
        rest = [number for number in range(len(counts)) if number != one]
        found.append((sums[one] / counts[one] + sums[rest].sum(dim=0) / counts[rest].sum()) / 2)
    return torch.stack(found)


def predictivity(above: ClassSums) -> Tensor:
    """How well each neuron alone solves the task, [L, F]: 0.5 is chance, 1 is always right.

    Acc of a neuron at a place is the share of development examples in which it is above its threshold exactly where the
    example is of the class (balanced: the mean of the shares in the class and outside of it), Pred = max over places of
    |Acc - 1/2| + 1/2. A task of several classes is one binary sub-task a class, and the predictivity of a neuron is
    that in the sub-task that it solves best: the first k of this order are the union of the sub-tasks' first ones.

    Source: Wang et al. 2022; there MNLI has two sub-tasks made by hand.
    """
    sums, counts = above.sums, above.counts
    best = []
    for place, one in enumerate(subtasks(len(counts))):
        rest = [number for number in range(len(counts)) if number != one]
        right = sums[one, place] / counts[one]
        wrong = sums[rest, place].sum(dim=0) / counts[rest].sum()
        accuracy = (right + 1 - wrong) / 2
        best.append(((accuracy - 0.5).abs() + 0.5).amax(dim=1))
    return torch.stack(best).amax(dim=0)
