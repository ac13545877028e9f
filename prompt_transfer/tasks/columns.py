"""Texts of a row: a column, or several columns in a format string such as ``{question} {answer}``."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any


def columns_of(spec: str | None) -> list[str]:
    """Return the columns that a specification reads: ``a``, or those of ``{a} {b}``; ``{idx[question]}`` reads ``idx``.

    Raises:
        ValueError: a format string that cannot be read.
    """
    if spec is None:
        return []
    if not is_composed(spec):
        return [spec]
    names = (name for _, name, _, _ in string.Formatter().parse(spec) if name is not None)
    return list(dict.fromkeys(name.partition("[")[0].partition(".")[0] for name in names))


def all_columns(specs: Iterable[str | None]) -> list[str]:
    """Return the columns that several specifications read, each once."""
    return list(dict.fromkeys(name for spec in specs for name in columns_of(spec)))


def is_composed(spec: str) -> bool:
    """Return whether a specification is a format string."""
    return "{" in spec


def composed(spec: str, row: Mapping[Any, Any], values: Mapping[str, Mapping[str, str]]) -> str:
    """Return the text of a row.

    Args:
        spec: a column or a format string.
        row: column -> value.
        values: column -> its value -> the text in its place.
    """
    replaced = {name: values.get(name, {}).get(str(value), value) for name, value in row.items()}
    return spec.format_map(replaced) if is_composed(spec) else replaced[spec]
