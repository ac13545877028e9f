"""Import paths of earlier versions, resolved to the current modules.

Stored configurations (`class_path`), notebooks and scripts use them. Paths are relative to `prompt_transfer`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec as find_module
from types import ModuleType
from typing import Any

PACKAGE = "prompt_transfer"
# Old module -> new one.
MODULES: dict[str, str] = {
    "data.corpus": "pretraining.corpus",
    "errors": "utils.errors",
    "files": "utils.files",
    "metrics": "tasks.metrics",
    "modules.backbone_pretraining": "pretraining.backbone_pretraining",
    "prompts.interchange": "prompts.io.interchange",
    "prompts.peft_adapter": "prompts.io.peft_adapter",
    "prompts.published": "prompts.io.published",
    "prompts.repository": "prompts.io.repository",
    "provenance": "utils.provenance",
    "results": "utils.results",
    "studies.capture": "studies.neurons.capture",
    "studies.comparison": "studies.neurons.comparison",
    "studies.convergence": "studies.transfer.convergence",
    "studies.indicators": "studies.transfer.indicators",
    "studies.masking": "studies.neurons.masking",
    "studies.matrix": "studies.transfer.matrix",
    "studies.probing": "studies.neurons.probing",
    "task": "tasks.task",
    "task_rows": "tasks.catalogue",
    "verbalizers": "tasks.verbalizers",
}
# Old package -> new package with the same modules.
PACKAGES: dict[str, str] = {"hub": "api"}
# Package that took the name of an old module -> new path of that module.
FORMER: dict[str, str] = {
    "tasks": "tasks.registry",
    "studies.transfer": "studies.transfer.study",
    "studies.projection": "studies.projection.study",
    "studies.recommend": "studies.recommend.study",
    "studies.sweep": "studies.sweep.plan",
}


def new_name(name: str) -> str | None:
    """Return the current name of a module given its old one; None if no table has it."""
    old = name.removeprefix(f"{PACKAGE}.")
    package, _, rest = old.partition(".")
    if package in PACKAGES:
        return ".".join(filter(None, (PACKAGE, PACKAGES[package], rest)))
    return f"{PACKAGE}.{MODULES[old]}" if old in MODULES else None


def find_spec(name: str) -> ModuleSpec | None:
    """Return a spec that loads a module under its old name; None if no table has it."""
    new = new_name(name)
    if new is None or find_module(new) is None:
        return None
    # No search path for packages: their modules would be imported twice, under both names.
    return ModuleSpec(name, _Alias(new), is_package=name.removeprefix(f"{PACKAGE}.") in PACKAGES)


def former(package: str) -> Callable[[str], Any]:
    """Return a `__getattr__` that forwards the names of the module whose name the package took."""
    home = f"{PACKAGE}.{FORMER[package.removeprefix(f'{PACKAGE}.')]}"

    def attribute(name: str) -> Any:
        # The import system also looks up submodules here before it imports them.
        if not name.startswith("__") and find_module(f"{package}.{name}") is None:
            module = importlib.import_module(home)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return attribute


class _Alias(Loader):
    """A loader that provides a module under its old name."""

    def __init__(self, new: str) -> None:
        self.new = new

    def exec_module(self, module: ModuleType) -> None:
        """Import the current module; a package gets a proxy, because its modules are resolved one by one."""
        real = importlib.import_module(self.new)
        if hasattr(module, "__path__"):
            module.__getattr__ = lambda name: getattr(real, name)  # type: ignore[method-assign]
        else:
            sys.modules[module.__name__] = real
