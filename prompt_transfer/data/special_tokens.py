"""The option `special_tokens`: handling of special tokens in users' texts."""

from __future__ import annotations

from typing import Literal, get_args

from prompt_transfer.utils.errors import UserError

SpecialTokens = Literal["keep", "split"]


def check_special_tokens(value: str) -> None:
    """Raise UserError if the option has no such value."""
    if value not in get_args(SpecialTokens):
        raise UserError(f"--data.special_tokens must be keep or split, not {value!r}")
