"""Tasks as JSON in a prompt's metadata: a prompt for a user's own task then needs neither its file nor its data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from prompt_transfer.tasks.builtin import BUILTIN_TASKS
from prompt_transfer.tasks.catalogue import ROWS
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

# The metadata key of `definitions`.
KEY = "task_definitions"
# Where a task's data are found is not part of its definition.
_SOURCES = ("hub", "local", "builtin", "paper")
_KNOWN = frozenset(row.name for row in (*ROWS, *BUILTIN_TASKS))


def definitions(tasks: Iterable[Task]) -> str:
    """Return the tasks that this package does not know by name as JSON, name -> fields; "" if there are none."""
    found = {task.name: _fields(task) for task in tasks if task.name not in _KNOWN}
    return json.dumps(found, sort_keys=True, default=str) if found else ""


def stored_tasks(metadata: Mapping[str, str], where: object) -> dict[str, Task]:
    """Return the tasks in a prompt's metadata by name.

    Args:
        metadata: of the prompt.
        where: the prompt's file, for messages.

    Raises:
        UserError: the definitions are damaged, or have fields that this release does not know.
    """
    text = metadata.get(KEY) or "{}"
    known = {field.name for field in fields(Task)} - set(_SOURCES)
    try:
        found = json.loads(text)
        newer = sorted({key for values in found.values() for key in values} - known)
        if not newer:
            return {name: Task(**{key: _tuples(value) for key, value in found[name].items()}) for name in found}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is damaged: its metadata {KEY!r} is {text[:60]!r} ({error})") from error
    raise UserError(
        f"{where} defines its task with {', '.join(newer)}, unknown to this release: install a newer prompt_transfer"
    )


def format_metadata(template: str | None, chat_template: bool | None) -> dict[str, str]:
    """Return the given template options as metadata of a prompt, which later commands take them from.

    Args:
        template: the template; None or ``default`` is not stored.
        chat_template: False is stored too, since it turns off the chat template of a task; None is not.
    """
    found = {}
    if template and template != "default":
        found["data_template"] = template.replace("\\n", "\n")
    if chat_template is not None:
        found["data_chat_template"] = "true" if chat_template else "false"
    return found


def _fields(task: Task) -> dict[str, Any]:
    """Return the fields of a task that differ from their defaults."""
    values = {field.name: getattr(task, field.name) for field in fields(Task) if field.name not in _SOURCES}
    plain = Task(name=task.name, type=task.type, text_a=task.text_a)
    required = ("name", "type", "text_a", "metric", "metrics")
    return {name: value for name, value in values.items() if name in required or value != getattr(plain, name)}


def _tuples(value: Any) -> Any:
    """Return a JSON value with tuples instead of lists, as the fields of a task have them."""
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
