"""Texts without answers, from a user's file or an unlabelled split."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_transfer.data.choices import option_texts
from prompt_transfer.data.table_files import (
    NO_CHARACTER,
    SUFFIXES,
    RawSplit,
    lone_surrogate,
    not_utf8,
    read_table,
    shown_names,
    shown_value,
)
from prompt_transfer.tasks.columns import all_columns, columns_of, composed, is_composed
from prompt_transfer.tasks.labels import label_key
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

# Table formats that are not supported; read as plain text, each line would count as one text.
OTHER_TABLES = (".tsv", ".json", ".ndjson", ".xlsx", ".arrow")


def load_texts(path: str | Path, task: Task) -> Dataset:
    """Read texts to predict: columns ``id`` (row or line number from 0), ``text_a``, ``text_b`` (empty if single).

    A table with the task's column of labels, or target texts, also has them in ``gold``, as text.

    Args:
        path: .csv, .jsonl or .parquet with the task's text columns, a file with one text per line, where blank lines
            are skipped (their numbers are missing in ``id``), or - for such lines from standard input.
        task: task that names the text columns.

    Raises:
        UserError: the file cannot be read, or has no text for the task.
    """
    if str(path) == "-":
        return _texts_of_lines(sys.stdin.read().split("\n"), "standard input")
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in OTHER_TABLES:
        raise UserError(
            f"{path} is not plain text: save it as {', '.join(SUFFIXES[1:])} or .parquet, or as one text a line"
        )
    if suffix not in SUFFIXES:
        return _lines(path)
    raw = read_table(path, all_columns((task.text_a, task.text_b, *task.choices)))
    if not len(raw.frame):
        raise UserError(f"{path} holds no row")
    rows = unlabelled_rows(task, "the file", raw)
    answer = task.target_column or task.label_column
    if answer not in raw.columns:
        return rows
    try:
        gold = [gold_answer(task, value) for value in read_table(path, [str(answer)]).frame[answer].tolist()]
    except UserError as error:  # the texts can be predicted without their answers
        warnings.warn(f"the known answers in the column {answer!r} are left out: {error}", stacklevel=2)
        return rows
    return rows if all(value is None for value in gold) else rows.add_column("gold", gold)


def gold_answer(task: Task, value: Any) -> str | None:
    """Return a known answer as text: a label as the task writes it, or reference texts, several as JSON."""
    if task.is_generation:
        value = value.get("text") if isinstance(value, dict) else value
        several = isinstance(value, list | tuple) and len(value) != 1
        value = value[0] if isinstance(value, list | tuple) and not several else value
        return None if value is None else json.dumps(value, ensure_ascii=False) if several else str(value)
    key = label_key(value)
    return None if key is None else {label_key(label): str(label) for label in task.class_labels}.get(key, str(value))


def typed_texts(task: Task, texts: Sequence[str], texts_b: Sequence[str] = ()) -> Dataset:
    """Return texts of a command line as texts to predict; `texts_b` are the second ones of pairs.

    Raises:
        UserError: a task on pairs without second texts, or a multiple-choice task.
    """
    rows = texts_to_predict(texts, texts_b or None)
    if task.is_choice:
        raise UserError(f"task {task.name} is multiple choice: give a table with the columns of texts and options")
    if task.pairs and not all(rows["text_b"][:]):
        raise UserError(f"task {task.name} is about pairs: give the second text of every --text with --text_b")
    warn_of_empty(task, "the given texts", rows["id"][:], rows["text_a"][:], rows["text_b"][:])
    return rows


def _lines(path: Path) -> Dataset:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = not_utf8(path) if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"cannot read {path}: {reason}; give a text file with one text a line") from error
    return _texts_of_lines(lines, str(path))


def _texts_of_lines(lines: Sequence[str], where: str) -> Dataset:
    from datasets import Dataset

    kept = [(number, line.strip()) for number, line in enumerate(lines) if line.strip()]
    if not kept:
        raise UserError(f"{where} holds no text; give one text a line")
    return Dataset.from_dict(
        {"id": [number for number, _ in kept], "text_a": [line for _, line in kept], "text_b": [""] * len(kept)}
    )


def unlabelled_rows(task: Task, what: str, raw: RawSplit) -> Dataset:
    """Return all rows of `raw` as ``id`` (row number from 0), ``text_a`` and ``text_b``; `what` names them in messages.

    A missing text becomes empty, because the other rows can still be predicted.
    """
    from datasets import Dataset

    check_columns(task, raw, (task.text_a, task.text_b, *task.choices))
    raw = replace(raw, frame=raw.frame.fillna(dict.fromkeys(all_columns((task.text_a, task.text_b)), "")))
    text_a, text_b = texts_of(task, what, raw)
    warn_of_empty(task, what, range(len(text_a)), text_a, text_b)
    choices = {"choices": option_texts(task, what, raw)} if task.is_choice else {}
    return Dataset.from_dict({"id": list(range(len(text_a))), "text_a": text_a, "text_b": text_b, **choices})


def check_columns(task: Task, raw: RawSplit, columns: Sequence[str | None]) -> None:
    """Raise UserError if the source lacks one of the columns."""
    for column in all_columns(columns):
        if column not in raw.columns:
            there = shown_names(raw.columns)
            hint = "; separate the columns by commas" if len(raw.columns) == 1 and ";" in there else ""
            raise UserError(f"task {task.name}: {raw.where} has no column {column!r}; its columns are {there}{hint}")


def warn_of_empty(
    task: Task, what: str, ids: Sequence[int] | np.ndarray, text_a: Sequence[str], text_b: Sequence[str]
) -> None:
    """Warn of empty texts; `what` names their rows, `ids` numbers them."""
    pairs = task.text_b is not None and not task.join_texts
    empty = [
        number
        for number, (first, second) in enumerate(zip(text_a, text_b, strict=True))
        if not first.strip() or (pairs and not second.strip())
    ]
    if empty:
        rows = "1 row" if len(empty) == 1 else f"{len(empty)} rows"
        warnings.warn(
            f"task {task.name}: {rows} of {what} {'has' if len(empty) == 1 else 'have'} an empty text, the first is "
            f"row {ids[empty[0]]} (counted from 0); answers to them are meaningless",
            stacklevel=5,
        )


def texts_of(task: Task, what: str, raw: RawSplit) -> tuple[list[str], list[str]]:
    """Return the first and second texts of all rows; the second is ``""`` for single or joined texts.

    Args:
        what: name of the rows in messages, e.g. "the test split".

    Raises:
        UserError: a missing value or one that is not text; the message names the row.
    """
    text_a = _column(task, what, raw, task.text_a)
    text_b = [""] * len(text_a) if task.text_b is None else _column(task, what, raw, task.text_b)
    if task.join_texts:
        return [f"{a} {b}" for a, b in zip(text_a, text_b, strict=True)], [""] * len(text_a)
    return text_a, text_b


def _column(task: Task, what: str, raw: RawSplit, spec: str) -> list[str]:
    """Return the texts of a column, or of several columns in a format string."""
    if not is_composed(spec) and spec not in task.values:
        return _plain_column(task, what, raw, spec)
    names = columns_of(spec)
    frame = raw.frame[names].astype(object).where(raw.frame[names].notna(), "")
    try:
        return [str(composed(spec, row, task.values)) for row in frame.to_dict("records")]
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"task {task.name}: the text {spec!r} cannot be made from {what} of {raw.where}: {error!r}"
        ) from error


def _plain_column(task: Task, what: str, raw: RawSplit, column: str) -> list[str]:
    values = raw.frame[column]
    missing = np.flatnonzero(values.isna().to_numpy())
    if len(missing):
        raise UserError(
            f"task {task.name}: column {column!r} of {what} has {len(missing)} missing "
            f"{'text' if len(missing) == 1 else 'texts'}, the first in row {missing[0]} (counted from 0) of "
            f"{raw.where}; fill in or remove them"
        )
    texts = values.tolist()
    wrong = next((row for row, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise UserError(
            f"task {task.name}: column {column!r} of {what} is not text: {shown_value(texts[wrong])} in row {wrong} "
            f"(counted from 0) of {raw.where}"
        )
    return texts


def texts_to_predict(texts: Dataset | Sequence[str], texts_b: Sequence[str] | None = None) -> Dataset:
    """Return texts, or a Dataset of them, as a Dataset with the columns ``id``, ``text_a`` and ``text_b``.

    Raises:
        UserError: no texts, different numbers of first and second texts, a text that UTF-8 cannot encode, or a
            duplicate id.
    """
    from datasets import Dataset

    if not isinstance(texts, Dataset):
        second = [""] * len(texts) if texts_b is None else list(texts_b)
        if len(second) != len(texts):
            raise UserError(f"{len(texts)} first texts and {len(second)} second texts; each needs its other half")
        for part in (texts, second):
            if (row := lone_surrogate(part)) is not None:
                raise UserError(f"text {row} (counted from 0) has {NO_CHARACTER}")
        ids = list(range(len(texts)))
        texts = Dataset.from_dict({"id": ids, "text_a": list(texts), "text_b": second})
    if len(texts) == 0:
        raise UserError("there is no text to predict on")
    if doubled := len(texts) - len(set(texts["id"][:])):
        raise UserError(f"{doubled} of the texts to predict have an id that another one has: give each its own")
    return texts
