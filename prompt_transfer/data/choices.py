"""Options of multiple-choice tasks: texts of a row, right options, and their token ids.

Shape letters: B batch, n rows, O options, S tokens of an option, M metrics.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prompt_transfer.data.table_files import RawSplit, shown_value
from prompt_transfer.tasks.columns import composed
from prompt_transfer.tasks.labels import label_key
from prompt_transfer.tasks.metrics import text_scores
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from prompt_transfer.data.text_encoder import TextEncoder

IGNORED = -100


@dataclass(frozen=True)
class Choices:
    """The options of a row.

    Attributes:
        texts: the options.
        right: whether each is right; all False if no answer is known.
        answers: reference texts, for `exact_match` and `squad_f1`.
    """

    texts: tuple[str, ...]
    right: tuple[bool, ...]
    answers: tuple[str, ...]


def option_texts(task: Task, what: str, raw: RawSplit) -> list[list[str]]:
    """Return the options of each row.

    Raises:
        UserError: a row has fewer than two different options, or one that is not a text; the message names it.
    """
    frame, found = raw.frame, []
    for number, row in enumerate(frame.to_dict("records")):
        if len(task.choices) == 1:
            value = row[task.choices[0]]
            texts = list(value) if isinstance(value, list | tuple | np.ndarray) else None
        else:
            texts = [composed(name, row, task.values) for name in task.choices]
        sound = texts is not None and all(isinstance(text, str) and text.strip() for text in texts)
        # A data set may list an option twice, as ReCoRD does with entities: once is enough.
        texts = list(dict.fromkeys(texts)) if texts is not None and len(task.choices) == 1 and sound else texts
        if texts is None or not sound or len(texts) < 2 or len(set(texts)) < len(texts):
            shown = shown_value(row[task.choices[0]] if texts is None else texts)
            raise UserError(
                f"task {task.name}: row {number} (counted from 0) of {what} ({raw.where}) has the options {shown}: "
                "give two or more different texts, in columns, or as a list in one column"
            )
        found.append(texts)
    return found


def choices_of(task: Task, split: str, raw: RawSplit) -> list[Choices] | None:
    """Return the options and right ones of each row; None if the split has no answers.

    Raises:
        UserError: options that `option_texts` rejects, or a label that is no option.
    """
    options = option_texts(task, f"the {split} split", raw)
    values = raw.frame[task.label_column].tolist()
    if all(_is_missing(value) for value in values):
        return None
    numbers = {label_key(value): index for index, value in enumerate(task.class_labels)}
    found, without = [], []
    for row, (texts, value) in enumerate(zip(options, values, strict=True)):
        answers = _answers(value)
        if answers is None:
            index = _number(task, value, texts, numbers)
            if index is None:
                raise UserError(
                    f"task {task.name}: label {shown_value(value)} in row {row} (counted from 0) of the {split} split "
                    f"({raw.where}) is neither an option nor the number of one (from 0); it has {len(texts)} options"
                )
            answers = [texts[index]]
        right = tuple(text in answers for text in texts)
        if not any(right):
            without.append(row)
        found.append(Choices(tuple(texts), right, tuple(answers)))
    if without:
        left_out = " and left out" if split == "train" else ""
        warnings.warn(
            f"task {task.name}: in {len(without)} {split} rows no option is a right answer, the first is row "
            f"{without[0]} (counted from 0){left_out}",
            stacklevel=2,
        )
    return found


def _is_missing(value: Any) -> bool:
    if isinstance(value, list | tuple | np.ndarray):
        return len(value) == 0
    return label_key(value) in (None, "-1")


def _answers(value: Any) -> list[str] | None:
    """Return a list of right texts; None for a single value."""
    return [str(text) for text in value] if isinstance(value, list | tuple | np.ndarray) else None


def _number(task: Task, value: Any, texts: Sequence[str], numbers: Mapping[str | None, int]) -> int | None:
    """Return the number of the option that a label names; None if it names none."""
    key = label_key(value)
    if len(task.choices) > 1 and key in numbers:
        return numbers[key]
    if len(task.choices) == 1 and key is not None and key.isdecimal() and int(key) < len(texts):
        return int(key)
    return list(texts).index(value) if value in texts else None


@dataclass(frozen=True)
class OptionTable:
    """Token ids of the options of n rows, as flat columns.

    Attributes:
        values: int32, the token ids of all options of all rows, one after the other.
        offsets: int64 ``[options + 1]``, into `values`.
        rows: int64 ``[n + 1]``: options ``rows[i]:rows[i + 1]`` are those of row i.
        right: bool ``[options]``.
        scores: float32 ``[options, M]``, score of choosing the option, per metric of its task.
    """

    values: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    right: np.ndarray
    scores: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """``[n]`` int64, number of options of each row."""
        return np.diff(self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest option."""
        return int(np.diff(self.offsets).max(initial=0))

    @classmethod
    def concatenate(cls, tables: Sequence[OptionTable]) -> OptionTable:
        """Concatenate the rows of several tables."""
        width = max(table.scores.shape[1] for table in tables)
        lengths = np.concatenate([np.diff(table.offsets) for table in tables])
        counts = np.concatenate([table.counts for table in tables])
        scores = [np.pad(table.scores, ((0, 0), (0, width - table.scores.shape[1]))) for table in tables]
        return cls(
            np.concatenate([table.values for table in tables]),
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([[0], np.cumsum(counts)]),
            np.concatenate([table.right for table in tables]),
            np.concatenate(scores),
        )

    def collate(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return ``option_ids [B, O, S]`` padded with -100, ``option_right [B, O]`` and ``option_scores [B, O, M]``."""
        counts = self.counts[rows]
        size, most = len(rows), int(counts.max(initial=1))
        numbers = [np.arange(self.rows[row], self.rows[row + 1]) for row in rows]
        longest = max((int(np.diff(self.offsets)[own].max(initial=1)) for own in numbers), default=1)
        ids = np.full((size, most, longest), IGNORED, dtype=np.int64)
        right = np.zeros((size, most), dtype=bool)
        scores = np.zeros((size, most, self.scores.shape[1]), dtype=np.float32)
        for place, own in enumerate(numbers):
            right[place, : len(own)], scores[place, : len(own)] = self.right[own], self.scores[own]
            for option, number in enumerate(own):
                tokens = self.values[self.offsets[number] : self.offsets[number + 1]]
                ids[place, option, : len(tokens)] = tokens
        return {
            "option_ids": torch.from_numpy(ids),
            "option_right": torch.from_numpy(right),
            "option_scores": torch.from_numpy(scores),
        }


def option_table(rows: Dataset, task: Task, encoder: TextEncoder, template: dict[str, Any]) -> OptionTable:
    """Tokenize the options of `rows` (column ``choices``, and ``right`` and ``answers`` if they are known).

    Args:
        template: the option `template` of the encoder, if the task has one.

    Raises:
        UserError: an option without tokens.
    """
    options: list[list[str]] = rows["choices"][:]
    texts = [text for own in options for text in own]
    distinct = list(dict.fromkeys(texts))
    encoded = encoder.answer_ids(distinct, **template) if distinct else []
    known = {text: ids[: task.max_target_length] for text, ids in zip(distinct, encoded, strict=True)}
    empty = next((text for text, ids in known.items() if not ids), None)
    if empty is not None:
        raise UserError(f"task {task.name}: the option {empty!r} has no tokens in this backbone; change or remove it")
    ids = [known[text] for text in texts]
    right = np.zeros(len(texts), dtype=bool)
    scores = np.zeros((len(texts), len(task.metrics)), dtype=np.float32)
    if "right" in rows.column_names:
        right[:] = [flag for own in rows["right"][:] for flag in own]
        references = [answers for own, answers in zip(options, rows["answers"][:], strict=True) for _ in own]
        for column, name in enumerate(task.metrics):
            scores[:, column] = right if name == "accuracy" else text_scores(name, texts, references)
    return OptionTable(
        np.array([token for own in ids for token in own], dtype=np.int32),
        np.concatenate([[0], np.cumsum([len(own) for own in ids])]).astype(np.int64),
        np.concatenate([[0], np.cumsum([len(own) for own in options])]).astype(np.int64),
        right,
        scores,
    )


def chosen_options(options: Sequence[Sequence[str]], probabilities: Sequence[Sequence[float]]) -> dict[str, list[Any]]:
    """Return columns of predictions: `label` (number of the option), `answer` (its text) and `p` (its probability)."""
    chosen = [int(np.argmax(row)) for row in probabilities]
    return {
        "label": chosen,
        "answer": [texts[number] for texts, number in zip(options, chosen, strict=True)],
        "p": [max(row) for row in probabilities],
    }


def constant_choice(table: OptionTable, rows: np.ndarray) -> np.ndarray:
    """Return the scores [n, M] of always choosing the option at the position that is best on these `rows`.

    The counterpart of the majority class; a row without an option at that position scores 0.
    """
    best: np.ndarray | None = None
    for position in range(int(table.counts[rows].max(initial=1))):
        there = table.counts[rows] > position
        scores = np.zeros((len(rows), table.scores.shape[1]), dtype=np.float32)
        scores[there] = table.scores[table.rows[rows[there]] + position]
        if best is None or scores[:, 0].mean() > best[:, 0].mean():
            best = scores
    assert best is not None
    return best
