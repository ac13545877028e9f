"""`prompts`: look at prompt files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from prompt_transfer import results
from prompt_transfer.commands.parsing import subcommand


def list_prompts(folder: str = "runs") -> None:
    """list the prompt files below a folder

    Args:
        folder: searched with everything below it.
    """
    from prompt_transfer.errors import UserError
    from prompt_transfer.prompts.prompt import list_prompts as find

    if not Path(folder).is_dir():
        raise UserError(f"no folder {folder}: give one with --folder DIR")
    found = find(folder)
    rows = [_short(row, folder) for row in found if not row["error"]]
    results.show(rows, columns=[column for column in LIST_COLUMNS if any(row.get(column) for row in rows)])
    for row in found:
        if row["error"]:
            print(f"not a prompt: {' '.join(row['error'].split())}")


LIST_COLUMNS = ("path", "task", "backbone", "rows", "mode", "score", "seed")


def _short(row: dict[str, Any], folder: str) -> dict[str, Any]:
    """What tells prompts apart, short enough for a line; `prompts inspect` shows the rest."""
    path = Path(row["path"]).relative_to(folder)
    number = row["score"]
    with suppress(ValueError):  # a file may say anything
        number = f"{float(number):.3f}"
    return {
        # A run's folder stands for the prompt in it, here and in --prompt.
        "path": str(path.parent if path.name == "prompt.safetensors" and path.parent.name else path),
        "task": row["task"],
        "backbone": Path(row["backbone"]).name,
        "rows": int(row["prompt_length"]),
        "mode": f"{row['layout']} {row['attention']}".strip(),
        "score": f"{row['metric']} {number}".strip() if number else "",
        "seed": row["seed"],
    }


def inspect(prompt: str) -> None:
    """show what a prompt file holds

    Args:
        prompt: the file.
    """
    from prompt_transfer.prompts.prompt import Prompt, describe

    facts = describe(Prompt.load(prompt))
    facts |= facts.pop("metadata")
    results.show([{"key": key, "value": value} for key, value in facts.items()])


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer prompts`."""
    # Both take one file or folder, which reads best without its option's name.
    options = {"list": "--folder", "inspect": "--prompt"}
    if len(arguments) > 1 and arguments[0] in options and not arguments[1].startswith("-"):
        arguments = [arguments[0], options[arguments[0]], *arguments[1:]]
    subcommand(command, {"list": list_prompts, "inspect": inspect}, arguments)
