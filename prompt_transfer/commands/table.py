"""The table of commands. A command's module is imported when the command runs."""

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
    "fit": ("prompt_transfer.commands.training", "train a prompt or projector and keep the best checkpoint"),
    "validate": ("prompt_transfer.commands.evaluation", "score a prompt and its baselines on the validation split"),
    "test": ("prompt_transfer.commands.evaluation", "score a prompt and its baselines on the test split"),
    "predict": ("prompt_transfer.commands.evaluation", "write labels and probabilities for a task or a text file"),
    "transfer": ("prompt_transfer.commands.transfer", "score every prompt of a folder on every task"),
    "compare": (
        "prompt_transfer.commands.compare",
        "compare prompts with LoRA, fine-tuning and a linear probe on one task; resumable",
    ),
    "sweep": ("prompt_transfer.commands.sweep", "run many fits and follow-up commands from one file; resumable"),
    "neurons": (
        "prompt_transfer.commands.neurons",
        "capture | compare | mask | skill | probe: analyze the neurons that prompts activate",
    ),
    "analyze": (
        "prompt_transfer.commands.analyze",
        "convergence | indicators | matrix | projection | dashboard: summarize results in tables and figures",
    ),
    "report": (
        "prompt_transfer.commands.report",
        "write one HTML page, PDF figures and LaTeX tables of a study or run",
    ),
    "prompts": (
        "prompt_transfer.commands.prompts",
        "list | inspect | import | export | push | pull | recommend | project | fit-projector | add | scale | mean | "
        "transplant: manage prompt files",
    ),
    "backbones": ("prompt_transfer.commands.backbones", "list | fetch | inspect: manage named backbones"),
    "tasks": ("prompt_transfer.commands.tasks", "list | hub: show the named tasks"),
    "data": ("prompt_transfer.commands.tasks", "download: save tasks for use without a network"),
    "pretrain": ("prompt_transfer.commands.pretraining", "train a small backbone like the built-in ones"),
    "completion": ("prompt_transfer.commands.completion", "bash | zsh: print a completion script for the shell"),
    "quickstart": (
        "prompt_transfer.commands.quickstart",
        "train a prompt and use it on a second task, offline",
    ),
}

# Commands that run Lightning's Trainer.
VERBS = ("fit", "validate", "test", "predict", "pretrain")


def listing(texts: Mapping[str, str]) -> list[str]:
    """Return lines of names and descriptions in two columns, wrapped to the terminal's width."""
    indent = max(map(len, texts)) + 4
    room = max(shutil.get_terminal_size().columns, indent + 20)
    lines = []
    for name, text in texts.items():
        first = f"  {name}".ljust(indent)
        lines += textwrap.wrap(
            text, room, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False
        ) or [first.rstrip()]
    return lines


def find(name: str) -> Callable[[str, list[str]], None]:
    """Import and return the function that runs a command.

    Raises:
        UserError: the command does not exist.
    """
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}: {hint}")
    # Imports create many permanent objects. Without collections `fit` is imported in 4.7 s instead of 5.4 s (one core).
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(COMMANDS[name][0]).run
    finally:
        if collecting:
            gc.enable()
