"""Options of `CrossModelProjector`, and the source prompts that its examples use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prompt_transfer.modules import collapse
from prompt_transfer.utils.errors import UserError

OBJECTIVES = ("task_tuning", "distance", "both", "distill")
SELECTIONS = ("score", "agreement")


@dataclass(frozen=True)
class ProjectionConfig:
    """What a projector is trained and selected for; `CrossModelProjector` documents the fields.

    Raises:
        UserError: an invalid option or combination, before any backbone is loaded.
    """

    objective: str = "task_tuning"
    distance_weight: float = 1.0
    contrastive: float = 0.0
    temperature: float = 0.1
    variance: float = 0.0
    variance_floor: float = 0.3
    distill_alpha: float = 0.5
    distill_temperature: float = 2.0
    distill_across: bool = False
    select: str = "score"

    def __post_init__(self) -> None:
        for name, allowed in (("objective", OBJECTIVES), ("select", SELECTIONS)):
            if (value := getattr(self, name)) not in allowed:
                raise UserError(f"unknown {name} {value!r}: choose one of {', '.join(allowed)}")
        for name in ("contrastive", "variance", "distance_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}: a weight is 0 or more")
        for name in ("temperature", "distill_temperature", "variance_floor"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: give a number above 0")
        if self.distill_across and self.objective != "distill":
            raise UserError(f"distill_across belongs to the objective distill, this one is {self.objective}")
        if self.variance_floor >= 1 or not 0 <= self.distill_alpha <= 1:
            raise UserError("variance_floor must be below 1, and distill_alpha from 0 to 1")

    @property
    def uses_distance(self) -> bool:
        """Whether the loss needs the target backbone's own prompts."""
        return self.objective in ("distance", "both")

    @property
    def uses_source(self) -> bool:
        """Whether the source backbone's answers are needed."""
        return self.objective == "distill" or self.select == "agreement"

    @property
    def regularizes(self) -> bool:
        """Whether the loss has terms of the projections themselves."""
        return self.uses_distance or self.contrastive > 0 or self.variance > 0

    def terms(self, projected: Tensor, tasks: Tensor, wanted: Tensor | None) -> dict[str, Tensor]:
        """Return the weighted loss terms of the projections themselves, by name.

        Args:
            projected: [K, P', H'], all trained projections.
            tasks: [K], the task of each.
            wanted: [K, P', H'], the target's own prompts; only for the distance.
        """
        found = {}
        if self.uses_distance:
            assert wanted is not None
            weight = self.distance_weight if self.objective == "both" else 1.0
            found["distance"] = weight * collapse.distance(projected, wanted)
        if self.contrastive:
            found["contrastive"] = self.contrastive * collapse.contrastive(projected, tasks, self.temperature)
        if self.variance:
            found["variance"] = self.variance * collapse.variance(projected, self.variance_floor)
        return found


def index_prompts(numbers: Sequence[Sequence[int]], trained: Sequence[int], total: int) -> Mapping[str, Tensor]:
    """Return the source prompts of each task as tensors.

    Args:
        numbers: for each task the numbers of its prompts.
        trained: numbers of the prompts that are trained on.
        total: K, the number of prompts.

    Returns:
        `numbers` [tasks, most prompts of a task], padded with 0; `counts` [tasks], prompts of each task;
        `prompt_tasks` [K], the task of each prompt, -1 for tasks that are not part of the run; `trained_numbers`.
    """
    most = max(map(len, numbers))
    task_of = {number: task for task, own in enumerate(numbers) for number in own}
    return {
        "numbers": torch.tensor([[*own, *[0] * (most - len(own))] for own in numbers]),
        "counts": torch.tensor([len(own) for own in numbers]),
        "prompt_tasks": torch.tensor([task_of.get(number, -1) for number in range(total)]),
        "trained_numbers": torch.tensor(trained),
    }
