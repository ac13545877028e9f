"""Target tasks of a study: tokenized examples, reference answers and the baseline."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompt_transfer.backbones.encoder import TextEncoder
from prompt_transfer.data.baselines import trivial_answers
from prompt_transfer.data.checks import shared_rows, text_keys
from prompt_transfer.data.choices import constant_choice
from prompt_transfer.data.selection import SPLITS, Selection
from prompt_transfer.data.table_files import RawSplit
from prompt_transfer.data.tables import Tables
from prompt_transfer.data.tokens import TokenTable
from prompt_transfer.studies.data import EvaluationData as EvaluationData
from prompt_transfer.studies.data import TargetData as TargetData
from prompt_transfer.tasks.metrics import (
    bootstrap_mean_interval,
    bootstrap_metric_interval,
    class_metric,
    text_scores,
)
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError


@dataclass(frozen=True)
class Target:
    """A task with n examples to score.

    An *answer* is one number per example: the predicted class, or the score of the generated text or chosen option.

    Attributes:
        task: the task, with the label words in use.
        split: split and its origin, for the tables.
        table: token ids.
        references: reference texts of each example, for generation tasks.
        baseline: answers [n] of the majority class (or best position of an option), or of the lead of the text.
        facts: settings that affect the answers, except prompt and backbone, as plain values.
        keys, trained_keys: `text_keys` of these examples and of the task's training examples, if requested.
        content_free: returns the token ids of content-free texts.
        calibrated: divide class probabilities by those on content-free texts.
    """

    task: Task
    split: str
    table: TokenTable = field(repr=False)
    references: list[list[str]] = field(repr=False)
    baseline: NDArray[np.float32] = field(repr=False)
    facts: dict[str, Any] = field(repr=False)
    keys: NDArray[np.uint64] | None = field(default=None, repr=False)
    trained_keys: NDArray[np.uint64] | None = field(default=None, repr=False)
    content_free: Callable[[], TokenTable] | None = field(default=None, repr=False)
    calibrated: bool = False

    def calibrate(self) -> Target:
        """Return the target with contextual calibration.

        Raises:
            UserError: the task has no label words.
        """
        if self.task.has_example_scores:
            raise UserError(f"{self.task.name} has no label words to calibrate: leave out --calibrate, or the task")
        return replace(self, calibrated=True, facts={**self.facts, "calibrated": True})

    def __len__(self) -> int:
        return len(self.table)

    def examples(self, answers: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return each example's contribution to the mean score [n]: correctness, or the score of its text."""
        if self.task.has_example_scores:
            return answers.astype(np.float64)
        return (answers.astype(np.int64) == self.table.labels).astype(np.float64)

    def score(self, answers: NDArray[np.float32], rows: NDArray[np.int64] | None = None) -> float:
        """Return the task's metric as a fraction, over some `rows` of the n examples or over all."""
        chosen = slice(None) if rows is None else rows
        if self.task.has_example_scores:
            return float(answers[chosen].mean(dtype=np.float64))
        labels, groups = self.table.labels[chosen], self.table.groups
        known = None if groups is None else groups[chosen]
        return class_metric(self.task.metric, answers[chosen], labels, self.task.num_classes, known)

    def interval(self, answers: NDArray[np.float32]) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of the metric over examples."""
        if self.task.has_example_scores:
            return bootstrap_mean_interval(answers, seed=0)
        return bootstrap_metric_interval(
            self.task.metric, answers, self.table.labels, self.task.num_classes, seed=0, groups=self.table.groups
        )

    def scored(self, answers: NDArray[np.float32]) -> dict[str, Any]:
        """Return the columns of a score table: split, metric, value, low and high (of `interval`), n."""
        low, high = self.interval(answers)
        return {
            "split": self.split,
            "metric": self.task.metric,
            "value": self.score(answers),
            "low": low,
            "high": high,
            "n": len(self),
        }

    def beats_baseline(self, own: Sequence[NDArray[np.float32]]) -> bool:
        """Return whether the task was *learned*: its own prompts beat the baseline by more than chance.

        True if the 95 % interval of their mean score minus the baseline's over the same examples lies above 0. For
        metrics that are not a mean over examples: if the interval of every own prompt lies above the baseline.
        """
        if self.task.has_example_scores or self.task.metric == "accuracy":
            ahead = np.mean([self.examples(answers) for answers in own], axis=0) - self.examples(self.baseline)
            return bootstrap_mean_interval(ahead, seed=0)[0] > 0
        return min(self.interval(answers)[0] for answers in own) > self.score(self.baseline)


def digests_of(targets: Sequence[Target]) -> dict[str, dict[str, str]]:
    """Return task -> split -> digest of the examples, for `provenance.json`."""
    return {target.task.name: {target.split.partition(" ")[0]: target.table.content(0)} for target in targets}


def load_target(
    task: Task,
    data: EvaluationData,
    label_words: str,
    split: str,
    encoder: TextEncoder,
    with_keys: bool = False,
    own: Mapping[str, Mapping[str, RawSplit]] | None = None,
) -> Target:
    """Read and tokenize the examples of a split.

    Args:
        with_keys: compute the text keys needed by `warn_of_shared_rows`.
        own: task -> rows that were read already (`choose_tasks`).

    Raises:
        UserError: the source does not have the task, or its data are invalid.
    """
    data.check()
    task = task.with_format(data.template, data.chat_template)
    limits: dict[str, int | None] = dict.fromkeys(SPLITS, data.limit_eval)
    options = (data.source, data.root, data.seed, label_words, limits)
    selection = Selection([task], *options, revision=data.revision, own=own or {})
    tables = Tables(selection, encoder, data.max_length, data.cache_dir, data.special_tokens)
    tables.warn_of_special_tokens(split)
    table, task, rows = tables.split(split), selection.tasks[0], selection.rows(split)
    references = selection.targets(split, table.ids.tolist()) if task.is_generation else []
    if task.is_generation:
        baseline = text_scores(task.metric, trivial_answers(selection.data[0], rows), references)
    elif table.options is not None:
        baseline = constant_choice(table.options, np.arange(len(table)))[:, 0]
    else:
        baseline = np.full(len(table), int(np.argmax(selection.label_counts(split))))
    facts = {
        **selection.facts(split, 0),
        "task": task.name,
        "words": [task.stored_words, task.label_words_policy],
        "metric": task.metric,
        "max_length": tables.lengths[0],
    }
    if task.is_choice:
        facts["choice_score"] = task.choice_score
    if tables.templates[0] is not None:
        facts["template"] = tables.templates[0].text
    # Omitted for the default: answers written before the option existed stay valid.
    if data.special_tokens != "keep":
        facts["special_tokens"] = data.special_tokens
    origin = f"{split} ({selection.data[0].origin[split]})"
    keys = (text_keys(rows), text_keys(selection.data[0].split("train"))) if with_keys else (None, None)
    answers = baseline.astype(np.float32)
    return Target(task, origin, table, references, answers, facts, keys[0], keys[1], tables.content_free)


def warn_of_shared_rows(targets: Sequence[Target], sources: Collection[str]) -> None:
    """Warn if examples of a target are training examples of another task that prompts were trained on.

    Args:
        targets: targets loaded with keys.
        sources: training tasks of the prompts; only those that are targets too are checked.
    """
    evaluated = {target.task.name: target.keys for target in targets if target.keys is not None}
    trained = {
        target.task.name: target.trained_keys
        for target in targets
        if target.trained_keys is not None and target.task.name in sources
    }
    if found := shared_rows(evaluated, trained):
        warnings.warn(f"transfer between these tasks is not to unseen texts: {'; '.join(found)}", stacklevel=2)
