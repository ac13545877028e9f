"""The registry of tasks: rows of ``catalogue.py``, or a user's YAML files.

A user's task is a YAML file::

    name: trec                       # also the folder below --data.root
    type: topic                      # any word; six are the paper's
    columns: {text_a: text, text_b: null}
    label_column: label
    labels: [0, 1]                   # values in class order; left out: 0..C-1
    label_words: [terrible, great]   # or several words a class: [[terrible, awful], [great, good]]
    label_words_policy: error        # a word of several tokens: error, first token, mean of all
    metric: accuracy
    cue: "Answer:"                   # text that a causal model reads before its answer; "" for none
    template: "{text_a}\\nTopic:"     # optional, words around the texts instead of the cue
    chat_template: true              # optional, the texts are the user's turn of an instruct model's chat template
    local: folder                    # optional, relative to this file; wins over --data.root/<name>

A multiple-choice task has options in every row instead of label words, and is scored by their log-likelihoods::

    choices: [choice1, choice2]      # their columns, or one column that holds a list of texts
    choice_score: sum                # or mean, over the tokens of an option
    label_column: label              # number of the right option, its text, or a list of right texts
    values: {question: {cause: "What was the cause?"}}  # optional, for any task: texts in place of a column's values

A generation task has a target instead of labels and label words::

    target_column: summary           # a text, or a list of reference texts
    max_target_length: 32            # longest target, and most generated tokens
    metric: rougeL                   # exact_match, squad_f1, rouge1, rouge2 or rougeL
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from prompt_transfer.tasks import forms
from prompt_transfer.tasks.builtin import BUILTIN_TASKS
from prompt_transfer.tasks.catalogue import ROWS
from prompt_transfer.tasks.labels import label_clash
from prompt_transfer.tasks.task import (
    CHOICE_METRICS,
    CLASSIFICATION_METRICS,
    DEFAULT_CUE,
    GENERATION_METRICS,
    LABEL_WORDS_POLICIES,
    HubSource,
    PaperWords,
    Task,
)
from prompt_transfer.utils.errors import UserError

__all__ = ["HubSource", "PaperWords", "Task", "describe_tasks", "get_task", "register", "task_names"]

LABEL_KEYS = ("label_column", "labels", "label_words", "label_words_policy", "drop_labels")
TARGET_KEYS = ("target_column", "max_target_length")
FORMAT_KEYS = ("max_length", "cue", "template", "chat_template")
CHOICE_KEYS = ("choices", "choice_score")
OTHER_KEYS = ("metric", "metrics", *FORMAT_KEYS, "local", "values", "group")
YAML_KEYS = ("name", "type", "columns", *LABEL_KEYS, *CHOICE_KEYS, *TARGET_KEYS, *OTHER_KEYS)
_REGISTRY: dict[str, Task] = {row.name: row for row in ROWS}
_BUILTIN: dict[str, Task] = {row.name: row for row in BUILTIN_TASKS}


def register(task: Task) -> Task:
    """Add `task` to the registry for this process; returns it.

    Raises:
        UserError: the name is taken.
    """
    if task.name in _all_tasks():
        raise UserError(f"there is a task {task.name} already; choose another name")
    _REGISTRY[task.name] = task
    return task


def task_names() -> list[str]:
    """Return the names of all tasks in registry order, built-in tasks last."""
    return list(_all_tasks())


def get_task(name: str | Path) -> Task:
    """Return the task of that name, or the one described by a YAML file.

    Args:
        name: name in the registry, or path of a ``.yaml`` file (format: see this module's docstring).

    Raises:
        UserError: no such task (close names are given), or the file does not describe a task.
    """
    text = str(name)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        return _load_yaml(Path(text).expanduser())
    if text in _REGISTRY:
        return _REGISTRY[text]
    tasks = _all_tasks()
    if text in tasks:
        return tasks[text]
    close = difflib.get_close_matches(text.lower().replace("-", "_"), tasks, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "see `prompt-transfer tasks list`"
    if "," in text:
        hint = f"several tasks are a list: --data.task '[{text}]'"
    raise UserError(f"unknown task {text!r} ({hint}); a task of your own is given as the path of its YAML file")


def describe_tasks() -> list[dict[str, Any]]:
    """Return one dict per task for ``tasks list``: name, type, classes, label_words, metric, sources, hub."""
    return [_describe(task) for task in _all_tasks().values()]


def _describe(task: Task) -> dict[str, Any]:
    sources = ["builtin"] if task.builtin else [*(["hub"] if task.hub else []), "local"]
    hub = ""
    if task.hub:
        hub = "/".join(filter(None, (task.hub.id, task.hub.config))) + ("" if task.hub.verified else " (unverified)")
    return {
        "name": task.name,
        "type": task.type,
        "classes": task.num_classes,
        "label_words": task.stored_words,
        "metric": task.metric,
        "sources": sources,
        "hub": hub,
    }


def _all_tasks() -> dict[str, Task]:
    return {**_REGISTRY, **_BUILTIN}


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads ``no``, ``yes``, ``on`` and ``off`` as strings: they are common label words."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag != "tag:yaml.org,2002:bool"]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _load_yaml(path: Path) -> Task:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"cannot read the task file {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an invalid date is a ValueError
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    task = _Fields(path, values).task()
    if task.name in _all_tasks():
        raise UserError(f"{path}: the name {task.name} is that of a known task; choose another one for `name`")
    return task


class _Fields:
    """The checked values of one task file; every error names the file and the key."""

    def __init__(self, path: Path, values: Any) -> None:
        self.path = path
        self.values: dict[str, Any] = self._known(values, YAML_KEYS, "the file")

    def task(self) -> Task:
        answers, allowed = self._answers()
        columns = self._known(self.values.get("columns"), ("text_a", "text_b"), "columns")
        metric = self._choice("metric", allowed)
        local = self._string("local", required=False)
        cue = self.values.get("cue", DEFAULT_CUE)
        return Task(
            name=self._name(),
            type=self._string("type", default="other"),
            text_a=self._string("text_a", columns),
            text_b=self._string("text_b", columns, required=False),
            metric=metric,
            metrics=self._metrics(metric, allowed),
            local=None if local is None else self._folder(local),
            max_length=self._tokens("max_length", 64),
            cue="" if cue == "" else self._string("cue", default=DEFAULT_CUE),
            **forms.texts_format(self, columns),
            values=forms.texts_of_values(self),
            **answers,
        )

    def _answers(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the fields that depend on the form of the answer, and its metrics."""
        if "target_column" in self.values:
            return self._target(), GENERATION_METRICS
        if "choices" in self.values:
            return forms.multiple_choice(self), CHOICE_METRICS
        if "choice_score" in self.values:
            raise self._fail("choice_score is for tasks with choices")
        group = self._string("group", required=False)
        metrics = [self.values.get("metric"), *(self._list("metrics") or [])]
        if "group_exact_match" in metrics and group is None:
            raise self._fail("the metric group_exact_match needs the column of the groups: group")
        return {**self._classes(), "group": group}, CLASSIFICATION_METRICS

    def _folder(self, local: str) -> str:
        try:
            return str((self.path.parent / Path(local).expanduser()).resolve())
        except (ValueError, RuntimeError, OSError) as error:  # a null byte, no such user
            raise self._fail(f"local {local!r} is not a folder: {error}") from error

    def _classes(self) -> dict[str, Any]:
        """Return the fields of a classification task."""
        if "max_target_length" in self.values:
            raise self._fail("max_target_length is for tasks with a target_column or choices")
        sets = self._words()
        words = tuple(own[0] for own in sets)
        labels = self._labels(words)
        dropped = tuple(self._list("drop_labels") or ())
        fault = label_clash(range(len(words)) if labels is None else labels, dropped)
        if fault is not None:
            raise self._fail(fault)
        return {
            "label_column": self._string("label_column", default="label"),
            "labels": labels,
            "label_words": words,
            "other_words": tuple(own[1:] for own in sets) if any(len(own) > 1 for own in sets) else (),
            "label_words_policy": self._choice("label_words_policy", LABEL_WORDS_POLICIES),
            "drop_labels": dropped,
        }

    def _target(self) -> dict[str, Any]:
        """Return the fields of a generation task."""
        wrong = [key for key in (*LABEL_KEYS, *CHOICE_KEYS, "group") if key in self.values]
        if wrong:
            raise self._fail(f"a task with a target_column has no labels: leave out {', '.join(wrong)}")
        return {
            "label_column": None,
            "target_column": self._string("target_column"),
            "max_target_length": self._tokens("max_target_length", 32),
        }

    def _fail(self, message: str) -> UserError:
        return UserError(f"{self.path}: {message}")

    def _known(self, values: Any, allowed: tuple[str, ...], what: str) -> dict[str, Any]:
        if not isinstance(values, dict):
            raise self._fail(f"{what} must be a mapping with the keys {', '.join(allowed)}")
        unknown = [str(key) for key in values if key not in allowed]
        if unknown:
            raise self._fail(f"unknown key {', '.join(unknown)} in {what}; allowed are {', '.join(allowed)}")
        return values

    def _string(
        self, key: str, values: dict[str, Any] | None = None, *, default: str | None = None, required: bool = True
    ) -> Any:
        value = (self.values if values is None else values).get(key, default)
        if value is None and required:
            raise self._fail(f"{key} is missing")
        if value is not None and (not isinstance(value, str) or not value):
            raise self._fail(f"{key} must be a word in quotes, not {value!r}")
        return value

    def _name(self) -> str:
        name = self._string("name")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name.startswith("builtin_"):
            raise self._fail(f"name {name!r} must be letters, digits, '_', '-' or '.', and not start with builtin_")
        return name

    def _choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.values.get(key, allowed[0])
        if value not in allowed:
            raise self._fail(f"{key} must be one of {', '.join(allowed)}, not {value!r}")
        return value

    def _list(self, key: str) -> list[Any] | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, list):
            raise self._fail(f"{key} must be a list, not {value!r}")
        return value

    def _words(self) -> list[tuple[str, ...]]:
        """Return the words of each class: one, or those of a list."""
        values = self._list("label_words") or []
        sets = [tuple(map(forms.word, value if isinstance(value, list) else [value])) for value in values]
        words = [word for own in sets for word in own]
        if len(sets) < 2 or len(set(words)) != len(words) or not all(words) or not all(sets):
            shown = [own[0] if len(own) == 1 else list(own) for own in sets]
            raise self._fail(
                f"label_words must be two or more different words, one a class or a list of words a class, not {shown}"
            )
        for own, value in zip(sets, values, strict=True):
            wrong = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, list | dict)]
            if wrong:
                raise self._fail(f"label_words: {wrong[0]!r} is not a word ({', '.join(own)})")
        return sets

    def _labels(self, words: tuple[str, ...]) -> tuple[Any, ...] | None:
        labels = self._list("labels")
        if labels is None:
            return None
        if len(labels) != len(words):
            raise self._fail(
                f"{len(labels)} labels ({', '.join(map(str, labels))}) and {len(words)} label_words "
                f"({', '.join(words)}): give each label its word"
            )
        return tuple(labels)

    def _metrics(self, metric: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
        others = self._list("metrics") or []
        wrong = [str(value) for value in others if value not in allowed]
        if wrong:
            raise self._fail(f"metrics must be from {', '.join(allowed)}, not {', '.join(wrong)}")
        return (metric, *(value for value in dict.fromkeys(others) if value != metric))

    def _tokens(self, key: str, default: int) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._fail(f"{key} must be a whole number of tokens, not {value!r}")
        return value
