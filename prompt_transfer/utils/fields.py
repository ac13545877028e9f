"""Command-line form of dataclass fields and function parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prompt_transfer.utils.errors import UserError


@dataclass(frozen=True)
class Option:
    """How a field is given on the command line, as `Annotated[TYPE, Option(...)]`.

    Args:
        type: type of the option, where it differs from that of the field.
        read: makes the field's value of the option's value.
        name: name of the option, where it differs from that of the field.
    """

    type: Any = None
    read: Callable[[Any], Any] | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class Defaults:
    """Defaults of a command for fields of its dataclass, as `Annotated[DATACLASS, Defaults(data=...)]`."""

    values: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        object.__setattr__(self, "values", values)


# Short names of dtypes.
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def dtype_name(name: str) -> str:
    """Return the full name of a dtype given by a short one; a quantization stays (`bf16+int8`)."""
    dtype, plus, quantization = name.partition("+")
    return DTYPES.get(dtype, dtype) + plus + quantization


def check_dtype(name: str) -> str:
    """Return the full name of a dtype.

    Raises:
        UserError: there is no such dtype.
    """
    full = dtype_name(name)
    if full.partition("+")[0] not in DTYPES.values():
        raise UserError(f"unknown dtype {name!r}: choose one of {', '.join(DTYPES.values())}")
    return full


def split_list(text: str | None) -> list[str]:
    """Return the non-empty items of a comma-separated list."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def as_list(value: str | Sequence[str]) -> list[str]:
    """Return one string or several as a list."""
    return [value] if isinstance(value, str) else list(value)


# Names separated by commas.
NAMES = Option(type=str, read=split_list)
