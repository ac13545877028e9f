"""Progress with time left, on standard error, for what takes longer than a moment; it is gone when the work is done."""

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
    """A bar for work whose size is known: description, share done, time left.

    Args:
        shown: False in all processes but the first.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    # Not on standard output: what a command prints there may be read by a program.
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, disable=not (shown and _is_watched(console)), transient=True)


def steps(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items one by one, under a bar.

    Args:
        items: what a loop goes through.
        description: what is done to them.
        total: how many there are, where `items` does not know.
    """
    known = total if total is not None else len(items) if isinstance(items, Sized) else None
    with progress() as bar:
        task = bar.add_task(description, total=known)
        for item in items:
            yield item
            bar.advance(task)


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """A sign of life over work that does not tell how far it is, with the seconds that it has taken."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not _is_watched(console), transient=True) as bar:
        bar.add_task(description, total=None)
        yield


def _is_watched(console: Console) -> bool:
    """Whether somebody looks on; a file would only get blank lines.

    In a notebook rich draws with ipywidgets, and without them a warning in place of each bar.
    """
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
