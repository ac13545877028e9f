"""Transient progress bars on standard error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")


def progress(shown: bool = True) -> Progress:
    """Return a progress bar with description, percentage and remaining time.

    Args:
        shown: False hides it, as on all ranks but the first.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    # Standard output may be read by a program.
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, disable=not (shown and is_watched(console)), transient=True)


def steps(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items under a progress bar.

    Args:
        items: items to iterate over.
        description: label of the bar.
        total: number of items; needed if `items` has no length.
    """
    known = total if total is not None else len(items) if isinstance(items, Sized) else None
    with progress() as bar:
        task = bar.add_task(description, total=known)
        for item in items:
            yield item
            bar.advance(task)


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Show a spinner and the elapsed time during work of unknown length."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not is_watched(console), transient=True) as bar:
        bar.add_task(description, total=None)
        yield


def is_watched(console: Console) -> bool:
    """Return whether the console is interactive; a file would only get blank lines.

    In a notebook rich needs ipywidgets, and without them prints a warning instead of each bar.
    """
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


def duration(seconds: float) -> str:
    """Return a rough duration: `40 s`, `12 min` or `3.5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
