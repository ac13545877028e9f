"""Tables over several prompts: mean and spread, the best on validation, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Protocol

from numpy.typing import NDArray

from prompt_transfer.tasks.example_metrics import GROUP_METRIC, exact_groups
from prompt_transfer.tasks.paired import paired_mean_interval, paired_metric_interval, spread
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils import results

MEAN, BEST = "mean of {} prompts", "best of {} prompts on validation"
# More pairs are printed against the first prompt only.
MOST_PAIRS = 10


class Scored(Protocol):
    """The scores of a prompt: result rows, and its answers in the order of the examples."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One result row per task and metric."""

    def of(self, task_index: int, name: str) -> NDArray[Any]:
        """Return the record `name` of a task's examples."""


def summary_rows(found: Sequence[list[dict[str, Any]]], best: int | None) -> list[dict[str, Any]]:
    """Return rows with the mean and the standard deviation (n - 1) over prompts, and with the selected prompt's score.

    Args:
        found: the rows of each prompt, in the same order of tasks and metrics.
        best: number of the prompt that validation selects; None: no such row.
    """
    if len(found) < 2:
        return []
    rows = []
    for own in zip(*found, strict=True):
        mean, deviation = spread([row["value"] for row in own])
        common = {key: own[0][key] for key in own[0] if key not in ("prompt", "seed", "low", "high", "best_of")}
        rows.append({**common, "what": MEAN.format(len(own)), "value": mean, "std": deviation, "prompts": len(own)})
        if best is not None:
            rows.append({**own[best], "what": BEST.format(len(own)), "prompts": len(own)})
    return rows


def difference_rows(tasks: Sequence[Task], found: Sequence[Scored]) -> list[dict[str, Any]]:
    """Return one row per task, metric and pair of prompts: the score of `prompt` minus that of `other`.

    `low` and `high` are the 95 % bootstrap interval of the difference over the same examples.
    """
    rows = []
    for one, other in combinations(found, 2):
        for place, (row, against) in enumerate(zip(one.rows, other.rows, strict=True)):
            index, number = _place(tasks, place)
            rows.append(
                {
                    **{key: row[key] for key in ("task", "backbone", "split", "metric", "n")},
                    "prompt": row["prompt"],
                    "other": against["prompt"],
                    "value": row["value"] - against["value"],
                    **dict(zip(("low", "high"), _interval(tasks[index], index, number, (one, other)), strict=True)),
                }
            )
    return rows


def _place(tasks: Sequence[Task], place: int) -> tuple[int, int]:
    """Return the index of the task and of its metric for a place in the rows of a prompt."""
    pairs = [(index, number) for index, task in enumerate(tasks) for number in range(len(task.metrics))]
    return pairs[place]


def _interval(task: Task, index: int, number: int, pair: tuple[Scored, Scored]) -> tuple[float, float]:
    if task.has_example_scores:
        first, second = (one.of(index, "scores")[:, number] for one in pair)
        return paired_mean_interval(first, second)
    first, second = (one.of(index, "predictions") for one in pair)
    labels = pair[0].of(index, "labels")
    if task.metrics[number] == GROUP_METRIC:
        groups = pair[0].of(index, "groups")
        return paired_mean_interval(exact_groups(first == labels, groups), exact_groups(second == labels, groups))
    return paired_metric_interval(task.metrics[number], first, second, labels, task.num_classes)


def show_differences(
    rows: Sequence[dict[str, Any]], names: Mapping[str, str], tasks: Sequence[Task], about: str = ""
) -> None:
    """Print the differences, of many pairs only those with the first prompt; `--json` has all.

    Args:
        rows: those of `difference_rows`.
        names: path of a prompt -> its name in the table.
        tasks: the tasks.
        about: further description of the scores, for the title.
    """
    labels = {(task.name, name): task.metric_label(name) for task in tasks for name in task.metrics}
    first = rows[0]["prompt"]
    few = len({(row["prompt"], row["other"]) for row in rows}) <= MOST_PAIRS
    shown = [
        {
            **row,
            "metric": labels[row["task"], row["metric"]],
            "prompt": f"{names[row['prompt']]} - {names[row['other']]}",
        }
        for row in rows
        if few or row["prompt"] == first
    ]
    title = "differences on the same examples" + ("" if few else f" to {names[first]} (differences.csv has all pairs)")
    title = ", ".join(filter(None, (title, about)))
    columns = ("task", "metric", "prompt", "value", "low", "high", "n")
    results.show(shown, title, columns, data=rows, common=("task", "metric"))
