"""Paths of shipped backbones and configs, in a checkout and in an installed wheel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(folder: str) -> Path:
    """Return the folder `checkpoints` or `configs`: inside the package in a wheel, next to it in a checkout."""
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder


def find_shipped(argument: str) -> str:
    """Resolve `checkpoints/...` from any working directory; a path that exists there has priority.

    Args:
        argument: a command-line argument, the path or `--option=path`.
    """
    option, equals, value = argument.rpartition("=")
    if not value.startswith("checkpoints/") or Path(value).exists():
        return argument
    path = shipped("checkpoints") / value.removeprefix("checkpoints/")
    return f"{option}{equals}{path}" if path.exists() else argument


def builtin_backbones() -> dict[str, Path]:
    """Return the folder of every shipped backbone by name."""
    folders = shipped("checkpoints") / "backbones"
    if not folders.is_dir():
        return {}
    return {path.parent.name: path.parent for path in sorted(folders.glob("*/config.json"))}


def shipped_facts(name: str) -> dict[str, Any]:
    """Return facts.json of a shipped backbone: parameters, losses, license (MIT unless the file names another)."""
    facts: dict[str, Any] = json.loads((builtin_backbones()[name] / "facts.json").read_text(encoding="utf-8"))
    return {"license": "MIT"} | facts
