"""Skill neurons (Wang et al. 2022): how well a single neuron predicts the classes of a task.

Shape letters: B batch, C classes, S binary sub-tasks, L layers, F neurons per layer, P' places (prompt tokens, or 1).
"""

from __future__ import annotations

import torch
from torch import Tensor


class ClassSums:
    """Sums per class of neurons, or of the examples in which they exceed each sub-task's threshold.

    Args:
        classes: C.
        layers: L.
        thresholds: `[S, L, P', F]`; None sums the neurons.
    """

    def __init__(self, classes: int, layers: int, thresholds: Tensor | None = None) -> None:
        self.classes, self.layers, self.thresholds = classes, layers, thresholds
        self.labels = torch.zeros(0, dtype=torch.long)
        self._sums: Tensor | None = None
        self._counts = torch.zeros(classes)

    def next(self, labels: Tensor) -> None:
        """Set the labels `[B]` of the neurons added next."""
        self.labels = labels
        self._counts = self._counts + torch.bincount(labels, minlength=self.classes).cpu()

    def add(self, layer: int, neurons: Tensor) -> None:
        """Add the neurons `[B, P', F]` of a layer."""
        values = neurons.float().unsqueeze(1)
        if self.thresholds is not None:
            values = (values > self.thresholds[:, layer]).float()
        if self._sums is None:
            self._sums = values.new_zeros(self.classes, self.layers, *values.shape[1:])
        self._sums[:, layer].index_add_(0, self.labels, values)

    @property
    def sums(self) -> Tensor:
        """The sums, `[C, S, L, P', F]`; S is 1 without thresholds."""
        if self._sums is None:
            raise ValueError("no examples")
        return self._sums.transpose(1, 2)

    @property
    def counts(self) -> Tensor:
        """Number of examples per class, `[C]`."""
        return self._counts


def subtasks(classes: int) -> list[int]:
    """Return the class that each binary sub-task separates from the others; two classes need one sub-task."""
    return [1] if classes == 2 else list(range(classes))


def baselines(means: ClassSums) -> Tensor:
    """Return the threshold of each sub-task, `[S, L, P', F]`: a neuron's balanced mean over training examples.

    It is the average of the mean over the class and the mean over all other examples.
    """
    sums, counts = means.sums[:, 0], means.counts
    found = []
    for one in subtasks(len(counts)):
        rest = [number for number in range(len(counts)) if number != one]
        found.append((sums[one] / counts[one] + sums[rest].sum(dim=0) / counts[rest].sum()) / 2)
    return torch.stack(found)


def predictivity(above: ClassSums) -> Tensor:
    """Return the predictivity of each neuron, `[L, F]`: 0.5 is chance, 1 is perfect.

    A neuron at a place predicts the class if it exceeds its threshold. Acc is the balanced accuracy on development
    examples: the mean of the accuracies inside and outside the class. Pred = max over places of |Acc - 1/2| + 1/2. With
    more than two classes, each class is one binary sub-task, and the best sub-task counts: the top neurons are then the
    union of the sub-tasks' top neurons.

    Source: Wang et al. 2022, who define two sub-tasks by hand for MNLI.
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
