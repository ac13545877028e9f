"""`tasks` and `data`: what can be trained on, and how to take it along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prompt_transfer.commands.parsing import split_list, subcommand
from prompt_transfer.utils import results


def list_tasks() -> None:
    """list the tasks that are known by name"""
    from prompt_transfer.tasks.registry import describe_tasks

    # One line a task on 80 columns; where the hub has them stands in a table of its own.
    results.show(describe_tasks(), columns=("name", "type", "label_words", "metric"))
    print("\nbuiltin_ tasks are made here; others: --data.source local or hub (see prompt-transfer tasks hub)")


def list_hub() -> None:
    """list where the tasks lie on the Hugging Face hub"""
    from prompt_transfer.tasks.registry import describe_tasks

    results.show([row for row in describe_tasks() if row["hub"]], columns=("name", "hub"))


def download(tasks: str, output: str, revision: str | None = None) -> None:
    """write tasks of the hub as local folders

    Args:
        tasks: names, separated by commas.
        output: folder, used later as `--data.source local --data.root FOLDER`.
        revision: commit, tag or branch of the tasks' repository; null: the one of the registry.
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
