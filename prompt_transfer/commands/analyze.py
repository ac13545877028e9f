"""`analyze`: tables and figures from what other commands left."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from prompt_transfer import results
from prompt_transfer.commands.parsing import subcommand


def convergence(runs: list[str], output: str, tolerance: float = 0.005) -> None:
    """how much faster runs converge from a transferred prompt

    Args:
        runs: folders of `fit --convergence`, vanilla and transferred, or folders that hold them.
        output: folder for the tables and the figure.
        tolerance: how near its best a run counts as converged, a fraction.
    """
    from prompt_transfer.studies import convergence as study

    overview = study.convergence(runs, output, tolerance)
    rows: list[dict[str, Any]] = overview.to_dict("records")  # type: ignore[assignment]
    results.show(rows, columns=("task", "source", "measure", "unit", "n", "result"))
    print(output)


SUBCOMMANDS: dict[str, Callable[..., Any]] = {"convergence": convergence}
# Subcommands that take files or folders without an option's name -> that option, a list.
POSITIONAL = {"convergence": "--runs"}


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer analyze`."""
    if arguments and arguments[0] in POSITIONAL:
        arguments = [arguments[0], *_named(POSITIONAL[arguments[0]], arguments[1:])]
    subcommand(command, SUBCOMMANDS, arguments)


def _named(option: str, arguments: list[str]) -> list[str]:
    """What stands without an option's name, anywhere, as the list `option`."""
    values, rest, left = [], [], iter(arguments)
    for argument in left:
        if not argument.startswith("-"):
            values.append(argument)
            continue
        takes_value = "=" not in argument and argument not in ("-h", "--help")
        rest += [argument, *([value] if takes_value and (value := next(left, None)) is not None else [])]
    return [option, json.dumps(values), *rest] if values else rest
