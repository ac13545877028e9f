"""Tidy tables of results (one row per measurement), written to files or printed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

# Columns of every table, in this order; further columns record how a value was computed.
COLUMNS = ("task", "backbone", "prompt", "seed", "split", "metric", "value", "low", "high", "n")

# Lines that one word of a cell may take; a table that needs more is printed as one block per row.
MOST_PIECES = 5

# Tables collected for `--json`; None otherwise.
_kept: list[dict[str, Any]] | None = None


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a frame with the common columns first; absent values become NaN.

    Args:
        rows: `value` in 0..1; `low` and `high` the 95 % bootstrap interval over examples; `n` the number of examples.
    """
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    extra = [column for column in frame.columns if column not in COLUMNS]
    return frame.reindex(columns=[*COLUMNS, *extra])


def write(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a frame as `.csv`, `.jsonl` or `.parquet`, atomically.

    Raises:
        UserError: another suffix, or the path cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".jsonl", ".parquet"):
        raise UserError(f"cannot write a table to {path}: the name must end in .jsonl, .csv or .parquet")
    with atomic_path(path) as temporary:
        if path.suffix in (".csv", ".jsonl"):
            temporary.write_text(as_text(frame, path.suffix), encoding="utf-8", newline="")
        else:
            frame.to_parquet(temporary, index=False)
    return path


def as_text(frame: pd.DataFrame, suffix: str) -> str:
    """Return a frame as the text of a .csv or .jsonl file."""
    if suffix == ".jsonl":
        return str(frame.to_json(orient="records", lines=True, force_ascii=False))
    return str(frame.to_csv(index=False))


@contextmanager
def kept() -> Iterator[list[dict[str, Any]]]:
    """Collect the tables shown inside the context as `{"title": ..., "rows": [...]}` of JSON values."""
    global _kept
    outer, _kept = _kept, []
    try:
        yield _kept
    finally:
        _kept = outer


def keeping() -> bool:
    """Return whether tables are collected for `--json`."""
    return _kept is not None


def keep(rows: Sequence[dict[str, Any]], title: str | None = None) -> None:
    """Collect rows for `--json`; without it do nothing."""
    if _kept is not None:
        _kept.append({"title": title, "rows": [{str(key): plain(value) for key, value in row.items()} for row in rows]})


def show(
    rows: Sequence[dict[str, Any]],
    title: str | None = None,
    columns: Sequence[str] | None = None,
    data: Sequence[dict[str, Any]] | None = None,
    spare: Sequence[str] = (),
    common: Sequence[str] = (),
) -> None:
    """Print rows as a table, or collect them for `--json`.

    Floats are shown with three decimals, lists joined by commas. On a narrow terminal cells break between words, then
    after `_`, `/` or `-`, and elsewhere only if nothing else fits; numbers never. A table that would break words into
    more than `MOST_PIECES` lines is printed as one block per row.

    Args:
        rows: one dict per row.
        title: title of the table.
        columns: columns to show; default: all.
        data: rows for `--json`, if `rows` are formatted for reading; default: `rows` with all columns.
        spare: columns to drop if the terminal is too narrow, in this order.
        common: columns that move to the title if all rows have the same value.
    """
    if keeping():
        keep(rows if data is None else data, title)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not rows:
        console.print("(nothing)")
        return
    columns = list(columns or dict.fromkeys(key for row in rows for key in row))
    shared = [column for column in common if column in columns and len({_cell(row.get(column)) for row in rows}) == 1]
    columns = [column for column in columns if column not in shared]
    title = ", ".join([*([title] if title else []), *(_cell(rows[0].get(column)) for column in shared)]) or None
    numeric = {
        column
        for column, kinds in ((column, {type(row.get(column)) for row in rows}) for column in columns)
        if kinds - {type(None)} and kinds <= {int, float, type(None)}
    }
    rest = iter(spare)
    while True:
        cells = [[_cell(row.get(column)) for column in columns] for row in rows]
        # Columns are separated by two spaces; vertical lines would need a third.
        room = console.width - 2 * len(columns)
        whole = sum(max(map(len, column)) for column in zip(columns, *cells, strict=True))
        out = next((column for column in rest if column in columns), None) if whole > room else None
        if out is None:
            break
        columns.remove(out)
    widths = fit_widths([columns, *cells], room, [column in numeric for column in columns])
    if title:
        console.print(Text(title, style="italic"))
    if sum(widths) > room:
        _show_records(console, columns, cells)
        return
    view = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column, width in zip(columns, widths, strict=True):
        justify: Any = "right" if column in numeric else "left"
        view.add_column(Text(fold(column, width), style="bold"), justify=justify, overflow="fold", width=width)
    for row in cells:
        # As Text: rich would parse brackets as markup.
        view.add_row(*(Text(fold(cell, width)) for cell, width in zip(row, widths, strict=True)))
    console.print(view)


def _show_records(console: Console, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Print a table that is too wide for the terminal as one block per row: a line per column."""
    from rich.text import Text

    left = min(max(map(len, columns)), console.width // 3)
    for number, row in enumerate(cells):
        if number:
            console.print()
        for column, cell in zip(columns, row, strict=True):
            lines = fold(cell, max(console.width - left - 2, 10)).splitlines() or [""]
            head = fold(column, left).splitlines()[0].ljust(left)
            console.print(Text(head, style="bold") + Text(f"  {lines[0]}"))
            for line in lines[1:]:
                console.print(Text(" " * (left + 2) + line))


def fit_widths(rows: Sequence[Sequence[str]], room: int, whole: Sequence[bool] = ()) -> list[int]:
    """Return column widths that together fit into `room` characters; wider if cells would break too often.

    Shrinks the widest column that can break at a space; if there is none, the widest that can break after `_`, `/` or
    `-`; then the widest of all, until a word takes `MOST_PIECES` lines.

    Args:
        rows: the header and the cells.
        room: characters of all columns.
        whole: whether the cells of a column must not be broken, as numbers; none: any cell may be.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    unbroken = [
        [max((len(part) for cell in column for part in parts(cell)), default=1) for column in columns]
        for parts in (lambda cell: cell.split(" "), _parts)
    ]
    least = [-(-most // MOST_PIECES) for most in unbroken[1]]
    for index, fixed in enumerate(whole):
        if fixed:
            least[index] = max([least[index], *map(len, columns[index][1:])])
    while sum(widths) > room:
        loose = next(
            (
                found
                for limits in (*unbroken, least)
                if (found := [index for index, width in enumerate(widths) if width > max(limits[index], least[index])])
            ),
            None,
        )
        if loose is None:
            break
        widths[max(loose, key=lambda index: widths[index])] -= 1
    return widths


def fold(text: str, width: int) -> str:
    """Break text into lines of at most `width` characters: between words, else after `_`, `/` or `-`, else anywhere."""
    lines = [""]
    words = re.findall(r"[^ ]+ *", text)
    for piece in [part for word in words for part in ([word] if len(word.rstrip()) <= width else _parts(word))]:
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        while len(piece.rstrip()) > width:
            lines[-1], piece = piece[:width], piece[width:]
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines).replace(FIXED, " ")


# Keeps an interval on one line.
FIXED = "\N{NO-BREAK SPACE}"


def _parts(text: str) -> list[str]:
    """Split text after spaces, `_`, `/` and `-`; a minus sign stays with its number."""
    return re.findall(r"[^ _/-]*(?:-(?=\d)[^ _/-]*)*(?: +|[_/-]|$)", text)


def plain(value: Any) -> Any:
    """Return a JSON value: NumPy scalars as numbers, missing or non-finite values as null, anything else as text."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    # Missing values of pandas.
    return None if str(value) in ("<NA>", "NaT") else str(value)


def interval(low: float, high: float, digits: int) -> str:
    """Format an interval for a table cell; "-" if it is NaN."""
    if math.isnan(low):
        return "-"
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(low, digits) + 0.0:.{digits}f}{FIXED}to{FIXED}{round(high, digits) + 0.0:.{digits}f}"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}".replace("-0.000", "0.000")
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    # Collapse whitespace: file metadata may contain line breaks.
    return re.sub(r"[^\S\N{NO-BREAK SPACE}]+", " ", str(value)).strip()
