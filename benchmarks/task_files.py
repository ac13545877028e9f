"""Random task files for `fuzz_tasks.py` (CSV, JSON lines and Parquet; valid, faulty or damaged), and reference readers.

Every cell contains a mark of its column, which reveals cells read from the wrong column.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prompt_transfer.tasks.task import Task

PIECES = [
    "a film", "caf\u00e9", ",", '"', "\n", "\r\n", "\r", "\\", '\\"', '\\",', "'", ";", "\t", "</s>", "NA", "\u2028",
    "\U0001f642", "\0", "\ufeff", "#", '","', '""', "\x0b", "\x1c", "\x85", "{", "[", "  ",
]  # fmt: skip
WHOLE = ["NA", "null", "007", "nan", "1.0", "-", "None", "true", "#", "a, b"]
# Prefix and suffix of every cell in a column: a text with another column's mark was read from the wrong column.
MARKS = {"text": "tx", "second": "sc", "note": "nt"}
FOREIGN = {name: re.compile("|".join(rf"{mark}\d+q" for key, mark in MARKS.items() if key != name)) for name in MARKS}
# Two labels as in a file, and as in the task.
LABELS: list[tuple[tuple[Any, Any], tuple[Any, Any] | None]] = [
    ((0, 1), (0, 1)), ((False, True), (0, 1)), ((0.0, 1.0), (0, 1)), (("0", "1"), None), ((0, 1), (False, True)),
    (("False", "True"), None), (("bad", "good"), ("bad", "good")),
]  # fmt: skip
BREAK = re.compile(r"\r\n|\r|\n")
Rows = list[tuple[str, str, int]]


@dataclass
class Made:
    """A file and its expected content.

    Attributes:
        kind: csv, jsonl or parquet.
        way: `same`, `fault ...` or `damage`.
        rows: text, second text ("" if the task has none) and class of each row as written.
        place: for a fault, the place that the message must name; "" for a fault of the whole file.
        texts_place: the same for a reader that needs no labels; None if it must read the rows.
    """

    kind: str
    task: Task
    rows: Rows
    way: str = "same"
    data: bytes = b""
    place: str | None = None
    texts_place: str | None = None

    def fault(self, way: str, place: str, *, labels_alone: bool = False) -> None:
        """Record a fault and its place."""
        self.way, self.place, self.texts_place = f"fault {way}", place, None if labels_alone else place


@dataclass
class Sheet:
    """A table to be written: its ordered columns and their cells."""

    names: list[str]
    cells: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.cells["text"])

    def row(self, number: int) -> dict[str, Any]:
        return {name: self.cells[name][number] for name in self.names}


def sheet(draw: random.Random, kind: str) -> tuple[Sheet, Made]:
    """Return a table of random texts and its expected content."""
    count, pairs = draw.randrange(6, 13), draw.random() < 0.4
    labels, known = draw.choice(LABELS)
    names = ["text", "label", *(["second"] if pairs else []), *(["note"] if draw.random() < 0.5 else [])]
    draw.shuffle(names)

    def text(mark: str, row: int) -> str:
        if draw.random() < 0.06:
            return draw.choice(WHOLE)
        inside = "".join(draw.choice(PIECES) + draw.choice(("", " ")) for _ in range(draw.randrange(5)))
        return f"{mark}{row}q {inside}{mark}{row}z"

    cells: dict[str, list[Any]] = {
        name: [text(mark, row) for row in range(count)] for name, mark in MARKS.items() if name in names
    }
    cells["label"] = [labels[row % 2] for row in range(count)]
    task = Task("toy", "topic", "text", "second" if pairs else None, labels=known, label_words=("bad", "good"))
    second = cells["second"] if pairs else [""] * count
    rows = [(first, other, row % 2) for row, (first, other) in enumerate(zip(cells["text"], second, strict=True))]
    return Sheet(names, cells), Made(kind, task, rows)


def spoil(draw: random.Random, table: Sheet, made: Made, missing: Any) -> bool:
    """Put a value into the table that is invalid in every format; return False if this draw changes nothing."""
    row, way = draw.randrange(len(table)), draw.choice(("label", "no label", "no text", ""))
    place = f"row {row} (counted from 0)"
    if way == "label":
        table.cells["label"][row] = "maybe" if made.kind != "parquet" or made.task.labels == ("bad", "good") else 7
        if made.kind == "parquet":
            table.cells["label"] = [str(label) for label in table.cells["label"]]
        made.fault("unknown label", place, labels_alone=True)
    elif way == "no label":
        table.cells["label"][row] = missing
        made.fault("no label", place, labels_alone=True)
    elif way == "no text":
        table.cells["text"][row] = missing
        # A reader without labels accepts the row as an empty text.
        made.rows[row] = ("", *made.rows[row][1:])
        made.fault("no text", f"the first in row {row} (counted from 0)", labels_alone=True)
    return bool(way)


# CSV -----------------------------------------------------------------------------------------------------------------


def csv_field(draw: random.Random, value: Any, always: bool = False) -> str:
    """Format a value by RFC 4180, sometimes with unnecessary quotes or unescaped inner quotes."""
    text = "" if value is None else str(value)
    must = any(part in text for part in ',\r\n"')
    if must and not any(part in text for part in ",\r\n") and not text.startswith('"') and draw.random() < 0.3:
        must = False
    if always or must or (text and not text.strip()) or draw.random() < 0.1:
        return '"' + text.replace('"', '""') + '"'
    return text


def make_csv(draw: random.Random, table: Sheet, made: Made, faulty: bool) -> bytes:
    """Return a CSV file, optionally with a CSV-specific fault in a row or the header."""
    spoiled = faulty and spoil(draw, table, made, None)
    end, always, blanks = draw.choice(("\n", "\r\n", "\r")), draw.random() < 0.3, draw.random() < 0.2
    header = list(table.names)
    records = [[csv_field(draw, cell, always) for cell in table.row(row).values()] for row in range(len(table))]
    bad, way = draw.randrange(len(table)), ""
    if faulty and not spoiled:
        way = draw.choice(("comma", "missing", "backslash", "unclosed", "encoding", "twice", "no header", "separator"))
        column, text = table.names.index("text"), f"tx{bad}q"
        if way == "comma":
            records[bad][column] = f"{text} I hated it,{draw.choice((' really', '', ' ,'))}"
            if draw.random() < 0.3:  # in every row, which makes pandas use the first field as an index
                bad = 0
                for record in records:
                    record[column] = f"{text} one, two"
        elif way == "missing":
            del records[bad][draw.randrange(len(header))]
        elif way == "backslash":
            records[bad][column] = draw.choice((f'"{text} say \\"no\\", really"', f'"{text} \\""', f'"{text} \\", so"'))
        elif way == "unclosed":
            records[bad][column] = f'"{text} a film'
        elif way == "encoding":
            records[bad][0] = "\ue000" + records[bad][0]
        elif way == "twice":
            header.append("text")
            records = [[*record, "nt0q"] for record in records]
    separator = draw.choice((";", "\t", "|")) if way == "separator" else ","
    lines, place, whole = [], "", ""
    for number, record in enumerate([header, *records]):
        if number == 0 and way == "no header":
            continue
        if blanks and draw.random() < 0.3:
            whole += draw.choice(("", "  ")) + end
        if way and ((way == "twice" and number == 0) or number == bad + 1):
            place = place or f"line {len(BREAK.findall(whole)) + 1}"
        whole += separator.join(record) + end
        lines.append(whole)
    if way:
        made.fault(way, "" if way in ("no header", "separator") else f"{place} ")
        if way == "encoding":
            made.fault(way, f"({place} ")
    if draw.random() < 0.2:
        whole = whole.removesuffix(end)
    data = whole.encode().replace("\ue000".encode(), b"\xe9")
    return b"\xef\xbb\xbf" + data if draw.random() < 0.2 else data


def reference_csv(data: bytes, column: str) -> list[str] | None:
    """Read a column by RFC 4180, character by character; None if the file is malformed or its rows differ in length."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    records: list[list[str]] = []
    place, size = 0, len(text)
    while place < size:
        record, begun = [], place
        while True:  # a field
            if place < size and text[place] == '"':
                value, place = "", place + 1
                while True:
                    close = text.find('"', place)
                    if close < 0:
                        return None
                    value += text[place:close]
                    place = close + 1
                    if text[place : place + 1] != '"':
                        break
                    value, place = value + '"', place + 1
                if place < size and text[place] not in ",\r\n":
                    return None
            else:
                stop = re.compile(r"[,\r\n]|\Z").search(text, place)
                assert stop is not None
                value, place = text[place : stop.start()], stop.start()
            record.append(value)
            if text[place : place + 1] != ",":
                break
            place += 1
        line = text[begun:place]
        found = BREAK.match(text, place)
        place = found.end() if found else place
        if line.strip():
            records.append(record)
    if not records or len({len(record) for record in records}) > 1 or records[0].count(column) != 1:
        return None
    return [record[records[0].index(column)] for record in records[1:]]


# JSON lines ----------------------------------------------------------------------------------------------------------


def make_jsonl(draw: random.Random, table: Sheet, made: Made, faulty: bool) -> bytes:
    """Return JSON lines, optionally with a JSON-specific fault in one line."""
    spoiled = faulty and spoil(draw, table, made, None)
    end, plain, blanks = draw.choice(("\n", "\r\n")), draw.random() < 0.5, draw.random() < 0.2
    bad, way = draw.randrange(len(table)), ""
    if faulty and not spoiled:
        way = draw.choice(("surrogate", "cut", "twice", "number", "array", "encoding", "deep"))
    whole = ""
    for row in range(len(table)):
        values = table.row(row)
        if draw.random() < 0.2:
            values = dict(draw.sample(list(values.items()), len(values)))
        if draw.random() < 0.2:
            values["more"] = draw.choice((None, [1, {"text": "nt0q"}], {"text": "nt0q"}, 1e300))
        if blanks and draw.random() < 0.3:
            whole += draw.choice(("", "  ")) + end
        if row == bad and way == "number":
            values["text"] = draw.choice((5, True, [], {"text": "tx"}))
        line = json.dumps(values, ensure_ascii=plain)
        if row == bad and way:
            line = {
                "surrogate": line.replace('"text": "', f'"text": "\\ud83d{draw.choice(("", " ", "x"))}', 1),
                "cut": line[: draw.randrange(1, len(line))],
                "twice": line[:-1] + ', "text": "nt0q"}',
                "array": f"[{line}]",
                "encoding": "\ue000" + line,
                "deep": line[:-1] + ', "x": ' + "[" * 100_000,
            }.get(way, line)
            place = f"line {len(BREAK.findall(whole)) + 1} "
            made.fault(way, {"number": f"row {row} (counted from 0)", "encoding": f"({place}"}.get(way, place))
        whole += line + end
    data = whole.encode().replace("\ue000".encode(), b"\xe9")
    return b"\xef\xbb\xbf" + data if draw.random() < 0.2 else data


def reference_jsonl(data: bytes, column: str) -> list[Any] | None:
    """Read a column line by line."""
    try:
        lines = BREAK.split(data.decode("utf-8-sig"))
        # A line without the column has a missing value.
        return [json.loads(line).get(column) for line in lines if line.strip()]
    except (ValueError, AttributeError, RecursionError):
        return None


# Parquet -------------------------------------------------------------------------------------------------------------


def make_parquet(draw: random.Random, table: Sheet, made: Made, faulty: bool) -> bytes:
    """Return a Parquet file of one of many column types, with or without pandas metadata."""
    spoiled = faulty and spoil(draw, table, made, None)
    types: list[Any] = [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.string_view()]
    names = list(table.names)
    columns = [pa.array(table.cells[name], None if name == "label" else pa.string()) for name in names]
    columns = [
        column.cast(draw.choice(types[:3])) if name != "label" and draw.random() < 0.5 else column
        for name, column in zip(names, columns, strict=True)
    ]
    bad, text = draw.randrange(len(table)), names.index("text")
    if faulty and not spoiled:
        way = draw.choice(("encoding", "twice", "bytes", "renamed", "cut"))
        place = f"row {bad} (counted from 0)" if way == "encoding" else "row 0 (counted" if way == "bytes" else ""
        made.fault(way, place)
        raw = [str(cell).encode() + (b"\xff" if row == bad else b"") for row, cell in enumerate(table.cells["text"])]
        if way == "encoding":
            columns[text] = pa.array(raw, pa.binary()).view(pa.string())
        elif way == "bytes":
            columns[text] = pa.array(raw, pa.binary())
        elif way == "twice":
            names.append("text")
            columns.append(columns[text])
        elif way == "renamed":
            names[text] = draw.choice(("Text", "text ", "sentence", "text\n", ""))
    found, file = pa.Table.from_arrays(columns, names), io.BytesIO()
    if not faulty and draw.random() < 0.4:
        frame = found.to_pandas()
        index = draw.sample(names, draw.choice((1, 1, 2)))
        frame.set_index(index).to_parquet(file)
    else:
        options = {"compression": draw.choice(("none", "snappy", "zstd")), "row_group_size": draw.choice((2, 5, 100))}
        version = draw.choice(("1.0", "2.0"))
        pq.write_table(found, file, data_page_version=version, use_dictionary=draw.random() < 0.5, **options)
    data = file.getvalue()
    return data[: draw.randrange(len(data))] if made.way == "fault cut" else data


def reference_parquet(data: bytes, column: str) -> list[Any] | None:
    """Read a column with `pyarrow` only."""
    try:
        return pq.read_table(pa.BufferReader(data), columns=[column]).column(column).to_pylist()
    except Exception:  # damaged files cause many types of errors in pyarrow
        return None


MAKERS: dict[str, Callable[[random.Random, Sheet, Made, bool], bytes]] = {
    "csv": make_csv, "jsonl": make_jsonl, "parquet": make_parquet,
}  # fmt: skip
REFERENCES = {"csv": reference_csv, "jsonl": reference_jsonl, "parquet": reference_parquet}
KINDS = tuple(MAKERS)


def damaged_lines(data: bytes, draw: random.Random) -> bytes:
    """Drop, duplicate, swap, join, split or cut lines."""
    lines = data.splitlines(keepends=True)
    for _ in range(draw.choice((1, 1, 2))):
        place, way = draw.randrange(len(lines)), draw.randrange(6)
        if way == 0 and len(lines) > 1:
            del lines[place]
        elif way == 1:
            lines.insert(place, lines[place])
        elif way == 2:
            other = draw.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
        elif way == 3:
            lines[place] = lines[place].rstrip(b"\r\n")
        elif way == 4:
            cut = draw.randrange(len(lines[place]) + 1)
            lines[place] = lines[place][:cut] + b"\n" + lines[place][cut:]
        else:
            lines[place] = lines[place][: draw.randrange(len(lines[place]) + 1)]
    return b"".join(lines)
