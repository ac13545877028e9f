"""The table of commands; their modules are imported by the one that runs."""

from __future__ import annotations

import difflib
import gc
import importlib
import shutil
import textwrap
from collections.abc import Callable, Mapping

from prompt_transfer.utils.errors import UserError

# command -> (module with `run(command, arguments)`, help)
COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("prompt_transfer.commands.training", "train a prompt and keep the best one"),
    "validate": ("prompt_transfer.commands.evaluation", "score a prompt on the development split of a task"),
    "test": ("prompt_transfer.commands.evaluation", "score a prompt on the test split, beside its baselines"),
    "predict": ("prompt_transfer.commands.evaluation", "label and probabilities for each row of a task or text file"),
    "transfer": ("prompt_transfer.commands.transfer", "score every prompt of a folder on every task"),
    "sweep": ("prompt_transfer.commands.sweep", "many runs of fit from one file, and what follows; resumable"),
    "neurons": ("prompt_transfer.commands.neurons", "capture | compare | mask | skill | probe: what prompts activate"),
    "analyze": (
        "prompt_transfer.commands.analyze",
        "convergence | indicators | matrix | projection | dashboard: what it all says",
    ),
    "prompts": (
        "prompt_transfer.commands.prompts",
        "list | inspect | import | export | push | pull | recommend | project | fit-projector | add | scale | mean | "
        "transplant: prompt files",
    ),
    "backbones": (
        "prompt_transfer.commands.backbones",
        "list | fetch | inspect: the models that are known by name, and how to get them",
    ),
    "tasks": ("prompt_transfer.commands.tasks", "list | hub: the tasks that are known by name"),
    "data": ("prompt_transfer.commands.tasks", "download tasks for machines without a network"),
    "pretrain": ("prompt_transfer.commands.pretraining", "train a small backbone like the built-in ones"),
    "completion": ("prompt_transfer.commands.completion", "bash | zsh: a script that completes commands and options"),
    "quickstart": (
        "prompt_transfer.commands.quickstart",
        "train a prompt and use it on a second task, offline",
    ),
}


def listing(texts: Mapping[str, str]) -> list[str]:
    """Names and what they mean, in two columns as wide as the terminal."""
    indent = max(map(len, texts)) + 4
    room = max(shutil.get_terminal_size().columns, indent + 20)
    lines = []
    for name, text in texts.items():
        first = f"  {name}".ljust(indent)
        lines += textwrap.wrap(
            text, room, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False
        ) or [first.rstrip()]
    return lines


def find(name: str, for_good: bool = False) -> Callable[[str, list[str]], None]:
    """The function that runs a command.

    Args:
        name: of the command.
        for_good: never look for garbage among what lives by now; for a process that does nothing else.

    Raises:
        UserError: there is no such command.
    """
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}: {hint}")
    # torch, transformers and lightning make so many objects, all to stay, that looking for garbage among them takes a
    # tenth of the time of importing them, and again later.
    collecting = gc.isenabled()
    gc.disable()
    try:
        run = importlib.import_module(COMMANDS[name][0]).run
        if for_good:
            gc.freeze()
        return run
    finally:
        if collecting:
            gc.enable()
