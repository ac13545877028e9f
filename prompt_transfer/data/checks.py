"""What makes a number of a task mean less than it seems: found when rows are read, told once."""

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
# What to do with special tokens that stand in users' texts.
SpecialTokens = Literal["keep", "split"]
# Of them a message names.
MOST_TOKENS = 6


class SplitRows(Protocol):
    """Rows of a split; `answers` are class indices or lists of texts."""

    @property
    def ids(self) -> NDArray[np.int64]: ...
    @property
    def text_a(self) -> list[str]: ...
    @property
    def text_b(self) -> list[str]: ...
    @property
    def answers(self) -> Any: ...


def check_rows(task: Task, made: Mapping[str, SplitRows]) -> None:
    """Refuse rows that teach nothing; warn of those that say less than it seems.

    Warnings are about texts that are in train and in an evaluation split, classes without a training row, evaluation
    splits of one class and empty texts.

    Raises:
        UserError: all training rows are of one class.
    """
    if not task.is_generation:
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
                f"({task.label_words[int(only[0])]!r}); a score there tells good answers from bad ones no more",
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
    """Warn of rows whose texts hold special tokens of the backbone.

    Args:
        parts: name for the message -> rows.
        tokens: the special tokens, the longest first.
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
            "reads as controls and not as text; --data.special_tokens split reads them as text",
            stacklevel=4,
        )


def text_keys(rows: Dataset) -> NDArray[np.uint64]:
    """A number for each text or pair [n] with a letter or digit in it, to find rows of one task in another one.

    Case, blanks and punctuation do not count: collections that share sentences cut and space them in ways of their own.
    """
    import pandas as pd

    texts = zip(rows["text_a"][:], rows["text_b"][:], strict=True)
    pairs = [f"{_ELSE.sub('', a)}\n{_ELSE.sub('', b)}".lower() for a, b in texts]
    return pd.util.hash_array(np.array([pair for pair in pairs if pair != "\n"], dtype=object), categorize=False)


def shared_rows(evaluated: Mapping[str, NDArray[np.uint64]], trained: Mapping[str, NDArray[np.uint64]]) -> list[str]:
    """Words for each evaluated task and each other one whose training rows hold texts of it.

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
