"""Options of LoRA adapters; importing them loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from prompt_transfer.utils.errors import UserError


@dataclass(frozen=True)
class LoraOptions:
    """Options of the adapters.

    Args:
        rank: rank of each update.
        alpha: the updates are scaled by alpha / rank.
        targets: names of the adapted linear layers, separated by commas, or all-linear; null: queries and values.

    Raises:
        UserError: a number is out of range.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise UserError("--lora.rank must be 1 or more, --lora.alpha above 0")
