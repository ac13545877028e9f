"""Verbalizers: label -> label word -> token ids, and token logits -> class logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prompt_transfer.backbones.tokenization import word_pieces
from prompt_transfer.tasks.task import class_words
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.tasks.registry import Task

# The fourth policy of tasks, `sequence`, does not use single tokens: see `label_sequences`.
POLICIES = ("error", "first", "mean")
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Verbalizer:
    """The label words of one task as token ids of one tokenizer.

    Attributes:
        task_name: name of the task, for messages and tables.
        label_words: the first word of each class.
        class_ids: token ids of each class, those of all its words one after the other.
        class_pieces: the tokenizer's pieces for `class_ids`.
        policy: how words of several tokens were handled.
        token_ids: int64 `[U]`, sorted, unique: the logits that the backbone computes.
        weights: float32 `[C, U]`, rows sum to 1: class logits = weighted sums of token logits. A class of several words
            gets the mean of their logits. The logits of an example differ from log-probabilities over the vocabulary by
            one constant, so this is also the mean of log-probabilities: class probabilities are the same.
        words: all words of each class, with the token ids of each: class -> word -> ids.
    """

    task_name: str
    label_words: tuple[str, ...]
    class_ids: tuple[tuple[int, ...], ...]
    class_pieces: tuple[tuple[str, ...], ...]
    policy: str
    token_ids: Tensor
    weights: Tensor
    words: tuple[dict[str, tuple[int, ...]], ...] = ()

    @classmethod
    def build(
        cls,
        task_name: str,
        label_words: Sequence[str | Sequence[str]],
        tokenizer: Any,
        policy: str = "error",
        spaced: bool = True,
    ) -> Verbalizer:
        """Tokenize `label_words` as inside a sentence (" great" if a leading blank matters).

        Args:
            task_name: for messages.
            label_words: one word per class, in class order, or several words for a class.
            tokenizer: the backbone's tokenizer.
            policy: for words of several tokens: `error`, `first` token only, or `mean` of their logits.
            spaced: a blank precedes the words; False: they follow a line feed (templates that end in one).

        Raises:
            UserError: a word of several tokens under `error`, an unknown or empty word, two labels with the same
                tokens, fewer than two words.
        """
        if policy not in POLICIES:
            raise UserError(f"task {task_name}: label_words_policy is {policy!r}; choose one of {', '.join(POLICIES)}")
        sets = [tuple(words) if isinstance(words, list | tuple) else (words,) for words in label_words]
        doubled = [word for words in sets for word in words if words.count(word) > 1]
        if doubled:
            raise UserError(f"task {task_name}: the label word {doubled[0]!r} occurs twice in a class; remove one")
        classes = [{word: _word_ids(task_name, word, tokenizer, policy, spaced) for word in words} for words in sets]
        return cls._make(task_name, classes, tokenizer, policy)

    @classmethod
    def from_ids(
        cls, task_name: str, token_ids: Sequence[int], tokenizer: Any, label_words: Sequence[str] | None = None
    ) -> Verbalizer:
        """Build a verbalizer from one token id per class (the paper's may differ from their words).

        `label_words` are names for tables; the default is the tokens.

        Raises:
            UserError: an id outside the vocabulary, two equal ids, fewer than two ids.
        """
        for token_id in token_ids:
            if not 0 <= token_id < len(tokenizer):
                raise UserError(
                    f"task {task_name}: the token id {token_id} is not in the vocabulary of {len(tokenizer)} tokens; "
                    "these ids belong to another backbone, use label words"
                )
        words = tokenizer.convert_ids_to_tokens(list(token_ids)) if label_words is None else label_words
        if len(words) != len(token_ids):
            raise UserError(f"task {task_name}: {len(token_ids)} token ids, but {len(words)} label words")
        classes = [{word: [token_id]} for word, token_id in zip(words, token_ids, strict=True)]
        return cls._make(task_name, classes, tokenizer, "ids")

    @classmethod
    def for_task(cls, task: Task, tokenizer: Any, family: str, spaced: bool = True) -> Verbalizer:
        """Build the verbalizer of a task: from its token ids for `family` if it has them, else from its words.

        `spaced` as in `build`.

        Raises:
            UserError: as `build` and `from_ids`; also for a task without classes.
        """
        if family in task.token_ids:
            return cls.from_ids(task.name, task.token_ids[family], tokenizer, task.label_words)
        return cls.build(task.name, class_words(task), tokenizer, task.label_words_policy, spaced)

    @classmethod
    def _make(cls, name: str, classes: Sequence[dict[Any, list[int]]], tokenizer: Any, policy: str) -> Verbalizer:
        if len(classes) < 2:
            raise UserError(f"task {name}: {len(classes)} label words; a classification task has two or more")
        seen: dict[frozenset[int], str] = {}
        for word, own in (pair for words in classes for pair in words.items()):
            if (other := seen.get(frozenset(own))) is not None:
                pieces = tokenizer.convert_ids_to_tokens(list(own))
                raise UserError(
                    f"task {name}: the labels {other!r} and {word!r} are both the token {' '.join(map(repr, pieces))}; "
                    "choose another label word for one of them, or with a causal or seq2seq backbone score whole "
                    "labels with label_words_policy sequence"
                )
            seen[frozenset(own)] = word
        ids = [[token_id for own in words.values() for token_id in own] for words in classes]
        token_ids = sorted({token_id for own in ids for token_id in own})
        weights = torch.zeros(len(classes), len(token_ids))
        for row, words in enumerate(classes):
            for own in words.values():
                for token_id in own:
                    weights[row, token_ids.index(token_id)] += 1 / len(own) / len(words)
        return cls(
            task_name=name,
            label_words=tuple(next(iter(words)) for words in classes),
            class_ids=tuple(tuple(own) for own in ids),
            class_pieces=tuple(tuple(tokenizer.convert_ids_to_tokens(list(own))) for own in ids),
            policy=policy,
            token_ids=torch.tensor(token_ids, dtype=torch.int64),
            weights=weights,
            words=tuple({word: tuple(own) for word, own in words.items()} for words in classes),
        )

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.label_words)

    def class_logits(self, token_logits: Tensor) -> Tensor:
        """Map logits of `token_ids` `[..., U]` to class logits `[..., C]`, float32."""
        return _mix(token_logits, self.weights)

    def to(self, device: torch.device | str) -> Verbalizer:
        """Return a copy with its tensors on `device`."""
        return replace(self, token_ids=self.token_ids.to(device), weights=self.weights.to(device))

    def table(self) -> list[dict[str, Any]]:
        """Return one row per word: task, class, label_word, token_ids, pieces, policy."""
        pieces = [dict(zip(*both, strict=True)) for both in zip(self.class_ids, self.class_pieces, strict=True)]
        return [
            {
                "task": self.task_name,
                "class": index,
                "label_word": word,
                "token_ids": list(ids),
                "pieces": [piece_of[token_id] for token_id in ids],
                "policy": self.policy,
            }
            for index, (words, piece_of) in enumerate(zip(self.words, pieces, strict=True))
            for word, ids in words.items()
        ]


@dataclass(frozen=True, eq=False)
class VerbalizerStack:
    """The stacked verbalizers of K tasks, for batches that mix tasks.

    Attributes:
        token_ids: int64 `[U]`, the sorted union.
        weights: float32 `[K, C, U]`, C the largest number of classes; zero beyond a task's classes.
        class_mask: bool `[K, C]`, True for the classes of a task.
    """

    token_ids: Tensor
    weights: Tensor
    class_mask: Tensor

    def class_logits(self, token_logits: Tensor, task_ids: Tensor) -> Tensor:
        """Map token logits `[B, U]` and task indices `[B]` to class logits `[B, C]`, -inf beyond a task's classes."""
        logits = _mix(token_logits, self.weights[task_ids])
        return logits.masked_fill(~self.class_mask[task_ids], float("-inf"))

    def to(self, device: torch.device | str) -> VerbalizerStack:
        """Return a copy with its tensors on `device`."""
        return VerbalizerStack(self.token_ids.to(device), self.weights.to(device), self.class_mask.to(device))


def stack(verbalizers: Sequence[Verbalizer]) -> VerbalizerStack:
    """Stack the verbalizers of several tasks (of one tokenizer); their order defines the task indices."""
    token_ids = torch.cat([one.token_ids for one in verbalizers]).unique()
    classes = max(one.num_classes for one in verbalizers)
    weights = torch.zeros(len(verbalizers), classes, len(token_ids))
    mask = torch.zeros(len(verbalizers), classes, dtype=torch.bool)
    for number, one in enumerate(verbalizers):
        weights[number][: one.num_classes, torch.searchsorted(token_ids, one.token_ids)] = one.weights
        mask[number, : one.num_classes] = True
    return VerbalizerStack(token_ids, weights, mask)


def label_sequences(tasks: Sequence[Task], encoder: Any) -> tuple[Tensor, Tensor]:
    """Return the label words of K tasks as token sequences, for rank classification by their log-probabilities.

    The end token is omitted, because a causal model need not stop after its answer. Hence no label may be a prefix of
    one of another class. W is the number of words, or of classes C with one word each; words are in class order.

    Args:
        tasks: tasks in the order of their indices.
        encoder: a `TextEncoder` of a generative backbone.

    Returns:
        Token ids [K, W, S] padded with -100, and the words of each task as a bool mask [K, W].

    Raises:
        UserError: a label without tokens, or one that is a prefix of another.
    """
    words = [[(number, word) for number, some in enumerate(class_words(task)) for word in some] for task in tasks]
    rows = [_answer_ids(encoder, task, [word for _, word in own]) for task, own in zip(tasks, words, strict=True)]
    for task, named, labels in zip(tasks, words, rows, strict=True):
        for (number, word), own in zip(named, labels, strict=True):
            if not own:
                raise UserError(f"task {task.name}: the label {word!r} has no tokens; choose another word")
            for (index, other), ids in zip(named, labels, strict=True):
                if index != number and ids[: len(own)] == own:
                    raise UserError(
                        f"task {task.name}: to the backbone the label {other!r} begins with all of {word!r}, so the "
                        "second is always likelier; choose another word for one of them"
                    )
    classes = max(map(len, rows))
    longest = max(len(ids) for labels in rows for ids in labels)
    sequences = torch.full((len(rows), classes, longest), IGNORED)
    mask = torch.zeros(len(rows), classes, dtype=torch.bool)
    for task_number, labels in enumerate(rows):
        for index, ids in enumerate(labels):
            sequences[task_number, index, : len(ids)] = torch.tensor(ids)
            mask[task_number, index] = True
    return sequences, mask


def _answer_ids(encoder: Any, task: Task, words: list[str]) -> list[list[int]]:
    template = getattr(task, "format", None)
    return encoder.answer_ids(words) if template is None else encoder.answer_ids(words, template)


def sequence_weights(tasks: Sequence[Task]) -> Tensor | None:
    """Return the weights [K, C, W] that average the words of `label_sequences` per class; None if each has one."""
    sets = [class_words(task) for task in tasks]
    if all(len(words) == 1 for own in sets for words in own):
        return None
    weights = torch.zeros(len(sets), max(map(len, sets)), max(sum(map(len, own)) for own in sets))
    for task, own in enumerate(sets):
        start = 0
        for number, words in enumerate(own):
            weights[task, number, start : start + len(words)] = 1 / len(words)
            start += len(words)
    return weights


def _mix(token_logits: Tensor, weights: Tensor) -> Tensor:
    # Not a matmul: TF32 and autocast would round the logits, and U is small.
    return (token_logits.float().unsqueeze(-2) * weights).sum(-1)


def _word_ids(task_name: str, word: str, tokenizer: Any, policy: str, spaced: bool) -> list[int]:
    if not isinstance(word, str):
        raise UserError(f"task {task_name}: the label word {word!r} is not text; YAML needs quotes around such words")
    ids = word_pieces(tokenizer, word, spaced)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    if not word.strip() or not ids:
        raise UserError(f"task {task_name}: the label word {word!r} has no tokens; choose another word")
    unknown = tokenizer.unk_token_id in ids
    if unknown or set(ids) & set(tokenizer.all_special_ids):
        kind = "not in the backbone's vocabulary" if unknown else "a special token"
        raise UserError(f"task {task_name}: the label word {word!r} is {kind} ({pieces}); choose another word")
    if len(ids) > 1 and policy == "error":
        raise UserError(
            f"task {task_name}: the label word {word!r} is {len(ids)} tokens ({', '.join(map(repr, pieces))}); choose "
            "another word, or set label_words_policy to first, mean or (causal and seq2seq backbones) sequence"
        )
    return ids[:1] if policy == "first" else ids
