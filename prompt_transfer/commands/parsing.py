"""Parsers for typed functions, and one-line error messages for their users."""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prompt_transfer.commands.help import Page, of_parser
from prompt_transfer.commands.messages import check_options, one_line, options_of
from prompt_transfer.commands.signatures import REQUIRED, Parameter, Signature
from prompt_transfer.commands.table import listing
from prompt_transfer.commands.values import check_tasks
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.fields import check_dtype
from prompt_transfer.utils.fields import split_list as split_list

if TYPE_CHECKING:
    import jsonargparse


def program() -> str:
    """Return the command that starts this program: its name, or its path if the name is not on PATH."""
    script = Path(sys.executable).with_name("prompt-transfer")
    if shutil.which("prompt-transfer") or not script.is_file():
        return "prompt-transfer"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def build_parser(signature: Signature, command: str, positional: str | None = None) -> jsonargparse.ArgumentParser:
    """Return a parser of a command's options, and the loggers' if the command can be logged.

    Boolean options need no value: alone they mean true.

    Args:
        signature: options of the command.
        command: name of the command, with its subcommand.
        positional: usage of the first option as a positional argument (`PROMPT...`); None: all are options.
    """
    import jsonargparse

    from prompt_transfer.tracking.options import LOGGERS
    from prompt_transfer.tracking.studies import STUDIES

    parser = jsonargparse.ArgumentParser(
        prog=f"prompt-transfer {command}", description=signature.description, exit_on_error=False
    )
    options = list(signature.parameters)
    if positional is not None:
        parser.usage = f"prompt-transfer {command} {positional} [OPTIONS]"
        _add_positional(parser, options.pop(0), positional, signature.helps)
    # Required options first.
    for option in sorted(options, key=lambda option: option.default is not REQUIRED):
        _add(parser, option, signature.helps.get(option.field, ""))
    if command in STUDIES:
        text = "none, or log results to W&B or MLflow"
        parser.add_argument("--logger", type=Literal["none", "wandb", "mlflow"], default="none", help=text)
        for name, options_of_logger in LOGGERS.items():
            parser.add_class_arguments(options_of_logger, name)
    return parser


def _add(parser: jsonargparse.ArgumentParser, option: Parameter, text: str) -> None:
    if option.is_flag:
        parser.add_argument(f"--{option.name}", type=bool, default=False, nargs="?", const=True, help=text)
    elif option.default is REQUIRED:
        parser.add_argument(f"--{option.name}", type=option.kind, required=True, help=text)
    else:
        parser.add_argument(f"--{option.name}", type=option.kind, default=option.default, help=text)


def _add_positional(
    parser: jsonargparse.ArgumentParser, option: Parameter, usage: str, helps: Mapping[str, str]
) -> None:
    """Add a positional argument: one or more values for a list, at most one for an option with a default."""
    required = option.default is REQUIRED
    several = option.kind is not str and required
    nargs = "+" if several else None if required else "?"
    text = helps.get(option.field, "")
    parser.add_argument(option.name, type=str, nargs=nargs, metavar=usage.strip("[]."), help=text)
    if not required:
        parser.set_defaults({option.name: option.default})


# Pages of help that are collected instead of shown; None otherwise.
_pages: dict[str, Page] | None = None


@contextmanager
def keeping_pages() -> Iterator[dict[str, Page]]:
    """Collect the pages of the commands called inside the context, by full name; the commands do not run."""
    global _pages
    outer, _pages = _pages, {}
    try:
        yield _pages
    finally:
        _pages = outer


def call(function: Callable[..., Any], command: str, arguments: Sequence[str], positional: str | None = None) -> Any:
    """Call a typed function with command-line arguments, and log its output files with `--logger wandb` or `mlflow`.

    Args:
        function: its docstring is the help; see `Signature`.
        command, positional: see `build_parser`.
        arguments: command-line arguments.
        then: called with the result before its files are logged, where `function` is a dataclass of options.

    Raises:
        UserError: an argument is unknown, missing or of the wrong type.
    """
    from prompt_transfer.tracking.mlflow_run import check_installed
    from prompt_transfer.tracking.options import LOGGERS
    from prompt_transfer.tracking.studies import STUDIES, publish

    signature = Signature(function)
    parser = build_parser(signature, command, positional)
    page = of_parser(parser, command, signature.description, positional or "")
    if _pages is not None:
        _pages[command] = page
        parser.exit()
    if (text := page.show(arguments)) is not None:
        print(text)
        parser.exit()
    known = options_of(parser)
    check_options(arguments, command, [*known, "--print_shtab"], known, known)
    try:
        values = parser.instantiate(parser.parse_args(_close_flags(parser, arguments))).as_dict()
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        usage = {} if positional is None else {signature.parameters[0].name: positional}
        raise one_line(error, command, known, usage) from error
    if values.get("dtype") is not None:
        values["dtype"] = check_dtype(values["dtype"])
    for name in ("task", "tasks"):
        if isinstance(values.get(name), str):
            check_tasks(split_list(values[name]))
    if command not in STUDIES:
        return signature.call(values)
    logger, options = values.pop("logger"), {name: values.pop(name) for name in LOGGERS}
    if logger == "mlflow":
        check_installed()
    result = signature.call(values)
    if logger in options:
        publish(command, values, options[logger])
    return result


def _close_flags(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `=true` on each boolean option that no boolean follows.

    argparse would take the positional argument after such an option for its value.
    """
    flags = {option for action in parser._actions if action.const is True for option in action.option_strings}
    following = [argument.lower() for argument in arguments[1:]]
    return [
        f"{argument}=true" if argument in flags and after not in ("true", "false") else argument
        for argument, after in zip_longest(arguments, following, fillvalue="")
    ]


def find_value(arguments: Sequence[str], option: str) -> str | None:
    """Return the value of an option before the whole command line is parsed; None if it is absent.

    Raises:
        UserError: the option has no value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(option, dest="value")
    try:
        return parser.parse_known_args(list(arguments))[0].value
    except ArgumentError as error:
        raise UserError(f"{option} needs a value") from error


def hint(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for a misspelt name, and all valid names."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"there are {', '.join(known)}"


def subcommand(
    command: str,
    table: Mapping[str, Callable[..., Any]],
    arguments: Sequence[str],
    positional: Mapping[str, str] | None = None,
) -> Any:
    """Call the function that the first argument names.

    Args:
        command: name of the command.
        table: subcommand -> function.
        arguments: subcommand and its arguments.
        positional: subcommand -> see `build_parser`.
    """
    positional = positional or {}
    if _pages is not None:
        for name, function in table.items():
            with suppress(SystemExit):
                call(function, f"{command} {name}", [], positional.get(name))
        return None
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: prompt-transfer {command} SUBCOMMAND [OPTIONS]\n")
        print(*listing({name: (one.__doc__ or "").strip().splitlines()[0] for name, one in table.items()}), sep="\n")
        return None
    name, *rest = arguments
    if name not in table:
        raise UserError(f"unknown subcommand {command} {name!r}: {hint(name, table)}")
    return call(table[name], f"{command} {name}", rest, positional.get(name))
