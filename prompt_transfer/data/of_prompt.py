"""The task and text format of a trained prompt, as data for new texts."""

from __future__ import annotations

from typing import Any, cast

from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.own import OwnTask
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.definition import stored_tasks
from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError


def task_of_prompt(prompt: Prompt, name: str | None = None) -> Task | OwnTask:
    """Return a task of a prompt: as the prompt defines it, else a known one.

    Args:
        prompt: the prompt.
        name: name of the task, or the path of its YAML file; None: the prompt's only task.

    Raises:
        UserError: no name for a prompt of several tasks, or an unknown task.
    """
    defined = stored_tasks(prompt.metadata, prompt.path or "the prompt")
    names = [one for one in prompt.metadata.get("task", "").split(",") if one]
    if name is None and len(names) != 1:
        raise UserError(f"{prompt.path or 'the prompt'} has {len(names)} tasks ({', '.join(names)}): give task=")
    name = name or names[0]
    if name in defined:
        return OwnTask(defined[name])
    if name in names and name not in task_names():
        raise UserError(
            f"{prompt.path or 'the prompt'} was trained on {name}, which this package does not know: give the path of "
            "its YAML file as task="
        )
    return get_task(name)


def data_of_prompt(prompt: Prompt, task: Task | OwnTask, batch_size: int = 128) -> TaskDataModule:
    """Return a data module for texts of a task in the format of a prompt's training; the task's rows are not read.

    Args:
        prompt: the prompt.
        task: see `task_of_prompt`.
        batch_size: texts of a batch.
    """
    facts = prompt.metadata
    words = facts.get("data_label_words") or "default"
    source = "builtin" if isinstance(task, Task) and task.builtin else None if isinstance(task, OwnTask) else "hub"
    if isinstance(task, Task) and task.paper is None:
        words = "default"
    return TaskDataModule(
        task,  # type: ignore[arg-type]  # options of the command line are names
        cast("Any", source),
        label_words=words,
        max_length=int(facts["data_max_length"]) if facts.get("data_max_length") else None,
        special_tokens=cast("Any", facts.get("data_special_tokens") or "keep"),
        eval_batch_size=batch_size,
        template=facts.get("data_template") or None,
        chat_template={"true": True, "false": False}.get(facts.get("data_chat_template", "")),
    )
