"""The dataclasses of a row of the registry (:mod:`prompt_transfer.tasks.registry`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prompt_transfer.backbones.templates import Template, default_template
from prompt_transfer.tasks.columns import columns_of
from prompt_transfer.tasks.labels import label_clash
from prompt_transfer.utils.errors import UserError

CLASSIFICATION_METRICS = ("accuracy", "f1", "matthews", "group_exact_match")
CHOICE_METRICS = ("accuracy", "exact_match", "squad_f1")
CHOICE_SCORES = ("sum", "mean")
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
    "word_sense": "Same meaning:",
    "coreference": DEFAULT_CUE,
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
        text_a, text_b: source columns of the first and second text; ``text_b`` None for single texts. Several columns
            make one text as a format string: ``{question} {answer}``.
        label_column: source column of the label; None for generation tasks.
        labels: values of that column in class order; None means the integers 0..C-1.
        label_words: one word per class, in class order; the class's name in tables. A list of words in place of a word
            moves its further words to `other_words`.
        other_words: further words of each class, scored with the first one: the class score is the mean over them.
        label_words_policy: handling of words of several tokens: ``error``, ``first`` token, ``mean`` of all, or
            ``sequence``: score whole labels (causal and seq2seq backbones).
        metric: the metric that selects the best prompt.
        metrics: all reported metrics; the first is ``metric``.
        target_column: column with the text to generate, or with a list of reference texts (generation tasks).
        max_target_length: longest target in tokens, end token included, and most generated tokens.
        cue: text that a causal model reads before its answer; "" for none. The short form of a template that ends in
            it; unused if there is a template.
        template: words around the texts, for every kind of backbone (`prompt_transfer.backbones.templates`); None: the
            default format of the kind.
        choices: multiple choice, without label words: the columns of the options, or one column with a list of them. An
            option's score is the log-likelihood of its tokens. ``label_column`` holds the number of the right option
            (or its value in ``labels``), its text, or a list of right texts.
        choice_score: ``sum`` or ``mean`` of the log-likelihoods of an option's tokens.
        values: column -> its value -> the text in its place.
        group: column (or format string) of the group of a row, for the metric ``group_exact_match``.
        question: the template that asks the question of the task in words, for ``--data.template question``; None: the
            texts and the cue say it already.
        chat_template: wrap the texts in the chat template of a causal model's tokenizer.
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
    other_words: tuple[tuple[str, ...], ...] = ()
    template: str | None = None
    question: str | None = None
    chat_template: bool = False
    choices: tuple[str, ...] = ()
    choice_score: str = "sum"
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict, hash=False)
    group: str | None = None
    title: str = ""

    def __post_init__(self) -> None:
        if any(not isinstance(words, str) for words in self.label_words):
            sets = [(words,) if isinstance(words, str) else tuple(words) for words in self.label_words]
            if not all(sets):
                raise UserError(f"task {self.name}: a class has no label word")
            object.__setattr__(self, "label_words", tuple(words[0] for words in sets))
            others = tuple(words[1:] for words in sets)
            object.__setattr__(self, "other_words", others if any(others) else ())
        if self.other_words and len(self.other_words) != len(self.label_words):
            raise ValueError(f"task {self.name}: {len(self.other_words)} sets of other words")
        _ = self.format  # checks the template
        if self.question is not None:
            Template.parse(self.question, self.pairs)
        for spec in (self.text_a, self.text_b, self.group, *self.choices):
            try:
                columns_of(spec)
            except ValueError as error:
                raise UserError(f"task {self.name}: the columns {spec!r} cannot be read: {error}") from error
        if not self.metrics:
            object.__setattr__(self, "metrics", (self.metric,))
        if self.metrics[0] != self.metric:
            raise ValueError(f"task {self.name}: the first of metrics {self.metrics} must be {self.metric}")
        if self.labels is not None and not self.is_choice and len(self.labels) != len(self.label_words):
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
        """The label value of each class, or of each column of options: `labels`, or 0..C-1."""
        count = len(self.choices) if self.is_choice else self.num_classes
        return tuple(range(count)) if self.labels is None else self.labels

    @property
    def is_choice(self) -> bool:
        """True if every row has its own options (``choices``) instead of the task's classes."""
        return bool(self.choices)

    @property
    def has_example_scores(self) -> bool:
        """True if metrics are means over examples' scores: generation and multiple choice; else over classes."""
        return self.is_generation or self.is_choice

    @property
    def is_generation(self) -> bool:
        """True if the task generates text (``target_column``) instead of predicting a class."""
        return self.target_column is not None

    def metric_label(self, name: str) -> str:
        """Return the name of a metric with the average that F1 uses: `f1 (of 'great')` or `f1 (macro)`."""
        if name != "f1" or self.has_example_scores or not self.label_words:
            return name
        return f"f1 (of {self.label_words[1]!r})" if self.num_classes == 2 else "f1 (macro)"

    @property
    def class_words(self) -> tuple[tuple[str, ...], ...]:
        """All words of each class."""
        return class_words(self)

    @property
    def stored_words(self) -> list[Any]:
        """The label words as in a task's YAML file: a word per class, or a list of words."""
        return [words[0] if len(words) == 1 else list(words) for words in self.class_words]

    @property
    def pairs(self) -> bool:
        """Whether an example has two texts that are tokenized separately."""
        return self.text_b is not None and not self.join_texts

    @property
    def format(self) -> Template | None:
        """The template that replaces the backbone's default format; None without one."""
        if self.template is None and not self.chat_template:
            return None
        text = default_template(self.pairs, self.cue) if self.template is None else self.template
        try:
            return Template.parse(text, self.pairs, self.chat_template)
        except UserError as error:
            raise UserError(f"task {self.name}: {error}") from error

    def with_format(self, template: str | None = None, chat_template: bool | None = None) -> Task:
        """Return the task with another template; None keeps its own, as does the template ``default``.

        ``question`` is the task's `question`; a task without one keeps its own template. The two characters ``\\n`` in
        a template are a line feed, which a shell cannot write.
        """
        given: dict[str, Any] = {}
        if template == "question":
            template = self.question
        if template not in (None, "", "default"):
            given["template"] = template.replace("\\n", "\n")
        if chat_template is not None:
            given["chat_template"] = chat_template
        return replace(self, **given) if given else self

    def with_policy(self, policy: str | None) -> Task:
        """Return the task with another `label_words_policy`; itself for None and for tasks without label words."""
        return self if policy is None or self.has_example_scores else replace(self, label_words_policy=policy)

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
            other_words=(),
            label_words_policy="first",
            question=None,
            token_ids=dict(self.paper.token_ids),
            join_texts=self.paper.join_texts,
            seq2seq_frame=self.paper.seq2seq_frame,
            drop_labels=tuple(value for value in self.drop_labels if value not in kept),
        )


def class_words(task: Any) -> tuple[tuple[str, ...], ...]:
    """Return all words of each class of a task."""
    others = getattr(task, "other_words", ()) or ((),) * len(task.label_words)
    return tuple((word, *more) for word, more in zip(task.label_words, others, strict=True))
