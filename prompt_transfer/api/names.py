"""Checks of the names that a hub's methods receive, with hints for arguments in the wrong order."""

from __future__ import annotations

from prompt_transfer.backbones.loading import resolve
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError


def check_task(name: str) -> str:
    """Return the name of a task.

    Raises:
        UserError: an unknown task; the message says so if it is a backbone.
    """
    try:
        get_task(name)
    except UserError:
        if _is_backbone(name):
            raise UserError(f"{name!r} is a backbone, not a task: the backbone comes first, then the task") from None
        raise
    return name


def check_backbone(name: str) -> str:
    """Return the name of a backbone, or a name that may be one on the hub.

    Raises:
        UserError: the name of a task, or a folder without a model.
    """
    if resolve(name)[1] == "hub" and _is_task(name):
        raise UserError(f"{name!r} is a task, not a backbone: the backbone comes first, or give task={name!r}")
    return name


def _is_task(name: str) -> bool:
    try:
        get_task(name)
    except UserError:
        return False
    return True


def _is_backbone(name: str) -> bool:
    try:
        return resolve(name)[1] != "hub"
    except UserError:
        return False
