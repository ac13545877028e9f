"""Readers of users' tables (CSV, JSON lines, Parquet) that return columns of plain Python values."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".parquet", ".jsonl", ".csv")
# Most characters of a value or name, and most names, in a message.
MOST_CHARACTERS, MOST_NAMES = 60, 20
_SURROGATE = re.compile("[\ud800-\udfff]")
_QUOTES = 'put texts that hold commas between double quotes ("like, this")'


@dataclass(frozen=True)
class RawSplit:
    """One split as its source has it: `frame` with the columns that the task uses, and its origin `where`."""

    frame: pd.DataFrame
    columns: tuple[str, ...]  # all columns of the source, for messages
    where: str


@dataclass(frozen=True)
class _Table:
    """A file's column names as written, the values of the wanted columns, and the line of each row."""

    names: Sequence[str]
    columns: dict[str, list[Any]]
    rows: int
    lines: list[int] | None = None


def read_table(path: Path, wanted: Sequence[str]) -> RawSplit:
    """Read the columns in `wanted` that exist from a .parquet, .jsonl or .csv file.

    Missing values are None. CSV is RFC 4180 in UTF-8: every record has as many fields as the header, quotes inside a
    quoted field are doubled, and an empty field is a missing value.

    Raises:
        UserError: the file cannot be read in the format of its suffix. Errors in a row name its line.
    """
    import pandas as pd

    reader = {".parquet": _read_parquet, ".jsonl": _read_jsonl}.get(path.suffix.lower(), _read_csv)
    try:
        table = reader(path, list(dict.fromkeys(wanted)))
    except UserError:
        raise
    except Exception as error:  # pyarrow, csv and the decoders share no base class
        raise _fail(path, _reason(path, error)) from error
    for name, values in table.columns.items():
        if (row := lone_surrogate(values)) is not None:
            where = f"row {row} (counted from 0)" if table.lines is None else f"line {table.lines[row]}"
            raise _fail(path, f"{where} has in its column {name!r} {NO_CHARACTER}")
    columns = {name: pd.Series(values, dtype=object) for name, values in table.columns.items()}
    return RawSplit(pd.DataFrame(columns, index=range(table.rows)), tuple(table.names), str(path))


NO_CHARACTER = "half of a surrogate pair, which is no character and has no UTF-8: remove it, or write both halves"


def lone_surrogate(values: Iterable[Any]) -> int | None:
    """Return the index of the first value with a text that UTF-8 cannot encode, or None; searches lists and dicts."""
    values = list(values)
    try:
        "".join(text for value in values for text in _texts(value)).encode()
    except UnicodeEncodeError:
        return next(row for row, value in enumerate(values) if any(map(_SURROGATE.search, _texts(value))))
    return None


def shown_value(value: Any) -> str:
    """Format a value of a user's file for a message: its `repr`, truncated."""
    return _cut(repr(value))


def shown_names(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """Format at most `most` names of a user's file for a message."""
    found = [_cut(name if name.isprintable() else repr(name)) for name in names[:most]]
    return ", ".join([*found, *(["..."] if len(names) > most else [])])


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _fail(path: Path, reason: str) -> UserError:
    return UserError(f"cannot read {path}: {reason}")


def _check_names(path: Path, names: Iterable[str], wanted: Iterable[str], what: str) -> None:
    """Raise UserError if a wanted column occurs more than once."""
    counts = Counter(names)
    for name in wanted:
        if counts[name] > 1:
            raise _fail(path, f"{what} has {counts[name]} columns named {name!r}; keep one, or rename the others")


# CSV -----------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, wanted: list[str]) -> _Table:
    # All fields stay texts, "007" and "null" too; labels are compared as texts.
    names: list[str] = []
    found: list[list[str]] = []
    lines: list[int] = []
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, record in _records(path, file):
                if names:
                    found.append(record)
                    lines.append(line)
                else:
                    _check_names(path, record, wanted, f"line {line}")
                    names = record
    finally:
        csv.field_size_limit(limit)
    if not names:
        raise _fail(path, "it is empty; its first line must name the columns")
    places = {name: names.index(name) for name in wanted if name in names}
    columns = {name: [record[place] or None for record in found] for name, place in places.items()}
    return _Table(names, columns, len(found), lines)


def _records(path: Path, file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield header and records, each with its first physical line; all have one width, blank lines are skipped."""
    source: list[str] = []  # physical lines of the current record
    reader = csv.reader(_kept(file, source), strict=True)
    width = 0
    while True:
        source.clear()
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _fail(path, _csv_fault(line, error)) from error
        if not record or (len(record) == len(source) == 1 and not source[0].strip()):
            continue
        width = width or len(record)
        if len(record) != width:
            columns = f"line {line} has {len(record)} column{'s' * (len(record) > 1)} and the first line {width}"
            hint = _QUOTES if len(record) > width else f"fill in what is missing, and {_QUOTES} or line breaks"
            raise _fail(path, f"{columns}: {hint}")
        if any('\\"' in part for part in source) and _has_other_reading(source, record, width):
            reason = f"line {line} can be read in two ways, since its quotes may be escaped by backslashes: {_DOUBLED}"
            raise _fail(path, f"{reason}, or save the table as .jsonl or .parquet")
        yield line, record


_DOUBLED = 'write a quote inside of a quoted text twice (""), without a backslash'


def _kept(file: Iterable[str], source: list[str]) -> Iterator[str]:
    for line in file:
        source.append(line)
        yield line


def _csv_fault(line: int, error: csv.Error) -> str:
    if "end of data" in str(error):
        return f"a quoted text that begins in line {line} has no end: close it, or {_DOUBLED}"
    if "expected after" in str(error):
        return f"line {line} goes on after a closing quote: {_DOUBLED}, and nothing between the quote and the comma"
    return f"line {line} is not CSV ({error})"


def _has_other_reading(source: list[str], record: list[str], width: int) -> bool:
    """Return whether a record's lines, read with backslash escapes, are also valid records but with other fields."""
    try:
        others = list(csv.reader(source, escapechar="\\", strict=True))
    except csv.Error:
        return False
    if any(len(other) != width for other in others):
        return False
    return [[field.replace("\\", "") for field in row] for row in others] != [
        [field.replace("\\", "") for field in record]
    ]


# JSON lines ----------------------------------------------------------------------------------------------------------


class _Repeating(dict[str, Any]):
    """A JSON object with a duplicate key."""

    names: list[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        found = _Repeating(found)
        found.names = [name for name, _ in pairs]
    return found


def _repeating(value: Any) -> Iterator[_Repeating]:
    """Yield the objects with a duplicate key in a JSON value, at any depth."""
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, _Repeating):
            yield inner
        if isinstance(inner, dict | list):
            left.extend(inner.values() if isinstance(inner, dict) else inner)


def _read_jsonl(path: Path, wanted: list[str]) -> _Table:
    rows, lines = [], []
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = decoder.decode(line)
            except (ValueError, RecursionError) as error:
                raise _fail(path, f"line {number} is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise _fail(path, f"line {number} is not a JSON object")
            if isinstance(row, _Repeating):
                _check_names(path, row.names, wanted, f"line {number}")
            for name in wanted:
                for inner in _repeating(row.get(name)):
                    _check_names(path, inner.names, inner, f"line {number} in its {name!r}")
            rows.append(row)
            lines.append(number)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in wanted if name in names}
    return _Table(names, columns, len(rows), lines)


# Parquet -------------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, wanted: list[str]) -> _Table:
    import pyarrow.parquet as pq

    # Not pandas: its metadata may turn a column into the index, and a folder `x=1` adds a column.
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        _check_names(path, names, wanted, "it")
        chosen = [name for name in wanted if name in names]
        table = file.read(columns=chosen)
        rows = file.metadata.num_rows
    return _Table(names, {name: _values(path, name, table.column(name)) for name in chosen}, rows)


def _values(path: Path, name: str, column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        for row, value in enumerate(column):
            try:
                value.as_py()
            except UnicodeDecodeError:
                where = f"row {row} (counted from 0) has in its column {name!r} a value that"
                raise _fail(path, f"{where} is not UTF-8 text; save it as UTF-8") from error
        raise


# Reasons -------------------------------------------------------------------------------------------------------------


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return not_utf8(path) if isinstance(error, UnicodeDecodeError) else one_line(error)


def not_utf8(path: Path) -> str:
    """Return the message for a text file that is not UTF-8, with the line and value of the first invalid byte."""
    data = path.read_bytes()
    reason = "it is not UTF-8 text; save it as UTF-8"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1
        return f"{reason} (line {line} holds the byte 0x{data[error.start]:02x})"
    return reason


def one_line(error: Exception) -> str:
    """Return the message of an exception on one line, at most 200 characters."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text; save it as UTF-8"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
