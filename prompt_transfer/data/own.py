"""Users' own rows as a task: a DataFrame, a `datasets.Dataset` or `DatasetDict`, rows in memory, or a table file."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from prompt_transfer.data.columns import Columns, LabelWords, classes, fields_of, with_format_of
from prompt_transfer.data.table_files import (
    NO_CHARACTER,
    SUFFIXES,
    RawSplit,
    lone_surrogate,
    read_table,
    shown_names,
)
from prompt_transfer.data.texts import OTHER_TABLES
from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from pandas import DataFrame

Table: TypeAlias = "DataFrame | Dataset | DatasetDict | Mapping[str, Any] | Sequence[Mapping[str, Any]]"

_VALIDATION = ("validation", "dev", "val", "valid", "eval")


@dataclass(frozen=True)
class OwnTask:
    """A task with its rows, split -> `RawSplit`; without rows only texts can be predicted."""

    task: Task
    splits: Mapping[str, RawSplit] = field(default_factory=dict)


def own_task(columns: Columns, splits: Mapping[str, RawSplit], class_names: Sequence[str] | None = None) -> OwnTask:
    """Return the task that `columns` describe on rows that were read.

    Args:
        columns: its columns.
        splits: split -> rows, with the training rows.
        class_names: words of the labels 0..C-1, if the source names them (`datasets.ClassLabel`).

    Raises:
        UserError: a column is missing, or labels and label words do not fit each other.
    """
    train = splits["train"]
    for role, column in (("text", columns.text), ("text_b", columns.text_b), ("target", columns.target)):
        if column is not None and column not in train.columns:
            raise UserError(_no_column(columns.name, role, column, train))
    common: dict[str, Any] = {
        **{name: getattr(columns, name) for name in ("name", "type", "text_b", "cue", "max_length")},
        "text_a": columns.text,
    }
    if columns.target is not None:
        if columns.label_words is not None or columns.labels is not None:
            raise UserError(
                f"task {columns.name}: a task with a target generates text, leave out labels and label_words"
            )
        made: dict[str, Any] = {
            "label_column": None,
            "target_column": columns.target,
            "metric": columns.metric or "rougeL",
        }
        return OwnTask(Task(**common, **made, max_target_length=columns.max_target_length), splits)
    if columns.label not in train.columns:
        raise UserError(_no_column(columns.name, "label", str(columns.label), train))
    labels, words = classes(columns, train.frame[columns.label].tolist(), class_names)
    task = Task(
        **common, label_column=columns.label, labels=labels, label_words=words, metric=columns.metric or "accuracy",
        label_words_policy=columns.label_words_policy,
    )  # fmt: skip
    return OwnTask(task, splits)


def _no_column(name: str, role: str, column: str, raw: RawSplit) -> str:
    there = shown_names(raw.columns)
    hint = "; separate the columns by commas" if len(raw.columns) == 1 and ";" in there else ""
    return (
        f"task {name}: {raw.where} has no column {column!r} ({role}); its columns are {there}{hint}; name the column "
        f"with {role}= (--data.{role})"
    )


def in_memory(columns: Columns, train: Table, validation: Table | None = None, test: Table | None = None) -> OwnTask:
    """Return a task on rows in memory.

    Args:
        columns: its columns.
        train: training rows, or a DatasetDict or dict of all splits.
        validation, test: rows of the other splits.

    Raises:
        UserError: the rows are no table, or do not fit the columns.
    """
    parts: dict[str, Any] = {"train": train, "validation": validation, "test": test}
    if isinstance(train, Mapping):
        unknown = sorted(map(str, set(train) - {"train", "test", *_VALIDATION}))
        if unknown or "train" not in train or validation is not None or test is not None:
            reason = f"it has {', '.join(unknown)}" if unknown else "it has no train" if "train" not in train else ""
            raise UserError(
                f"a dict of splits has the keys train, validation and test{f', but {reason}' if reason else ''}; "
                "other splits are given as train=, validation= and test="
            )
        parts = {"validation" if name in _VALIDATION else str(name): table for name, table in train.items()}
        if len(parts) < len(train):
            raise UserError(f"the splits {', '.join(map(str, train))} have several validation splits: keep one")
    splits = {name: _split(columns, name, table) for name, table in parts.items() if table is not None}
    names = _class_names(parts["train"], columns.label)
    return own_task(columns, splits, names)


def _split(columns: Columns, split: str, table: Any) -> RawSplit:
    """Return a table in memory as a raw split of plain Python values."""
    import pandas as pd

    kind = f"{type(table).__module__.partition('.')[0]}.{type(table).__name__}"
    where = f"the {split} rows ({type(table).__name__})"
    if kind == "pandas.DataFrame":
        names = [str(name) for name in table.columns]
        found = {name: table[name].astype(object).tolist() for name in columns.used if names.count(name) == 1}
        double = next((name for name in columns.used if names.count(name) > 1), None)
        if double is not None:
            raise UserError(f"task {columns.name}: {where} have {names.count(double)} columns {double!r}; keep one")
    elif kind == "datasets.Dataset":
        names = list(table.column_names)
        found = {name: list(table[name][:]) for name in columns.used if name in names}
    elif isinstance(table, Iterable) and not isinstance(table, str | bytes | Mapping):
        rows = list(table)
        wrong = next((number for number, row in enumerate(rows) if not isinstance(row, Mapping)), None)
        if wrong is not None:
            raise UserError(
                f"task {columns.name}: row {wrong} (counted from 0) of {where} is {type(rows[wrong]).__name__}, not a "
                "dict of columns"
            )
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        found = {name: [row.get(name) for row in rows] for name in columns.used if name in names}
    else:
        raise UserError(
            f"task {columns.name}: the {split} rows are {kind.removeprefix('builtins.')}; give a pandas.DataFrame, a "
            "datasets.Dataset, or a list of dicts"
        )
    for name, values in found.items():
        if (row := lone_surrogate(values)) is not None:
            raise UserError(f"task {columns.name}: row {row} of {where} has in its column {name!r} {NO_CHARACTER}")
    rows_there = len(next(iter(found.values()), []))
    series = {name: pd.Series([_missing(value) for value in values], dtype=object) for name, values in found.items()}
    return RawSplit(pd.DataFrame(series, index=range(rows_there)), tuple(names), where)


def _missing(value: Any) -> Any:
    """Return a value as Python has it; NaN, NaT and NA are None."""
    import pandas as pd

    if isinstance(value, str | list | tuple | dict):
        return value
    if getattr(value, "ndim", 0):
        return value.tolist()
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _class_names(table: Any, label: str | None) -> list[str] | None:
    """Return the names of a `datasets.ClassLabel` column."""
    feature = getattr(table, "features", {}).get(label) if hasattr(table, "column_names") else None
    return list(names) if (names := getattr(feature, "names", None)) else None


# Table files ---------------------------------------------------------------------------------------------------------


def is_table(task: object) -> bool:
    """Return whether a value of `--data.task` is the path of a table file."""
    return isinstance(task, str | Path) and str(task).lower().endswith(SUFFIXES)


def table_name(path: Path) -> str:
    """Return a task name for a table file: its stem, or its folder's name for train.csv; never that of a known task."""
    stem = path.expanduser().resolve().parent.name if path.stem == "train" else path.stem
    name = re.sub(r"[^\w.-]+", "_", stem, flags=re.ASCII).lstrip("_.-") or "own"
    return f"{name}_{path.suffix[1:].lower()}" if name in task_names() or name.startswith("builtin_") else name


def from_table(path: str | Path, columns: Columns, validation: str | None = None, test: str | None = None) -> OwnTask:
    """Return a task on the rows of table files.

    Args:
        path: training rows: .csv, .jsonl or .parquet.
        columns: its columns; `text` and `label` (or `target`) are required.
        validation, test: files of the other splits; missing ones are cut from the training rows.

    Raises:
        UserError: a file cannot be read, or does not fit the columns.
    """
    files = {"train": path, "validation": validation, "test": test}
    splits = {}
    for split, file in files.items():
        if file is None:
            continue
        if not is_table(file):
            raise UserError(f"--data.{split} {file} is not a table: give a .csv, .jsonl or .parquet file")
        splits[split] = read_table(Path(file).expanduser(), columns.used)
    columns = replace(columns, name=table_name(Path(path)))
    if columns.text is None or (columns.label is None and columns.target is None):
        role = "text" if columns.text is None else "label"
        there = shown_names(splits["train"].columns)
        raise UserError(f"--data.task {path} needs the column of the {role}: --data.{role} COLUMN (there are {there})")
    return own_task(columns, splits)


# Tasks of a data module ----------------------------------------------------------------------------------------------

# The tasks that a prompt file defines, while its data module is made.
_DEFINED: dict[str, Task] = {}


@contextmanager
def defined_tasks(tasks: Mapping[str, Task]) -> Iterator[None]:
    """Let `choose_tasks` know tasks that a prompt file defines.

    They are known by name, without rows. A table gets the columns, label words and cue of the only one.
    """
    global _DEFINED
    before, _DEFINED = _DEFINED, dict(tasks)
    try:
        yield
    finally:
        _DEFINED = before


def choose_tasks(given: object, options: Mapping[str, Any]) -> tuple[list[Task], dict[str, Mapping[str, RawSplit]]]:
    """Return the tasks of a data module, and the rows of those that do not come from its source.

    Args:
        given: a name, a path of a YAML or table file, a `Task`, an `OwnTask`, or a list of these.
        options: fields of `Columns` for table files, and the files `validation` and `test`; None is not given.

    Raises:
        UserError: an unknown task, an unreadable table, or columns without a table.
    """
    found: list[Task] = []
    own: dict[str, Mapping[str, RawSplit]] = {}
    set_options: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    files: dict[str, Any] = {name: set_options.pop(name) for name in ("validation", "test") if name in set_options}
    everything = list(given) if isinstance(given, list | tuple) else [given]
    if (set_options or files) and not any(
        is_table(one) or str(one).lower().endswith(OTHER_TABLES) for one in everything
    ):
        name, value = next(iter((set_options | files).items()))
        also = "; the words of other tasks are default or paper" if name == "label_words" else ""
        raise UserError(f"--data.{name} {value} is for a table: --data.task FILE.csv (or .jsonl, .parquet){also}")
    for one in everything:
        made = one
        if isinstance(one, str) and one.lower().endswith(OTHER_TABLES):
            raise UserError(f"--data.task {one}: save the table as {', '.join(SUFFIXES[1:])} or .parquet")
        if is_table(one):
            defined = next(iter(_DEFINED.values())) if len(_DEFINED) == 1 else None
            made = from_table(str(one), Columns(**(fields_of(defined) | set_options)), **files)
            made = replace(made, task=with_format_of(defined, made.task, set_options))
        elif isinstance(one, str) and one in _DEFINED and one not in task_names():
            made = OwnTask(_DEFINED[one])
        if isinstance(made, OwnTask):
            own[made.task.name] = made.splits
            made = made.task
        found.append(made if isinstance(made, Task) else get_task(str(made)))
    return found, own


def name_of(given: str, tasks: Iterable[Task]) -> str:
    """Return the task's name for a name or path."""
    if is_table(given):
        return table_name(Path(given))
    return given if given in {task.name for task in tasks} else get_task(given).name


class FromRows:
    """The constructor of a data module from rows in memory."""

    @classmethod
    def from_rows(
        cls,
        train: Table,
        text: str = "text",
        label: str | None = "label",
        *,
        label_words: LabelWords = None,
        validation: Table | None = None,
        test: Table | None = None,
        **options: Any,
    ) -> Self:
        """Return a data module on rows in memory.

        Args:
            train: a DataFrame, a `datasets.Dataset` or `DatasetDict`, or a list of dicts. Splits that are not given
                are cut from these rows by seed.
            text, label: columns of text and label.
            label_words: one word per class, in the order of the sorted labels, or a dict label -> word. None: the
                labels themselves.
            validation, test: rows of these splits.
            options: the other fields of `prompt_transfer.data.columns.Columns` (`text_b`, `labels`, `name`, `metric`,
                `cue`, `target` for generation, ...), and options of `TaskDataModule`.

        Raises:
            UserError: a missing column, labels that are no classes or have no usable words, or an unknown option.
        """
        known = {one.name for one in fields(Columns)}
        about = {name: options.pop(name) for name in list(options) if name in known}
        if "max_length" in about:
            options["max_length"] = about.pop("max_length")
        allowed = set(inspect.signature(cls).parameters) - {"task", "source", "root", "revision", "held_out"}
        if unknown := sorted(set(options) - allowed):
            close = difflib.get_close_matches(unknown[0], [*known, *allowed], n=1)
            raise UserError(f"from_rows has no option {unknown[0]}{f': did you mean {close[0]}?' if close else ''}")
        label = None if about.get("target") is not None else label
        own = in_memory(Columns(text, label, label_words=label_words, **about), train, validation, test)
        return cls(own, **options)  # type: ignore[call-arg]
