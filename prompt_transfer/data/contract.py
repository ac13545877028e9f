"""The batch that `PromptTuning` reads: its contract, checked, and its construction from texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.data.batches import IGNORED, collate
from prompt_transfer.data.texts import texts_to_predict
from prompt_transfer.data.tokens import TextEncoder, tokenise
from prompt_transfer.tasks.labels import label_key
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

SEE = "see docs/pages/guide/own_data.md, or make batches with PromptTuning.encode"


@dataclass(frozen=True)
class BatchRules:
    """Properties of model and task that a batch must fit; None is not checked.

    Attributes:
        classes: C of each task.
        vocabulary: number of token ids.
        longest: most tokens of a text.
        answers: whether labels (or target_ids, for tasks without classes) are required.
    """

    classes: Sequence[int] | None = None
    vocabulary: int | None = None
    longest: int | None = None
    answers: bool = True


def check_batch(batch: Any, rules: BatchRules | None = None) -> dict[str, Tensor]:
    """Check a batch of examples against the contract, and return it complete.

    Args:
        batch: a mapping with ``input_ids [B, T]`` (int64 token ids with special tokens, padded on the right),
            ``attention_mask [B, T]`` (1 for tokens, 0 for padding), ``labels [B]`` (int64 class index) or, for
            generation, ``target_ids [B, S]`` (int64, padded with -100). Optional are ``task_ids [B]`` (index of the
            task, default 0) and ``ids [B]`` (numbers of the examples, default 0, 1, ...). Other entries are dropped.
        rules: properties of model and task.

    Raises:
        UserError: a missing entry, or one of the wrong type, shape or content; names the entry.
    """
    rules = rules or BatchRules()
    if not isinstance(batch, Mapping) or isinstance(batch, str):
        raise UserError(f"a batch must be a dict with input_ids, attention_mask and labels, not {_kind(batch)}; {SEE}")
    found = {name: _tensor(batch, name, 2) for name in ("input_ids", "attention_mask")}
    size, length = found["input_ids"].shape
    if not size or not length:
        raise UserError(f"batch: input_ids is {_shape(found['input_ids'])}; a batch needs an example with a token")
    _same(found, "attention_mask", (size, length))
    _check_mask(found["attention_mask"], rules.longest)
    found["attention_mask"] = found["attention_mask"].long()
    if rules.vocabulary is not None:
        _in_range(found["input_ids"], "input_ids", rules.vocabulary, "token ids of the backbone")
    for name in ("task_ids", "ids"):
        if name in batch:
            found[name] = _tensor(batch, name, 1)
            _same(found, name, (size,))
    found.setdefault("task_ids", torch.zeros(size, dtype=torch.int64, device=found["input_ids"].device))
    found.setdefault("ids", torch.arange(size, device=found["input_ids"].device))
    if rules.classes is not None:
        _in_range(found["task_ids"], "task_ids", len(rules.classes), "numbers of the tasks")
    return found | _answers(batch, found, rules)


def _answers(batch: Mapping[str, Any], found: dict[str, Tensor], rules: BatchRules) -> dict[str, Tensor]:
    """Return the checked `labels` or `target_ids`."""
    size = len(found["input_ids"])
    generates = rules.classes is not None and not any(rules.classes)
    answers: dict[str, Tensor] = {}
    for name, dimensions in (("labels", 1), ("target_ids", 2)):
        needed = rules.answers and (name == "target_ids") == generates
        if name in batch or needed:
            answers[name] = _tensor(batch, name, dimensions)
            _same(answers, name, (size, *answers[name].shape[1:]))
    if "target_ids" in answers and bool(((answers["target_ids"] < 0) & (answers["target_ids"] != IGNORED)).any()):
        raise UserError(f"batch: target_ids has negative values; pad it with {IGNORED}")
    if rules.answers and not generates and rules.classes is not None:
        most = torch.tensor(list(rules.classes), device=found["task_ids"].device)[found["task_ids"]]
        wrong = ((answers["labels"] < 0) | (answers["labels"] >= most)).nonzero().flatten().tolist()
        if wrong:
            value, classes = int(answers["labels"][wrong[0]]), int(most[wrong[0]])
            raise UserError(
                f"batch: labels has {value} in example {wrong[0]} (counted from 0), but the task has the classes 0 to "
                f"{classes - 1}: give class indices in the order of the label words"
            )
    # Batches without answers have the label -1, as those of TaskDataModule.
    answers.setdefault("labels", torch.full((size,), -1, dtype=torch.int64, device=found["input_ids"].device))
    return answers


def _tensor(batch: Mapping[str, Any], name: str, dimensions: int) -> Tensor:
    shape = "[B, T]" if name in ("input_ids", "attention_mask") else "[B, S]" if dimensions == 2 else "[B]"
    if name not in batch:
        there = ", ".join(map(str, batch)) or "nothing"
        raise UserError(f"batch: {name} {shape} is missing; it has {there}; {SEE}")
    value = batch[name]
    if not isinstance(value, Tensor):
        raise UserError(f"batch: {name} must be a tensor {shape}, not {_kind(value)}")
    if value.ndim != dimensions:
        raise UserError(f"batch: {name} must be {shape}, not {_shape(value)}")
    allowed = (torch.int64, torch.int32, torch.bool) if name == "attention_mask" else (torch.int64,)
    if value.dtype not in allowed:
        raise UserError(f"batch: {name} must be int64, not {str(value.dtype).removeprefix('torch.')}; use .long()")
    return value


def _same(found: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> None:
    if tuple(found[name].shape) != shape:
        raise UserError(
            f"batch: {name} is {_shape(found[name])}, but input_ids has {shape[0]} examples"
            f"{f' of {shape[1]} positions' if name == 'attention_mask' else ''}"
        )


def _check_mask(mask: Tensor, longest: int | None) -> None:
    tokens = mask.bool()
    if bool(((mask != 0) & (mask != 1)).any()):
        raise UserError("batch: attention_mask has values other than 0 and 1")
    empty = (~tokens.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise UserError(f"batch: attention_mask of example {empty[0]} (counted from 0) is 0 throughout: no token")
    left = (tokens[:, 1:] & ~tokens[:, :-1]).any(dim=1).nonzero().flatten().tolist()
    if left:
        raise UserError(
            f"batch: example {left[0]} (counted from 0) has a token after padding: pad on the right "
            "(tokenizer.padding_side = 'right')"
        )
    most = int(tokens.sum(dim=1).max())
    if longest is not None and most > longest:
        raise UserError(
            f"batch: input_ids has an example of {most} tokens, but prompt and answer slot leave {longest} positions "
            "of the backbone: truncate texts, or use a shorter prompt_length"
        )


def _in_range(values: Tensor, name: str, end: int, what: str) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= end:
        raise UserError(f"batch: {name} has {low if low < 0 else high}, outside of the {what}, 0 to {end - 1}")


def _kind(value: Any) -> str:
    return type(value).__name__


def _shape(value: Tensor) -> str:
    return f"[{', '.join(map(str, value.shape))}]"


# Batches from texts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encode:
    """A function from texts to batches, for one task and backbone; also the collate function of a DataLoader.

    Attributes:
        encoder: of the backbone (`PromptTuning.encoder`).
        task: the task, for labels, cue and, without `max_length`, the longest text.
        text, label, text_b: keys of the rows that a DataLoader collates; rows without the label are unlabelled.
        max_length: longest text in tokens, special tokens included.
    """

    encoder: TextEncoder
    task: Task
    text: str = "text"
    label: str = "label"
    text_b: str | None = None
    max_length: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the batch of rows; answers are `labels` or, for generation, `target_ids`.

        Raises:
            UserError: a row without text, or an unknown label.
        """
        columns: dict[str, list[Any]] = {}
        for name in filter(None, (self.text, self.text_b)):
            missing = next((number for number, row in enumerate(rows) if not isinstance(row.get(name), str)), None)
            if missing is not None:
                raise UserError(
                    f"row {missing} (counted from 0) has no text {name!r}; it has {', '.join(rows[missing])}"
                )
            columns[name] = [row[name] for row in rows]
        answers = [row[self.label] for row in rows] if all(self.label in row for row in rows) else None
        return self.texts(columns[self.text], answers, columns[self.text_b] if self.text_b else None)

    def texts(
        self, texts: Sequence[str], labels: Sequence[Any] | None = None, texts_b: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the batch of texts, with the classes of `labels` (label values, label words or texts to generate)."""
        if isinstance(texts, str):
            raise UserError("texts is one string: give a list, [text]")
        if labels is not None and len(labels) != len(texts):
            raise UserError(f"{len(texts)} texts and {len(labels)} labels: each text needs one")
        data = texts_to_predict(list(texts), texts_b)
        if labels is not None:
            name = "target" if self.task.is_generation else "label"
            data = data.add_column(name, [[one] for one in labels] if name == "target" else self._classes(labels))
        room = min(self.task.max_length, self.encoder.text_budget())
        table = tokenise(
            data, self.encoder, self.max_length or room, pairs=texts_b is not None, cue=self.task.cue,
            seq2seq_frame=self.task.seq2seq_frame,
            max_target_length=self.task.max_target_length if self.task.is_generation and labels is not None else None,
        )  # fmt: skip
        batch = collate(table, torch.arange(len(table)).numpy(), self.encoder.pad_token_id)
        # The module numbers the examples of all batches.
        return {name: value for name, value in batch.items() if name != "ids"}

    def _classes(self, labels: Sequence[Any]) -> list[int]:
        known = {word: number for number, word in enumerate(self.task.label_words)}
        known |= {str(label_key(label)): number for number, label in enumerate(self.task.class_labels)}
        keys = [str(label_key(value)) for value in labels]
        wrong = next((key for key in keys if key not in known), None)
        if wrong is not None:
            raise UserError(f"label {wrong!r} is none of the labels of {self.task.name}: {', '.join(known)}")
        return [known[key] for key in keys]
