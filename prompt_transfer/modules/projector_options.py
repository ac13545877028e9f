"""Options of `CrossModelProjector` that cannot be, alone or together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prompt_transfer.utils.errors import UserError

OBJECTIVES = ("task_tuning", "distance", "both", "distill")
SELECTIONS = ("score", "agreement")


def check_options(options: Mapping[str, Any], target_prompts: Any) -> None:
    """A UserError for what would only fail after the backbone has been loaded."""
    for name, allowed in (("objective", OBJECTIVES), ("select", SELECTIONS)):
        if options[name] not in allowed:
            raise UserError(f"unknown {name} {options[name]!r}: choose one of {', '.join(allowed)}")
    if options["objective"] in ("distance", "both") and not target_prompts:
        raise UserError(
            f"objective {options['objective']} needs the target's own prompts of the same tasks: --model.target_prompts"
        )
    for name in ("contrastive", "variance", "distance_weight"):
        if not options[name] >= 0:
            raise UserError(f"{name} is {options[name]}: a weight is 0 or more")
    for name in ("temperature", "distill_temperature", "variance_floor"):
        if not options[name] > 0:
            raise UserError(f"{name} is {options[name]}: give a number above 0")
    if options["distill_across"] and options["objective"] != "distill":
        raise UserError(f"distill_across belongs to the objective distill, this one is {options['objective']}")
    if options["variance_floor"] >= 1 or not 0 <= options["distill_alpha"] <= 1:
        raise UserError("variance_floor is below 1, and distill_alpha from 0 to 1")
