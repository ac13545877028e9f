"""Users' own classes on the command line: `--model.init my_module.MyInit`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from pathlib import Path


def find_in_working_folder() -> None:
    """Let Python find modules in the working folder, after all installed ones."""
    # `python -m` puts the folder first, where a file `datasets.py` would replace the library.
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))


def class_fault(option: str, name: str, base: type) -> str | None:
    """Return the reason why a dotted name is no class for an option; None if it is one.

    Args:
        option: for the message.
        name: value of the option, MODULE.CLASS.
        base: class that it must be derived from.
    """
    module_name, _, class_name = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            return (
                f"{option} {name}: there is no module {missing} in {Path.cwd()}, in {_source(missing)} or among the "
                "installed packages: run the command in the folder of the module, or set PYTHONPATH to it"
            )
        return f"{option} {name}: the module {module_name} needs {missing}, which is not installed"
    except Exception as error:  # anything that a user's module raises
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}, line {frame.lineno}"
        if isinstance(error, SyntaxError):
            where = f"{error.filename}, line {error.lineno}"
        return f"{option} {name}: importing {module_name} failed: {type(error).__name__}: {error} ({where})"
    found = getattr(module, class_name, None)
    place = getattr(module, "__file__", None) or "built in"
    if found is None:
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module_name
        ]
        return (
            f"{option} {name}: the module {module_name} ({place}) has no {class_name}; of the classes derived from "
            f"{base.__name__} it has {', '.join(own) or 'none'}"
        )
    if not (inspect.isclass(found) and issubclass(found, base)):
        return f"{option} {name}: {class_name} ({place}) is not a class derived from {base.__name__}"
    return None


def _source(module: str) -> str:
    """Return the folders of PYTHONPATH in words."""
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return f"PYTHONPATH ({', '.join(folders)})" if folders else "PYTHONPATH (not set)"
