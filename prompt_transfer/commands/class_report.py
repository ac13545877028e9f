"""Metrics of `test --metrics`: single classes, confusion matrix, calibration; tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_transfer.commands.comparison import Scored
from prompt_transfer.commands.parsing import hint, split_list
from prompt_transfer.commands.prompt_files import NamedPrompt
from prompt_transfer.tasks.class_metrics import (
    CALIBRATION_BINS,
    CLASS_METRICS,
    calibration,
    confusion_matrix,
    per_class,
)
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError

Tables = dict[str, list[dict[str, Any]]]
PER_CLASS, CONFUSION, CALIBRATION = CLASS_METRICS
MACRO = "macro mean"


def parse(given: str | Sequence[str] | None, tasks: Sequence[Task]) -> list[str]:
    """Return the names in a list, or in a text with commas.

    Raises:
        UserError: an unknown name, or a task without classes.
    """
    names = split_list(given.strip("[]")) if isinstance(given, str) else list(given or ())
    for name in names:
        if name not in CLASS_METRICS:
            raise UserError(f"unknown metric {name!r} in --metrics: {hint(name, CLASS_METRICS)}")
    others = [task for task in tasks if task.has_example_scores]
    if names and others:
        what = "is multiple choice" if others[0].is_choice else "generates text"
        raise UserError(f"--metrics {','.join(names)} is for tasks with classes: {others[0].name} {what}")
    return list(dict.fromkeys(names))


def tables(names: Sequence[str], tasks: Sequence[Task], scored: Sequence[tuple[NamedPrompt, Scored]]) -> Tables:
    """Return the rows of each requested table, for every prompt and task.

    Args:
        names: see `parse`.
        tasks: the tasks, in the order of their numbers.
        scored: the prompts with their answers.
    """
    made = {PER_CLASS: _per_class, CONFUSION: _confusion, CALIBRATION: _calibration}
    found: Tables = {name: [] for name in names}
    for one, answers in scored:
        for index, task in enumerate(tasks):
            row = next(row for row in answers.rows if row["task"] == task.name)
            common = {**{key: row[key] for key in ("task", "backbone", "prompt", "split")}, "name": one.name}
            for name in names:
                found[name] += [{**common, **row} for row in made[name](task, index, answers)]
    return found


def _per_class(task: Task, index: int, answers: Scored) -> list[dict[str, Any]]:
    found = per_class(answers.of(index, "predictions"), answers.of(index, "labels"), task.num_classes)
    words = [*task.label_words, MACRO]
    return [
        {"class": word, **{key: row[key] for key in row if key != "class"}}
        for word, row in zip(words, found, strict=True)
    ]


def _confusion(task: Task, index: int, answers: Scored) -> list[dict[str, Any]]:
    counts = confusion_matrix(answers.of(index, "predictions"), answers.of(index, "labels"), task.num_classes)
    rows = []
    for label, line in zip(task.label_words, counts.tolist(), strict=True):
        for answer, count in zip(task.label_words, line, strict=True):
            rows.append(
                {"label": label, "answer": answer, "n": count, "share": count / sum(line) if sum(line) else 0.0}
            )
    return rows


def _calibration(task: Task, index: int, answers: Scored) -> list[dict[str, Any]]:
    probabilities, labels = answers.of(index, "probabilities")[:, : task.num_classes], answers.of(index, "labels")
    error, bins = calibration(probabilities, labels)
    whole = {
        "metric": "calibration_error",
        "value": error,
        "n": len(labels),
        "confidence": sum(row["n"] * row["confidence"] for row in bins) / len(labels),
        "accuracy": sum(row["n"] * row["accuracy"] for row in bins) / len(labels),
    }
    parts = [
        {"metric": "bin", "value": row["accuracy"] - row["confidence"], "bin_low": row["low"], "bin_high": row["high"],
         **{key: row[key] for key in ("n", "confidence", "accuracy")}}
        for row in bins
    ]  # fmt: skip
    return [whole, *parts]


def show(found: Mapping[str, list[dict[str, Any]]], scores: str = "") -> None:
    """Print the tables, one for each prompt and task.

    Args:
        found: those of `tables`.
        scores: further description of the scores, for the titles.
    """
    for name, rows in found.items():
        several = len({row["prompt"] for row in rows}) > 1
        if name == CALIBRATION:
            shown = [row for row in rows if row["metric"] != "bin"]
            columns = ["task", *(["name"] if several else []), "value", "confidence", "accuracy", "n"]
            title = f"expected calibration error ({CALIBRATION_BINS} equal bins of the confidence)"
            title = ", ".join(filter(None, (title, scores)))
            results.show(shown, title, columns, data=rows, common=("task",))
            continue
        for prompt, task in dict.fromkeys((row["prompt"], row["task"]) for row in rows):
            mine = [row for row in rows if (row["prompt"], row["task"]) == (prompt, task)]
            about = ", ".join([task, *([mine[0]["name"]] if several else []), *filter(None, [scores])])
            if name == PER_CLASS:
                columns = ["class", "precision", "recall", "f1", "n", "predicted"]
                results.show(mine, f"{about}: each class", columns, data=mine)
            else:
                results.show(_square(mine), f"{about}: labels in rows, answers in columns", data=mine)


def _square(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    labels = dict.fromkeys(row["label"] for row in rows)
    # The first column's name is no label word.
    return [{"": label, **{row["answer"]: row["n"] for row in rows if row["label"] == label}} for label in labels]


def files(folder: Path) -> list[Path]:
    """Return the existing files of earlier reports in a folder."""
    found = [folder / f"{name}.csv" for name in CLASS_METRICS]
    for suffix in ("png", "pdf"):
        found += [folder / f"{CONFUSION}.{suffix}", *folder.glob(f"{CONFUSION}-*.{suffix}")]
    return [path for path in found if path.is_file()]


def draw(found: Mapping[str, list[dict[str, Any]]], folder: Path) -> None:
    """Draw the confusion matrices: `confusion_matrix.png` and `.pdf`, with several tasks one pair for each."""
    rows = found.get(CONFUSION)
    if not rows:
        return
    import pandas as pd

    from prompt_transfer.analysis import plots

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for task in tasks:
        mine = pd.DataFrame([row for row in rows if row["task"] == task])
        table = mine.assign(prompt=mine["name"], rows=mine["n"])
        stem = CONFUSION if len(tasks) == 1 else f"{CONFUSION}-{task}"
        for suffix in ("png", "pdf"):
            plots.save(plots.confusion(table), folder / f"{stem}.{suffix}")
