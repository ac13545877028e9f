"""Where the parts that ship with the project lie, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(folder: str) -> Path:
    """The folder `checkpoints` or `configs`: inside the package when installed from a wheel, else beside it."""
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder


def find_shipped(argument: str) -> str:
    """`checkpoints/...` as a path that exists, from any folder; what lies there in the working folder wins.

    Args:
        argument: of a command line: the path, or `--option=path`.
    """
    option, equals, value = argument.rpartition("=")
    if not value.startswith("checkpoints/") or Path(value).exists():
        return argument
    path = shipped("checkpoints") / value.removeprefix("checkpoints/")
    return f"{option}{equals}{path}" if path.exists() else argument


def builtin_backbones() -> dict[str, Path]:
    """Name -> folder of every backbone that ships with the project."""
    folders = shipped("checkpoints") / "backbones"
    if not folders.is_dir():
        return {}
    return {path.parent.name: path.parent for path in sorted(folders.glob("*/config.json"))}
