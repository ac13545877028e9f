"""The columns of users' own rows, and the classes and label words that follow from them."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prompt_transfer.data.table_files import shown_names, shown_value
from prompt_transfer.tasks.labels import label_key
from prompt_transfer.tasks.registry import task_names
from prompt_transfer.tasks.task import (
    CLASSIFICATION_METRICS,
    DEFAULT_CUE,
    GENERATION_METRICS,
    LABEL_WORDS_POLICIES,
    Task,
)
from prompt_transfer.utils.errors import UserError

# With more distinct values, or more than half as many as rows, a label column is most likely another column.
MOST_CLASSES, FEW_ROWS = 100, 10
LabelWords = str | Sequence[str] | Mapping[Any, str] | None


@dataclass(frozen=True)
class Columns:
    """The columns and properties of a task on users' own rows.

    Attributes:
        text, text_b: columns of the first and, for pairs, the second text.
        label: column of the label; None for generation tasks.
        target: column with the text to generate, or a list of reference texts.
        label_words: one word per class: a list in the order of `labels`, a mapping from label to word, or both as one
            text (`bad,good`, `neg=bad,pos=good`). None: the labels themselves, which then must be words.
        labels: label values in class order. None: those of the training rows, sorted.
        name: name of the task in files and tables.
        type: tasks of one type are grouped in studies.
        metric: the metric that selects the best prompt. None: accuracy, or rougeL for generation.
        cue: text that a causal model reads before its answer.
        label_words_policy: for words of several tokens: error, first, mean or sequence.
        max_length, max_target_length: longest text and longest target in tokens.
    """

    text: str | None = None
    label: str | None = None
    text_b: str | None = None
    target: str | None = None
    label_words: LabelWords = None
    labels: Sequence[Any] | None = None
    name: str = "own"
    type: str = "other"
    metric: str | None = None
    cue: str = DEFAULT_CUE
    label_words_policy: str = LABEL_WORDS_POLICIES[0]
    max_length: int = 64
    max_target_length: int = 32

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name) or self.name in task_names():
            raise UserError(
                f"the name {self.name!r} cannot be that of a new task: choose one of letters, digits, '_', '-' or '.', "
                "which no known task has"
            )
        allowed = CLASSIFICATION_METRICS if self.target is None else GENERATION_METRICS
        for name, value, choices in (
            ("metric", self.metric, (None, *allowed)),
            ("label_words_policy", self.label_words_policy, LABEL_WORDS_POLICIES),
        ):
            if value not in choices:
                shown = ", ".join(choice for choice in choices if choice)
                raise UserError(f"task {self.name}: {name} must be one of {shown}, not {value!r}")

    @property
    def used(self) -> list[str]:
        """The columns that the task reads."""
        answer = self.label if self.target is None else self.target
        return [name for name in (self.text, self.text_b, answer) if name is not None]


def classes(
    columns: Columns, values: Sequence[Any], class_names: Sequence[str] | None = None
) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Return the label values and label words in class order.

    Args:
        columns: with `labels` and `label_words` as given.
        values: of the label column in the training rows.
        class_names: as in `own_task`.

    Raises:
        UserError: the values are no classes, or have no usable words.
    """
    found, words = _distinct(columns, values), _given_words(columns)
    class_names = class_names if columns.labels is None else None
    if isinstance(words, dict):
        # Classes that the source names may be given by name.
        numbers = {str(label_key(name)): str(number) for number, name in enumerate(class_names or ())}
        return _mapped(columns, found, {numbers.get(key, key): word for key, word in words.items()})
    if columns.labels is not None:
        labels = tuple(map(_plain, columns.labels))
    elif class_names is not None:
        labels = tuple(range(len(class_names)))
    else:
        labels = tuple(sorted(found.values(), key=_order))
    unknown = sorted(str(value) for key, value in found.items() if key not in {label_key(one) for one in labels})
    if unknown:
        raise UserError(
            f"task {columns.name}: the column {columns.label!r} holds {shown_names(unknown, 5)}, none of the labels "
            f"{shown_names(list(map(str, labels)))}: add it to labels, or remove such rows"
        )
    shown: Sequence[Any] = labels if class_names is None else class_names
    if words is None:
        words = _own_words(columns, shown)
    elif len(words) != len(labels):
        raise UserError(
            f"task {columns.name}: {len(labels)} labels ({shown_names(list(map(str, shown)))}) and {len(words)} label "
            f"words ({shown_names(words)}): give each label its word"
        )
    elif columns.labels is None and {label_key(word) for word in words} == {label_key(one) for one in shown}:
        # The words are the labels, or the names of the classes: they give the order.
        by_key = {label_key(one): label for one, label in zip(shown, labels, strict=True)}
        labels = tuple(by_key[label_key(word)] for word in words)
    elif columns.labels is None and not all(map(_is_number, shown)):
        pairs = ",".join(f"{one}={word}" for one, word in zip(shown, words, strict=True))
        warnings.warn(
            f"task {columns.name}: the labels are sorted, so label_words means {pairs}; write it like this, or in "
            "another order, to be sure",
            stacklevel=2,
        )
    return labels, _checked_words(columns, words)


def _distinct(columns: Columns, values: Sequence[Any]) -> dict[str, Any]:
    """Return comparison key -> value of the labels; all of them are classes, not numbers on a scale."""
    found: dict[str, Any] = {}
    for value in values:
        value = _plain(value)
        key = label_key(value)
        if key is not None:
            found.setdefault(key, value)
    several = len(found) > len(values) / 2 and len(values) >= FEW_ROWS
    if (several or len(found) > MOST_CLASSES) and columns.labels is None:
        raise UserError(
            f"task {columns.name}: the column {columns.label!r} holds {len(found)} different values in {len(values)} "
            f"rows, such as {shown_value(next(iter(found.values())))}: is it the label? Name its column with label= "
            "(--data.label)"
        )
    fraction = next((key for key in found if re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", key)), None)
    if fraction is not None and columns.labels is None:
        raise UserError(
            f"task {columns.name}: the label {fraction} in the column {columns.label!r} is a number on a scale, not a "
            "class: turn the column into a few classes"
        )
    return found


def _given_words(columns: Columns) -> list[str] | dict[str, str] | None:
    """Return the label words as a list, or as a dict comparison key of the label -> word; None if none are given."""
    words = columns.label_words
    if words is None:
        return None
    if isinstance(words, str) and words.startswith("{"):
        try:
            words = json.loads(words)
        except ValueError as error:
            raise UserError(f"label_words {words!r} is not JSON ({error})") from error
    if isinstance(words, str):
        parts = [part.strip().strip("'\"") for part in words.strip().strip("[]").split(",")]
        pairs = [part.rpartition("=") for part in parts]
        if not any(equals for _, equals, _ in pairs):
            return parts
        if not all(equals for _, equals, _ in pairs):
            raise UserError(f"task {columns.name}: label_words {words!r} must be words, or LABEL=WORD for each label")
        words = {label.strip(): word.strip() for label, _, word in pairs}
    if isinstance(words, Mapping):
        return {str(label_key(label)): word for label, word in words.items()}
    return list(words)


def _mapped(
    columns: Columns, found: Mapping[str, Any], words: Mapping[str, str]
) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    order = [str(label_key(label)) for label in columns.labels] if columns.labels is not None else list(words)
    missing = [str(value) for key, value in found.items() if key not in words] or [k for k in order if k not in words]
    if missing:
        raise UserError(
            f"task {columns.name}: the label {missing[0]} has no word in label_words (only {', '.join(words)}): "
            f"add {missing[0]}=WORD"
        )
    labels = [found.get(key, key) for key in order]
    return tuple(labels), _checked_words(columns, [words[key] for key in order])


def _own_words(columns: Columns, labels: Sequence[Any]) -> list[str]:
    """Return the labels, or names of the classes, as label words."""
    if not labels or not all(isinstance(label, str) and not _is_number(label) for label in labels):
        example = ",".join(f"{label}=WORD" for label in list(labels)[:2])
        raise UserError(
            f"task {columns.name}: the labels {shown_names(list(map(str, labels)))} of the column {columns.label!r} "
            f"are not words: give each its word with label_words (--data.label_words {example})"
        )
    return list(labels)


def _checked_words(columns: Columns, words: Sequence[Any]) -> tuple[str, ...]:
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise UserError(f"task {columns.name}: the label word {word!r} is not a word; give a text")
    kept = tuple(word.strip() for word in words)
    if len(kept) < 2 or len(set(kept)) < len(kept):
        raise UserError(
            f"task {columns.name}: label words must be two or more different words, one a class, not "
            f"{shown_names(kept) or 'none'} (column {columns.label!r})"
        )
    return kept


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as a Python value."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _is_number(value: Any) -> bool:
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    return isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d*)?", value.strip()) is not None


def _order(value: Any) -> tuple[int, float, str]:
    """Return a sort key: numbers by value, before words by letter."""
    return (0, float(value), "") if _is_number(value) else (1, 0.0, str(value))


def fields_of(defined: Task | None) -> dict[str, Any]:
    """Return fields of `Columns` for a table of the task that a prompt file defines; nothing without one.

    Raises:
        UserError: `Columns` cannot describe such a task.
    """
    if defined is None:
        return {}
    if defined.is_choice:
        raise UserError(f"{defined.name} is multiple choice: give --data.task a task's YAML file instead of a table")
    same = ("type", "metric", "cue", "label_words_policy", "max_length", "max_target_length", "text_b")
    answers: dict[str, Any] = {"label": defined.label_column, "target": defined.target_column}
    if not defined.is_generation:
        answers["label_words"] = dict(zip(defined.class_labels, defined.label_words, strict=True))
    return {"text": defined.text_a, **answers, **{name: getattr(defined, name) for name in same}}


def with_format_of(defined: Task | None, task: Task, given: Mapping[str, Any]) -> Task:
    """Return a table's task with the template and the further label words of the task that a prompt file defines.

    Args:
        defined: that task, if there is one.
        task: the table's task.
        given: the user's options, whose label words replace all of the defined task's.
    """
    if defined is None:
        return task
    changed: dict[str, Any] = {}
    if "label_words" not in given and task.label_words == defined.label_words:
        changed = {"other_words": defined.other_words}
    if task.pairs == defined.pairs:
        changed |= {"template": defined.template, "chat_template": defined.chat_template}
    return replace(task, **changed)
