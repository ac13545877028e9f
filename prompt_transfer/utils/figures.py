"""The file formats of figures: the option `--figures png,pdf,svg` of any command, or an environment variable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from prompt_transfer.utils.errors import UserError

FORMATS = ("png", "pdf", "svg")
# An environment variable, so that the follow-up commands of a sweep and worker processes inherit it.
VARIABLE = "PROMPT_TRANSFER_FIGURES"


def figure_formats() -> tuple[str, ...]:
    """Return the formats of figures, PNG by default.

    Raises:
        UserError: the variable names an unknown format.
    """
    return parse_formats(os.environ.get(VARIABLE) or "png", VARIABLE)


def parse_formats(text: str, option: str = "--figures") -> tuple[str, ...]:
    """Return the formats of a comma-separated list, each once.

    Raises:
        UserError: no format, or an unknown one.
    """
    formats = tuple(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
    if not formats or not set(formats) <= set(FORMATS):
        raise UserError(f"{option} {text!r}: give one or several of {', '.join(FORMATS)}, separated by commas")
    return formats


@contextmanager
def using_formats(text: str | None) -> Iterator[None]:
    """Write figures in these formats inside the context; None: no change.

    Raises:
        UserError: see `parse_formats`.
    """
    if text is None:
        yield
        return
    parse_formats(text)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = text
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
