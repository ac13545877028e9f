"""Base of the objectives of training and evaluation.

Shape letters: B batch, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from prompt_transfer.backbones.answers import PromptBank
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.tasks.metrics import make_metrics
from prompt_transfer.tasks.registry import Task

SPLITS = ("validation", "test")
# (split, ids [B]) -> the reference texts of each example.
References = Callable[[str, Tensor], list[list[str]]]


class Objective(nn.Module):
    """Loss, predictions and metrics of the tasks of a run, all of one kind.

    Args:
        backbone: the frozen backbone.
        tasks: of the run; their order gives the task numbers.
    """

    def __init__(self, backbone: FrozenBackbone, tasks: list[Task]) -> None:
        super().__init__()
        self.tasks = tasks
        # Not a submodule: the LightningModule owns the backbone.
        self._backbone = [backbone]
        self.metrics = nn.ModuleDict({split: nn.ModuleList([make_metrics(task) for task in tasks]) for split in SPLITS})
        # Lightning's own mean would floor the number of examples per process.
        # NaNs are reported elsewhere; checking here would synchronize the device.
        self.mean_loss = MeanMetric(nan_strategy="disable")

    @property
    def backbone(self) -> FrozenBackbone:
        """The frozen backbone."""
        return self._backbone[0]

    def losses(self, prompt: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of each example [B] in nats."""
        raise NotImplementedError

    def predict(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Return predictions for a batch: `ids`, `task_ids` [B], and the outputs of the kind of task."""
        raise NotImplementedError

    def outputs(self, prompt: Tensor, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Return the backbone's outputs for an evaluation: tensors [B, ...] or lists, one entry per example."""
        raise NotImplementedError

    def count(
        self, outputs: dict[str, Any], batch: dict[str, Tensor], split: str, references: References, keep: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        """Update the metrics of `split`; return the losses [B] and a record of the examples, complete with `keep`."""
        raise NotImplementedError

    def evaluate(
        self, prompt: Tensor, batch: dict[str, Tensor], split: str, references: References, keep: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run the backbone with `prompt`, and `count` its outputs."""
        return self.count(self.outputs(prompt, batch), batch, split, references, keep)

    def task_metrics(self, split: str) -> list[MetricCollection]:
        """Return the metrics of every task on `validation` or `test`."""
        return [cast("MetricCollection", metrics) for metrics in cast("nn.ModuleList", self.metrics[split])]

    def compute(self, split: str) -> list[dict[str, Tensor]]:
        """Return every task's metrics since the last call, and reset them."""
        found = []
        for metrics in self.task_metrics(split):
            found.append(metrics.compute())
            metrics.reset()
        return found
