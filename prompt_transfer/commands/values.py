"""Checks of option values that need no torch: wrong names are answered at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import yaml

from prompt_transfer.commands.repeated import option_values
from prompt_transfer.commands.sources import subclasses
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.fields import check_dtype

# Option -> the modules of its classes, and their base.
CLASSES = {
    "--model.init": (("prompts.initializers",), "Initializer"),
    "--model.reparameterization": (("prompts.reparameterizations",), "Reparameterization"),
    "--model.projector": (("projectors.projector", "projectors.task_vector"), "TrainedProjector"),
}
NOTHING = ("null", "none", "true")


def check_values(verb: str, arguments: Sequence[str]) -> None:
    """Raise UserError for an unknown dtype, and for `fit` for an unknown task or class; other values are left alone."""
    given = list(option_values(arguments))
    # A module of the user's may register tasks when the parser imports it.
    imports = any(re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", value) for _, value in given)
    for option, value in given:
        if value.lower() in NOTHING:
            continue
        if option == "--model.dtype" and verb != "pretrain":
            check_dtype(value)
        if verb != "fit":
            continue
        if option == "--data.task" and not imports:
            check_tasks(task_names_of(value))
        if option in CLASSES and re.fullmatch(r"[A-Za-z_]\w*", value):
            _check_class(option, value)


def class_names(option: str) -> list[str]:
    """Return the names of the classes to choose from, sorted."""
    modules, base = CLASSES[option]
    return sorted(name for module in modules for name in subclasses(module, base))


def _check_class(option: str, value: str) -> None:
    names = class_names(option)
    if value not in names:
        close = difflib.get_close_matches(value, names, 1)
        meant = f"did you mean {close[0]}?" if close else "see prompt-transfer fit --help"
        raise UserError(
            f"cannot make {option} {value}: choose one of {', '.join(names)}, or a class of your own, MODULE.CLASS "
            f"({meant})"
        )


def task_names_of(given: Any) -> list[str]:
    """Return the task names in `--data.task`: a name, a list, or its YAML text; the parser rejects other types."""
    if isinstance(given, str) and given.startswith("["):
        with suppress(yaml.YAMLError):
            given = yaml.safe_load(given)
    return [name for name in (given if isinstance(given, list) else [given]) if isinstance(name, str)]


def check_tasks(names: Iterable[str]) -> None:
    """Raise UserError for an unknown task; paths of files and tables are left to the command."""
    for name in names:
        if re.fullmatch(r"[\w,-]+", name):
            get_task(name)
