"""Paths of shipped backbones and configs, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

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
