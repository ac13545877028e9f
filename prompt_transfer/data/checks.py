"""Checks of loaded rows: single-class splits, texts shared between splits or tasks, special tokens in texts."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from prompt_transfer.data.texts import warn_of_empty
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

_ELSE = re.compile(r"\W+")
# Handling of special tokens in users' texts.
SpecialTokens = Literal["keep", "split"]
# Tokens that a message names.
MOST_TOKENS = 6


class SplitRows(Protocol):
    """The rows of a split; `answers` are class indices or lists of texts."""

    @property
    def ids(self) -> NDArray[np.int64]: ...
    @property
    def text_a(self) -> list[str]: ...
    @property
    def text_b(self) -> list[str]: ...
    @property
    def answers(self) -> Any: ...


def check_rows(task: Task, made: Mapping[str, SplitRows]) -> None:
    """Reject training rows of a single class, and warn of data that make scores misleading.

    Warns of texts that are both in train and in an evaluation split, classes without training rows, evaluation splits
    of one class, and empty texts.

    Raises:
        UserError: all training rows are of one class.
    """
    if not task.has_example_scores:
        _check_classes(task, made)
    for split, rows in made.items():
        warn_of_empty(task, f"the {split} split", rows.ids, rows.text_a, rows.text_b)
    _warn_of_overlap(task, made)


def _check_classes(task: Task, made: Mapping[str, SplitRows]) -> None:
    train = made["train"]
    present = np.unique(train.answers)
    if len(present) < 2:
        word = task.label_words[int(present[0])]
        raise UserError(
            f"task {task.name}: all {len(train.ids)} training rows are of one class ({word!r}); nothing can be learnt"
        )
    absent = [word for index, word in enumerate(task.label_words) if index not in present]
    if absent:
        warnings.warn(f"task {task.name}: no training row is of class {', '.join(absent)}", stacklevel=4)
    for split, rows in made.items():
        only = np.unique(rows.answers)
        if len(only) == 1 and len(rows.ids) > 1:
            warnings.warn(
                f"task {task.name}: all {len(rows.ids)} {split} rows are of one class "
                f"({task.label_words[int(only[0])]!r}); scores on it are meaningless",
                stacklevel=4,
            )


def _warn_of_overlap(task: Task, made: Mapping[str, SplitRows]) -> None:
    train = set(zip(made["train"].text_a, made["train"].text_b, strict=True))
    found = []
    for name in ("validation", "test"):
        part = made[name]
        count = sum(pair in train for pair in zip(part.text_a, part.text_b, strict=True))
        if count:
            found.append(f"{count} of {len(part.ids)} {name} rows")
    if found:
        warnings.warn(f"task {task.name}: {' and '.join(found)} have texts that are in train too", stacklevel=4)


def check_special_tokens(value: str) -> None:
    """Raise UserError if the option has no such value."""
    if value not in get_args(SpecialTokens):
        raise UserError(f"--data.special_tokens must be keep or split, not {value!r}")


def warn_of_special_tokens(task: Task, parts: Mapping[str, Dataset], tokens: Sequence[str]) -> None:
    """Warn of rows whose texts contain special tokens of the backbone.

    Args:
        parts: name for the message -> rows.
        tokens: the special tokens, longest first.
    """
    if not tokens:
        return
    pattern = re.compile("|".join(map(re.escape, tokens)))
    rows, counts = [], Counter[str]()
    for name, part in parts.items():
        found = [
            set(pattern.findall(first)) | set(pattern.findall(second))
            for first, second in zip(part["text_a"][:], part["text_b"][:], strict=True)
        ]
        for some in found:
            counts.update(some)
        if holding := sum(map(bool, found)):
            rows.append(f"{holding} of {len(found)} {name}")
    if rows:
        most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_TOKENS]
        named = ", ".join([*(f"{token} in {count}" for token, count in most), *["..."] * (len(counts) > MOST_TOKENS)])
        warnings.warn(
            f"task {task.name}: {' and '.join(rows)} hold special tokens of the backbone ({named}), which it "
            "reads as control tokens; --data.special_tokens split reads them as text",
            stacklevel=4,
        )


def text_keys(rows: Dataset) -> NDArray[np.uint64]:
    """Return a hash [n] of each text or pair that has a letter or digit, to find rows of one task in another.

    Case, blanks and punctuation are ignored: data sets that share sentences tokenize them differently.
    """
    import pandas as pd

    texts = zip(rows["text_a"][:], rows["text_b"][:], strict=True)
    pairs = [f"{_ELSE.sub('', a)}\n{_ELSE.sub('', b)}".lower() for a, b in texts]
    return pd.util.hash_array(np.array([pair for pair in pairs if pair != "\n"], dtype=object), categorize=False)


def shared_rows(evaluated: Mapping[str, NDArray[np.uint64]], trained: Mapping[str, NDArray[np.uint64]]) -> list[str]:
    """Describe how many rows of each evaluated task are training rows of another task.

    Args:
        evaluated, trained: task -> `text_keys`.
    """
    found = []
    for task, keys in evaluated.items():
        for other, seen in trained.items():
            count = int(np.isin(keys, seen).sum()) if other != task else 0
            if count:
                found.append(f"{count} of {len(keys)} rows of {task} are training rows of {other}")
    return found
