"""Optimizer and learning rate schedule of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from transformers import get_scheduler

from prompt_transfer.utils.errors import UserError

# The schedules of transformers that need only their length.
SCHEDULES = ("linear", "constant", "constant_with_warmup", "cosine", "polynomial", "inverse_sqrt")


@dataclass(frozen=True)
class OptimizationConfig:
    """Options of optimizer and schedule; `TrainedModule` documents them.

    Raises:
        UserError: an unknown schedule, a number out of range, or a learning rate together with an optimizer.
    """

    optimizer: OptimizerCallable | None = None
    learning_rate: float | None = None
    schedule: str = "linear"
    warmup_steps: int = 0
    scheduler: LRSchedulerCallable | None = None

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if self.optimizer is not None and rate is not None:
            raise UserError("learning_rate is that of the default optimizer: with --model.optimizer give its own lr")
        if rate is not None and not rate > 0:
            raise UserError(f"learning_rate is {rate}: give a number above 0 (null: the family's default)")
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps is {self.warmup_steps}: give 0 or more")
        if self.schedule not in SCHEDULES:
            raise UserError(f"unknown schedule {self.schedule!r}: choose one of {', '.join(SCHEDULES)}")

    def make_optimizer(self, parameters: list[Any], learning_rate: float) -> torch.optim.Optimizer:
        """Return the optimizer of the trained parameters.

        Args:
            parameters: tensors or parameter groups.
            learning_rate: of the default optimizer.
        """
        if self.optimizer is not None:
            return self.optimizer(parameters)
        # No weight decay, as in release 1.0: it would pull a prompt to zero, far from every word embedding.
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)

    def make_scheduler(self, optimizer: torch.optim.Optimizer, steps: float) -> Any:
        """Return the scheduler of `optimizer`, to be stepped once per optimizer step.

        Args:
            optimizer: the optimizer to schedule.
            steps: optimizer steps of the whole run; infinity if unknown.

        Raises:
            UserError: the schedule needs a length and the run has none.
        """
        if self.scheduler is not None:
            return self.scheduler(optimizer)
        if steps == float("inf"):
            raise UserError("give --trainer.max_steps or --trainer.max_epochs: the schedule must know its length")
        return get_scheduler(self.schedule, optimizer, self.warmup_steps, int(steps))
