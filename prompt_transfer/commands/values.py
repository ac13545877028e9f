"""Checks of option values that need no torch: wrong names are answered at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

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
            _check_list(value)
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


def _check_list(value: str) -> None:
    """Check the tasks of `--data.task`: a name, or a list in brackets."""
    for name in value[1:-1].split(",") if value.startswith("[") and value.endswith("]") else [value]:
        _check_task(name.strip().strip("'\""))


def check_tasks(value: str) -> None:
    """Raise UserError for an unknown task among names separated by commas; files and tables are left alone."""
    for name in value.split(","):
        _check_task(name.strip())


def _check_task(name: str) -> None:
    if re.fullmatch(r"[\w,-]+", name):
        get_task(name)
