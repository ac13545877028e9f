"""The description of a run's data for result files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prompt_transfer.data.tables import Tables

if TYPE_CHECKING:
    from prompt_transfer.data.datamodule import TaskDataModule


def describe(data: TaskDataModule, tables: Tables) -> dict[str, Any]:
    """Return the contents of `TaskDataModule.describe`."""
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
        "max_length": {task.name: length for task, length in zip(data.tasks, tables.lengths, strict=True)},
        "special_tokens": data.special_tokens,
        "max_target_length": {task.name: task.max_target_length for task in data.tasks if task.has_example_scores},
        "splits": tables.facts(),
        "fingerprints": {one.task.name: one.fingerprint for one in data.data},
    }
