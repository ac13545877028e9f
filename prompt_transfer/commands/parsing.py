"""Arguments to typed values, with mistakes told in one line."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from typing import Any

from prompt_transfer.errors import UserError


def one_line(error: BaseException, command: str) -> UserError:
    """A parser's error of several lines as one that a person reads."""
    text = str(error)
    # jsonargparse appends the tried types, nested and indented; the first statement and the last reason say it all.
    unknown = re.search(r'Parser key "(model\.(?:init|reparameterization))":.*?Given value: (\S+)', text, re.DOTALL)
    if unknown:
        option, value = unknown.groups()
        known = ", ".join(_choices(option))
        return UserError(f"cannot make --{option} {value}: choose one of {known}, with the options that it needs")
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    if len(lines) > 1 and lines[-1] not in message:
        message += f" {lines[-1]}"
    message = re.sub(r"^(Parser key \"([^\"]+)\":)", r"option --\2:", message)
    return UserError(f"{message[:400]} (see prompt-transfer {command} --help)")


def _choices(option: str) -> list[str]:
    from prompt_transfer.prompts.initializers import Initializer
    from prompt_transfer.prompts.reparameterizations import Reparameterization

    base: type = {"model.init": Initializer, "model.reparameterization": Reparameterization}[option]
    subclasses: list[type] = base.__subclasses__()
    return sorted(kind.__name__ for kind in subclasses)


def call(function: Callable[..., Any], command: str, arguments: Sequence[str]) -> Any:
    """Call a typed function with command-line arguments.

    Raises:
        UserError: an argument is unknown, missing or of the wrong type.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"prompt-transfer {command}", description=function.__doc__, exit_on_error=False)
    parser.add_function_arguments(function, fail_untyped=True)
    try:
        values = parser.instantiate(parser.parse_args(list(arguments)))
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise one_line(error, command) from error
    return function(**values.as_dict())


def subcommand(command: str, table: dict[str, Callable[..., Any]], arguments: list[str]) -> Any:
    """Call one of several functions, chosen by the first argument."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, table)) + 2
        print(f"usage: prompt-transfer {command} SUBCOMMAND [OPTIONS]\n")
        for name, function in table.items():
            print(f"  {name:<{width}}{(function.__doc__ or '').strip().splitlines()[0]}")
        return None
    if arguments[0] not in table:
        raise UserError(f"unknown subcommand {command} {arguments[0]!r}: there are {', '.join(table)}")
    return call(table[arguments[0]], f"{command} {arguments[0]}", arguments[1:])
