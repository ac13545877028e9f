"""The dataclasses of a row of the registry (:mod:`prompt_transfer.tasks.registry`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prompt_transfer.tasks.labels import label_clash
from prompt_transfer.utils.errors import UserError

CLASSIFICATION_METRICS = ("accuracy", "f1", "matthews")
GENERATION_METRICS = ("exact_match", "squad_f1", "rouge1", "rouge2", "rougeL")
LABEL_WORDS_POLICIES = ("error", "first", "mean", "sequence")
DEFAULT_CUE = "Answer:"
CUES = {
    "sentiment": "It was",
    "nli": DEFAULT_CUE,
    "ethics": "This is",
    "paraphrase": "Same meaning:",
    "qa": DEFAULT_CUE,
    "summarization": "Summary:",
}


@dataclass(frozen=True)
class HubSource:
    """Location of a task on the Hugging Face hub.

    Attributes:
        id: repository, e.g. ``nyu-mll/glue``.
        config: configuration in it, or None.
        revision: commit or ref to read; None is the newest.
        splits: our split -> the hub's split.
        verified: True if this row has been loaded from the hub; False if it comes from documentation only.
        note: note for readers of the row.
        columns: the hub's column -> the task's source column, for names that differ.
        labels: the hub's label values in class order, if they differ from ``Task.labels``. Values beyond the number of
            classes are dropped (the fourth class of SemEval-2014).
        file: pattern of the data files with ``{config}`` and ``{split}``; None lets ``datasets`` find them.
    """

    id: str
    config: str | None
    revision: str | None
    splits: Mapping[str, str] = field(hash=False)
    verified: bool = False
    note: str = ""
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    labels: tuple[Any, ...] | None = None
    file: str | None = None


@dataclass(frozen=True)
class PaperWords:
    """Label words and text format of a task in release 1.0 of the paper's code (Su et al. 2022).

    Attributes:
        label_words: the words of its RoBERTa models in class order; () for generation.
        token_ids: family (``roberta``, ``bert``, ``t5``) -> one token id per class. They take precedence over the
            words, because some differ from them (``conflict`` is the piece "conf", class 0 of ethics is "897").
        labels: source values in class order if release 1.0 has other classes than our row, else None.
        swap_texts: True if the second text comes first (the hypothesis of MNLI and SNLI).
        join_texts: True if both texts form one segment, separated by a blank (laptop, restaurant).
        seq2seq_frame: texts that its T5 models read before the first text and between the two; None: the same as ours.
    """

    label_words: tuple[str, ...]
    token_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    labels: tuple[Any, ...] | None = None
    swap_texts: bool = False
    join_texts: bool = False
    seq2seq_frame: tuple[str, str] | None = None


@dataclass(frozen=True)
class Task:
    """One row of the task registry: source, columns, labels, label words and metrics.

    Attributes:
        name: name in options, files and tables.
        type: task type (sentiment, nli, ethics, paraphrase, qa, summarization, or a user's word).
        text_a, text_b: source columns of the first and second text; ``text_b`` None for single texts.
        label_column: source column of the label; None for generation tasks.
        labels: values of that column in class order; None means the integers 0..C-1.
        label_words: one word per class, in class order.
        label_words_policy: handling of words of several tokens: ``error``, ``first`` token, ``mean`` of all, or
            ``sequence``: score whole labels (causal and seq2seq backbones).
        metric: the metric that selects the best prompt.
        metrics: all reported metrics; the first is ``metric``.
        target_column: column with the text to generate, or with a list of reference texts (generation tasks).
        max_target_length: longest target in tokens, end token included, and most generated tokens.
        cue: text that a causal model reads before its answer; "" for none.
        hub, local, builtin: sources of the data; ``local`` is a folder that takes precedence over ``root/<name>``.
        paper: words and format of release 1.0, or None if it does not have the task.
        max_length: default longest text in tokens.
        drop_labels: label values whose rows are dropped, with a warning (SNLI: -1, no agreement of annotators).
        join_texts: join both columns into one text, separated by a blank.
        token_ids: family -> one token id per class; takes precedence over ``label_words`` (paper variant only).
        seq2seq_frame: texts that a seq2seq model reads before the first text and between the two (paper variant only);
            None: nothing before, and the end token between.
        title: name in figures and reports; "": ``name``.
    """

    name: str
    type: str
    text_a: str
    text_b: str | None = None
    label_column: str | None = "label"
    labels: tuple[Any, ...] | None = None
    label_words: tuple[str, ...] = ()
    label_words_policy: str = "error"
    metric: str = "accuracy"
    metrics: tuple[str, ...] = ()
    target_column: str | None = None
    max_target_length: int = 32
    cue: str = ""
    hub: HubSource | None = None
    local: str | None = None
    builtin: bool = False
    paper: PaperWords | None = None
    max_length: int = 64
    drop_labels: tuple[Any, ...] = ()
    join_texts: bool = False
    token_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    seq2seq_frame: tuple[str, str] | None = None
    title: str = ""

    def __post_init__(self) -> None:
        if not self.metrics:
            object.__setattr__(self, "metrics", (self.metric,))
        if self.metrics[0] != self.metric:
            raise ValueError(f"task {self.name}: the first of metrics {self.metrics} must be {self.metric}")
        if self.labels is not None and len(self.labels) != len(self.label_words):
            raise ValueError(f"task {self.name}: {len(self.labels)} labels, {len(self.label_words)} label words")
        fault = label_clash(self.class_labels, self.drop_labels)
        if fault is not None:
            raise UserError(f"task {self.name}: {fault}")

    @property
    def num_classes(self) -> int:
        """Number of classes C; 0 for a generation task."""
        return len(self.label_words)

    @property
    def class_labels(self) -> tuple[Any, ...]:
        """The label value of each class: `labels`, or 0..C-1."""
        return tuple(range(self.num_classes)) if self.labels is None else self.labels

    @property
    def is_generation(self) -> bool:
        """True if the task generates text (``target_column``) instead of predicting a class."""
        return self.target_column is not None

    def with_policy(self, policy: str | None) -> Task:
        """Return the task with another `label_words_policy`; itself for None and for generation tasks."""
        return self if policy is None or self.is_generation else replace(self, label_words_policy=policy)

    def paper_variant(self) -> Task:
        """Return the task with the words, token ids, classes and text order of release 1.0.

        Raises:
            UserError: release 1.0 does not have this task.
        """
        if self.paper is None:
            raise UserError(
                f"task {self.name} has no label words of the paper; leave out the option that asks for them"
            )
        labels = self.paper.labels or self.labels
        text_a, text_b = self.text_a, self.text_b
        if self.paper.swap_texts and text_b is not None:
            text_a, text_b = text_b, text_a
        kept = () if labels is None else labels
        return replace(
            self,
            text_a=text_a,
            text_b=text_b,
            labels=labels,
            label_words=self.paper.label_words,
            label_words_policy="first",
            token_ids=dict(self.paper.token_ids),
            join_texts=self.paper.join_texts,
            seq2seq_frame=self.paper.seq2seq_frame,
            drop_labels=tuple(value for value in self.drop_labels if value not in kept),
        )
