"""`tasks` and `data`: lists of tasks, and downloads for offline use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prompt_transfer.commands.parsing import split_list, subcommand
from prompt_transfer.utils import results


def list_tasks() -> None:
    """list the named tasks"""
    from prompt_transfer.tasks.registry import describe_tasks, get_task

    # Hub ids have their own table, to fit one task per line in 80 columns.
    rows = describe_tasks()
    results.show(rows, columns=("name", "type", "label_words", "metric"))
    averages: dict[str, list[str]] = {}
    for task in (get_task(row["name"]) for row in rows):
        if "f1" in task.metrics:
            averages.setdefault(task.metric_label("f1"), []).append(task.name)
    print("\n" + "\n".join(f"{label}: {', '.join(names)}" for label, names in averages.items()))
    print("\nbuiltin_ tasks are generated; others: --data.source local or hub (see prompt-transfer tasks hub)")


def list_hub() -> None:
    """list the tasks' data sets on the Hugging Face Hub"""
    from prompt_transfer.tasks.registry import describe_tasks

    results.show([row for row in describe_tasks() if row["hub"]], columns=("name", "hub"))


def download(tasks: str, output: str, revision: str | None = None) -> None:
    """download tasks from the Hub to local folders

    Args:
        tasks: comma-separated names.
        output: folder for `--data.source local --data.root FOLDER`.
        revision: commit, tag or branch of the tasks' repository; null: the registry's revision.
    """
    from prompt_transfer.data.download import download_tasks

    results.show(download_tasks(split_list(tasks), output, revision=revision))


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer tasks | data`."""
    tables: dict[str, dict[str, Callable[..., Any]]] = {
        "tasks": {"list": list_tasks, "hub": list_hub},
        "data": {"download": download},
    }
    subcommand(command, tables[command], arguments)
