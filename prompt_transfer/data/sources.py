"""One loader for the rows of a task from hub, local and built-in data.

Splits: if the official test split is labelled, test and validation are the official ones. If it is not, the official
validation split becomes the test split. A missing split is cut from train by seed, a tenth and at most 2000 rows;
`TaskData.origin` records it. Model selection never sees the split that scores are reported on.

Answers of generation tasks: a row may have several reference texts; blank ones are ignored, and the first is the
training target. Rows without any are dropped with a warning; a split without any is unlabelled.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prompt_transfer.data.checks import check_rows
from prompt_transfer.data.choices import choices_of
from prompt_transfer.data.readers import SPLITS, read_builtin, read_hub, read_local
from prompt_transfer.data.table_files import RawSplit, shown_names, shown_value
from prompt_transfer.data.texts import check_columns, texts_of, unlabelled_rows
from prompt_transfer.tasks.columns import composed
from prompt_transfer.tasks.labels import label_key
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

Source = Literal["hub", "local", "builtin"]
MAX_CUT = 2000
# Most labels that a message lists.
MOST_NAMED = 10
# A test split cut from train must not depend on the run's seed: another run may have trained on it.
TEST_SEED = 0
# Label keys that are aliases of each other.
_NUMBERS, _BOOLEANS = ("0", "1"), ("false", "true")


@dataclass(frozen=True)
class TaskData:
    """The rows of a task.

    Attributes:
        task: the task as loaded (its paper variant if requested).
        splits: ``train``, ``validation``, ``test`` -> Dataset with the columns ``id`` (int64, row number in the source
            split, from 0), ``text_a``, ``text_b`` (``""`` if there is none) and ``label`` (int64 class index), or
            ``target`` (list of str, at least one and none blank) for generation.
        origin: split -> origin of its rows: ``official``, ``official validation``, ``cut from train, seed 0``,
            ``official less the rows cut from it``.
        fingerprint: SHA-256 over ids, texts and labels of all splits.
        unlabelled: source split without answers -> its rows, for prediction only; `splits` has other rows instead.
    """

    task: Task
    splits: dict[str, Dataset]
    origin: dict[str, str]
    fingerprint: str
    unlabelled: dict[str, RawSplit] = field(default_factory=dict)
    # Cache of `to_predict`: tokens and predictions both need its rows.
    _texts: dict[str, Dataset] = field(default_factory=dict, repr=False, compare=False)

    def split(self, name: str) -> Dataset:
        """Return the rows of split `name`; raises UserError if it is unknown."""
        if name not in self.splits:
            raise UserError(f"task {self.task.name} has no split {name!r}; there are {', '.join(self.splits)}")
        return self.splits[name]

    def to_predict(self, name: str) -> Dataset:
        """Return the rows of split `name` as in the source: without the answer column if it is unlabelled."""
        if name not in self.unlabelled:
            return self.split(name)
        if name not in self._texts:
            self._texts[name] = unlabelled_rows(self.task, f"the {name} split", self.unlabelled[name])
        return self._texts[name]


@dataclass(frozen=True)
class _Rows:
    """Normalized rows of one split: `answers` are int64 labels, targets or `Choices`; `groups` numbers, if any."""

    ids: np.ndarray
    text_a: list[str]
    text_b: list[str]
    answers: Any
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> _Rows:
        answers = self.answers[rows] if isinstance(self.answers, np.ndarray) else [self.answers[i] for i in rows]
        groups = None if self.groups is None else self.groups[rows]
        return _Rows(self.ids[rows], [self.text_a[i] for i in rows], [self.text_b[i] for i in rows], answers, groups)


def load_task(
    task: Task,
    source: Source,
    root: str | Path | None = None,
    seed: int = 0,
    label_words: Literal["default", "paper"] = "default",
    revision: str | None = None,
    given: Mapping[str, RawSplit] | None = None,
) -> TaskData:
    """Load a task as three splits of texts with class indices or targets.

    Args:
        task: row of the registry or of a user's file (`prompt_transfer.tasks.registry.get_task`).
        source: ``hub``, ``local`` or ``builtin``; there is no fallback to another one.
        root: folder with ``<task>/<split>.parquet|jsonl|csv``; None: the variable PROMPT_TRANSFER_DATA.
        seed: seed of a validation split that is cut from train.
        label_words: ``paper`` loads the task as in release 1.0 (words, classes, order of texts).
        revision: commit, tag or branch of the hub repository; None: the registry's.
        given: rows that were read already, instead of those of the source.

    Raises:
        UserError: the source does not have the task, or its data are invalid; the message names the row.
    """
    if label_words not in ("default", "paper"):
        raise UserError(f"label words must be 'default' or 'paper', not {label_words!r}")
    if label_words == "paper":
        task = task.paper_variant()
    reading = task
    if given is not None:
        raw = dict(given)
        if not raw:
            raise UserError(
                f"task {task.name}: the prompt file defines it but has no rows: give a table with --data.task "
                "FILE.csv, or texts to predict with --text or --input"
            )
    elif source == "local":
        raw = read_local(task, root)
    elif source == "builtin":
        raw = read_builtin(task)
        answers: dict[str, Any] = {"target_column": "target"} if task.is_generation else {"label_column": "label"}
        # Without the template, which has the fields of the task's own columns.
        reading = replace(task, text_a="text_a", text_b="text_b", template=None, chat_template=False, **answers)
    elif source == "hub":
        raw = read_hub(task, revision)
        reading = _with_hub_labels(task)
    else:
        raise UserError(f"unknown data source {source!r}; there are hub, local and builtin")
    rows = _labelled_rows(reading, raw)
    unlabelled = {split: part for split, part in raw.items() if split not in rows and len(part.frame)}
    made, origin = _make_splits(task, rows, seed)
    check_rows(task, made)
    splits = {name: _dataset(task, part) for name, part in made.items()}
    return TaskData(task, splits, origin, _fingerprint(made), unlabelled)


def _with_hub_labels(task: Task) -> Task:
    if task.hub is None or task.hub.labels is None:
        return task
    count = task.num_classes
    return replace(task, labels=task.hub.labels[:count], drop_labels=(*task.drop_labels, *task.hub.labels[count:]))


def _labelled_rows(task: Task, raw: Mapping[str, RawSplit]) -> dict[str, _Rows]:
    rows = {}
    for split, part in raw.items():
        normalised = _normalise(task, split, part)
        if normalised is not None:
            rows[split] = normalised
        elif split == "train":
            what = f"answers in its column {task.target_column!r}" if task.is_generation else "labels"
            raise UserError(f"task {task.name}: the training split has no {what} ({part.where})")
    if "train" not in rows:
        raise UserError(f"task {task.name}: there is no training split")
    return rows


def _normalise(task: Task, split: str, raw: RawSplit) -> _Rows | None:
    """Return the rows of one split, or None if it has no labels."""
    answer_column = task.target_column or task.label_column
    if split != "train" and answer_column not in raw.columns:
        return None
    check_columns(task, raw, (task.text_a, task.text_b, *task.choices, answer_column, task.group))
    keep = np.arange(len(raw.frame))
    answers: Any
    if task.target_column is not None:
        answers = _targets(task, split, raw)
        keep = np.flatnonzero([len(texts) > 0 for texts in answers])
        if len(answers) and not len(keep):
            return None
    elif task.is_choice:
        answers = choices_of(task, split, raw)
        if answers is None:
            return None
        if split == "train":
            keep = np.flatnonzero([any(choices.right) for choices in answers])
    else:
        encoded = _labels(task, split, raw)
        if encoded is None:
            return None
        answers = encoded
        keep = keep[answers >= 0]
    text_a, text_b = texts_of(task, f"the {split} split", raw)
    return _Rows(np.arange(len(text_a)), text_a, text_b, answers, _groups(task, raw)).take(keep)


def _groups(task: Task, raw: RawSplit) -> np.ndarray | None:
    """Return the number of each row's group; None if the task has no groups."""
    if task.group is None:
        return None
    try:
        names = [str(composed(task.group, row, {})) for row in raw.frame.to_dict("records")]
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"task {task.name}: the group {task.group!r} of a row cannot be made from {raw.where}: {error!r}"
        ) from error
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def _targets(task: Task, split: str, raw: RawSplit) -> list[list[str]]:
    """Return the reference texts of each row, [] for rows to drop."""
    targets, without = [], []
    for row, value in enumerate(raw.frame[task.target_column].tolist()):
        found = value.get("text") if isinstance(value, dict) else value
        if found is None or (isinstance(found, float) and np.isnan(found)):
            found = []
        answers = list(found) if isinstance(found, list | tuple | np.ndarray) else [found]
        wrong = [answer for answer in answers if not isinstance(answer, str)]
        if wrong:
            raise UserError(
                f"task {task.name}: column {task.target_column!r} of the {split} split is not text: "
                f"{shown_value(wrong[0])} in row {row} (counted from 0) of {raw.where}"
            )
        targets.append([answer for answer in answers if answer.strip()])
        if not targets[-1]:
            without.append(row)
    if without and len(without) < len(targets):
        warnings.warn(
            f"task {task.name}: {len(without)} {split} rows without an answer in column {task.target_column!r} are "
            f"left out, the first is row {without[0]} (counted from 0)",
            stacklevel=2,
        )
    return targets


def _labels(task: Task, split: str, raw: RawSplit) -> np.ndarray | None:
    """Return the class indices, -1 for rows to drop; None if the whole split is unlabelled."""
    classes = {label_key(value): index for index, value in enumerate(task.class_labels)}
    dropped = {label_key(value) for value in task.drop_labels}
    # Two classes named 0 and 1, or false and true, may be written either way.
    for names, aliases in ((_NUMBERS, _BOOLEANS), (_BOOLEANS, _NUMBERS)):
        if classes.keys() == set(names) and dropped.isdisjoint(aliases):
            classes |= {alias: classes[name] for name, alias in zip(names, aliases, strict=True)}
            break
    keys = [label_key(value) for value in raw.frame[task.label_column].tolist()]
    if keys and set(keys) <= {None, "-1"}:
        return None
    encoded = np.array([classes.get(key, -1 if key in dropped else -2) for key in keys], dtype=np.int64)
    wrong = np.flatnonzero(encoded == -2)
    if len(wrong):
        row = int(wrong[0])
        shown = ", ".join(str(value) for value in task.class_labels)
        value = raw.frame[task.label_column].tolist()[row]
        if keys[row] is None:
            many = keys.count(None)
            raise UserError(
                f"task {task.name}: row {row} (counted from 0) of the {split} split ({raw.where}) has no label"
                f"{f', as {many} rows in all' if many > 1 else ''}: fill in one of {shown}, or remove such rows"
            )
        others = list(dict.fromkeys(key for key in keys if key is not None))
        seen = f"the column holds {shown_names(others, MOST_NAMED)}"
        raise UserError(
            f"task {task.name}: label {shown_value(value)} in row {row} (counted from 0) of the {split} split "
            f"({raw.where}) is none of the labels {shown}; {seen}; list its values in `labels`, in the "
            "order of `label_words`"
        )
    count = int((encoded == -1).sum())
    if count:
        left_out = ", ".join(sorted({str(key) for key in keys if key in dropped}))
        warnings.warn(f"task {task.name}: {count} {split} rows with label {left_out} are left out", stacklevel=2)
    return encoded


def _make_splits(task: Task, rows: dict[str, _Rows], seed: int) -> tuple[dict[str, _Rows], dict[str, str]]:
    made = {name: part for name, part in rows.items() if len(part)}
    if "train" not in made:
        raise UserError(f"task {task.name}: the training split is empty")
    origin = dict.fromkeys(made, "official")
    if "test" not in made and "validation" in made:
        made["test"] = made.pop("validation")
        origin["test"] = "official validation"
        del origin["validation"]
    for name, used_seed in (("test", TEST_SEED), ("validation", seed)):
        if name not in made:
            made["train"], made[name] = _cut(task, made["train"], used_seed)
            origin[name] = f"cut from train, seed {used_seed}"
            origin["train"] = "official less the rows cut from it"
    return {name: made[name] for name in SPLITS}, {name: origin[name] for name in SPLITS}


def _cut(task: Task, train: _Rows, seed: int) -> tuple[_Rows, _Rows]:
    if len(train) < 3:
        raise UserError(f"task {task.name}: {len(train)} training rows are too few to cut a split from; add rows")
    count = min(MAX_CUT, max(1, round(len(train) / 10)))
    order = np.random.default_rng(seed).permutation(len(train))
    return train.take(np.sort(order[count:])), train.take(np.sort(order[:count]))


def _dataset(task: Task, rows: _Rows) -> Dataset:
    from datasets import Dataset, Features, List, Value

    if task.is_choice:
        return _choice_dataset(rows)
    answer = "target" if task.is_generation else "label"
    features = {"id": Value("int64"), "text_a": Value("string"), "text_b": Value("string")}
    features[answer] = List(Value("string")) if task.is_generation else Value("int64")
    values = {"id": rows.ids, "text_a": rows.text_a, "text_b": rows.text_b, answer: rows.answers}
    if rows.groups is not None:
        features["group"], values["group"] = Value("int64"), rows.groups
    return Dataset.from_dict(values, features=Features(features))


def _choice_dataset(rows: _Rows) -> Dataset:
    from datasets import Dataset, Features, List, Value

    features: dict[str, Any] = {"id": Value("int64"), "text_a": Value("string"), "text_b": Value("string")}
    values: dict[str, Any] = {"id": rows.ids, "text_a": rows.text_a, "text_b": rows.text_b}
    columns = (("choices", "texts", "string"), ("right", "right", "bool"), ("answers", "answers", "string"))
    for name, attribute, kind in columns:
        features[name] = List(Value(kind))
        values[name] = [list(getattr(choices, attribute)) for choices in rows.answers]
    return Dataset.from_dict(values, features=Features(features))


def _fingerprint(made: Mapping[str, _Rows]) -> str:
    digest = hashlib.sha256()
    for name, rows in made.items():
        digest.update(f"{name} {len(rows)}\n".encode())
        digest.update(rows.ids.astype("<i8").tobytes())
        if rows.groups is not None:
            digest.update(rows.groups.astype("<i8").tobytes())
        for texts in (rows.text_a, rows.text_b):
            # The lengths distinguish ("ab", "c") from ("a", "bc").
            digest.update(np.array([len(text) for text in texts], dtype="<i8").tobytes())
            digest.update("".join(texts).encode("utf-8", "surrogatepass"))
        answers = rows.answers
        digest.update(answers.astype("<i8").tobytes() if isinstance(answers, np.ndarray) else repr(answers).encode())
    return digest.hexdigest()
