"""Facts about the data of a run, for result files and prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_transfer.data.datamodule import TaskDataModule
    from prompt_transfer.data.tables import Tables


def describe(data: TaskDataModule, tables: Tables) -> dict[str, Any]:
    """Return the facts of `TaskDataModule.describe`."""
    selection = data.selection
    return {
        "tasks": [task.name for task in data.tasks],
        "source": selection.source,
        "label_words": {task.name: task.stored_words for task in data.tasks},
        **({"templates": tables.shown_templates()} if any(tables.templates) else {}),
        "seed": data.seed,
        "batch_size": data.batch_size,
        "limit_train": selection.limits["train"],
        "limit_eval": selection.limits["validation"],
        "shots": None if selection.shots is None else vars(selection.shots),
        "max_length": {task.name: length for task, length in zip(data.tasks, tables.lengths, strict=True)},
        "special_tokens": data.special_tokens,
        "max_target_length": {task.name: task.max_target_length for task in data.tasks if task.has_example_scores},
        "splits": tables.facts(),
        "fingerprints": {one.task.name: one.fingerprint for one in data.data},
    }


def prompt_facts(data: TaskDataModule) -> dict[str, str]:
    """Return the options of the data that later uses of a prompt need, as metadata of the prompt."""
    return {
        "data_max_length": "" if data.max_length is None else str(data.max_length),
        "data_special_tokens": data.special_tokens,
        "data_label_words": data.selection.label_words,
    }
