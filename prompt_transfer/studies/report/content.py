"""The parts of a report: sections with tables, charts and figures. `page.py` and `latex.py` write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_transfer.tasks.registry import display_name
from prompt_transfer.utils.results import plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
Row = Mapping[str, Any]
MOST_TILES = 4


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: key in the rows.
        title: heading.
        kind: `text`, `task` (shown by its display name) or `number`.
        digits: decimals of a number.
        ends: keys of the ends of its interval, shown in brackets.
        missing: reason for a dash in this column.
    """

    key: str
    title: str
    kind: str = "text"
    digits: int = 3
    ends: tuple[str, str] | None = None
    missing: str = "not measured"

    def text(self, row: Row) -> str:
        """Return the text of a cell; a dash for a missing value."""
        value = plain(row.get(self.key))
        if value is None or value == "":
            return DASH
        if isinstance(value, bool):
            return "yes" if value else "no"
        if self.kind == "task":
            return display_name(value)
        if self.kind != "number":
            return str(value)
        low, high = (plain(row.get(end)) for end in self.ends or ("", ""))
        shown = number(value, self.digits)
        return (
            shown
            if low is None or high is None
            else f"{shown} [{number(low, self.digits)}, {number(high, self.digits)}]"
        )

    def order(self, row: Row) -> str | float | None:
        """Return the value that sorts a cell; None for a missing value."""
        value = plain(row.get(self.key))
        if isinstance(value, bool):
            return float(value)
        return value if self.kind == "number" else None if value is None else self.text(row).lower()


def number(value: float, digits: int) -> str:
    """Format a number with a real minus sign; a dash for NaN."""
    if not math.isfinite(value):
        return DASH
    # Adding 0.0 turns -0.0 into 0.0.
    text = f"{round(float(value), digits) + 0.0:,.{digits}f}" if digits else f"{round(value):,}"
    return text.replace("-", MINUS)


@dataclass(frozen=True)
class Table:
    """A table. Attributes: `name` for its file, `title`, `columns`, `rows`, and `caption`, what its numbers mean."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str = ""


@dataclass(frozen=True)
class Control:
    """A drop-down list that sets a parameter of a chart.

    Attributes:
        parameter: name of the parameter.
        label: text before the list.
        options: value -> text.
    """

    parameter: str
    label: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class Chart:
    """An interactive chart: a Vega-Lite specification with title, caption and controls."""

    name: str
    title: str
    spec: Mapping[str, Any]
    caption: str = ""
    controls: Sequence[Control] = ()


@dataclass(frozen=True)
class Figure:
    """A figure for print: `draw` returns the axes of a new Matplotlib figure."""

    name: str
    caption: str
    draw: Callable[[], Axes]


@dataclass(frozen=True)
class Tile:
    """A number that a reader should see first. Attributes: `label`, `value` and `note`, a short explanation."""

    label: str
    value: str
    note: str = ""


@dataclass
class Section:
    """One part of the page, about one study or run.

    Attributes:
        title: heading.
        lead: one or two sentences below it.
        command: name of the command that wrote the folder.
        folder: the folder.
        tiles, charts, tables, figures: contents, in this order.
        tile_note: how the tiles were chosen, if there are more such numbers.
        notes: limits of these numbers.
    """

    title: str
    lead: str
    command: str
    folder: Path
    tiles: list[Tile] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tile_note: str = ""


def first_tiles(tiles: Sequence[Tile], noun: str) -> tuple[list[Tile], str]:
    """Return the first tiles and a note if there are more; `noun` is a plural."""
    note = f"The first {MOST_TILES} of {len(tiles)} {noun}; the table has all." if len(tiles) > MOST_TILES else ""
    return list(tiles[:MOST_TILES]), note


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a frame's rows as plain JSON values, NaN as None."""
    return [{str(key): plain(value) for key, value in row.items()} for row in frame.to_dict("records")]


def counted(count: int, noun: str) -> str:
    """Return `1 task`, `13 tasks`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
