"""Parsers for typed functions, and one-line error messages for their users."""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import shutil
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from prompt_transfer.commands.table import listing
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    import jsonargparse

# jsonargparse's messages for unknown options: on the command line, at the top level of a file, and nested in a file.
UNKNOWN = (
    r"(?:unrecognized arguments: |^unknown option )--([\w.+-]+)",
    r"^Option '([\w.]+)' is not accepted",
    r"^Group '([\w.]+)' does not accept option '([\w.]+)'",
)
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def one_line(
    error: BaseException, command: str, options: Sequence[str] = (), usage: Mapping[str, str] | None = None
) -> UserError:
    """Return a parser's multi-line error as a one-line UserError.

    Args:
        error: raised by jsonargparse.
        command: named in the pointer to `--help`.
        options: options of the command, for suggestions.
        usage: positional argument -> its name in messages.
    """
    message = _reason(str(error)) or type(error).__name__
    if missing := re.search(r"^the following arguments are required: (.+)", message):
        needed = [(usage or {}).get(name, f"--{name} VALUE") for name in missing[1].split(", ")]
        message = f"{command} needs {' and '.join(needed)}"
    if unknown := next(filter(None, (re.search(pattern, message) for pattern in UNKNOWN)), None):
        option = "--" + ".".join(unknown.groups())
        message = f"unknown option {option}{_suggestion(option, options)}"
    return UserError(f"{message[:400]} (see prompt-transfer {command} --help)")


def options_of(parser: ArgumentParser) -> list[str]:
    """Return all long options of a parser, including nested ones."""
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


# Names in other programs -> names here.
SYNONYMS = {"lr": "learning_rate", "epochs": "max_epochs", "steps": "max_steps", "dataset": "task"}


def _suggestion(option: str, known: Sequence[str]) -> str:
    """Return `: did you mean ...?` with options similar as a whole or in their last part, or an empty string."""
    last = option.rpartition(".")[2].lstrip("-")
    last = SYNONYMS.get(last, last)
    ends = {name: name.rpartition(".")[2].lstrip("-") for name in known if not name.endswith("+")}
    similar = difflib.get_close_matches(last, set(ends.values()), n=2)
    close = [*difflib.get_close_matches(option, ends, n=1, cutoff=0.8), *(n for n in ends if ends[n] in similar)]
    return f": did you mean {' or '.join(list(dict.fromkeys(close))[:3])}?" if close else ""


def _reason(text: str) -> str:
    """Return the option, its value and the valid values from jsonargparse's nested report."""
    keys = list(dict.fromkeys(re.findall(r'Parser key "([\w.]+)":', text)))
    if not keys:
        # A report on the option's type contains the error of the chosen class's constructor.
        inside = re.search(r"Errors:\n\s*- (.+)", text)
        return inside[1] if inside else " ".join(text.split())
    option, inner = keys[0], "--" + ".".join(keys)
    kind = re.search(r"Problem with given class_path '(?:[\w]+\.)*(\w+)'", text)
    name = f"--{option} {kind[1]}" if kind else f"--{option}"
    if missing := re.search(r"the following arguments are required: (.+)", text):
        first = missing[1].split(",")[0]
        return f"{name} needs {missing[1]}: give --{option}.{first} VALUE"
    if extra := re.search(r"Option '([\w.]+)' is not accepted", text):
        return f"{name} has no option {extra[1]}" if kind else f"unknown option --{option}.{extra[1]}"
    if option in ("model.init", "model.reparameterization", "model.projector") and len(keys) == 1:
        given = re.search(r"Given value: (\w+)$", text, re.MULTILINE)
        problem = f"cannot make --{option} {given[1]}" if given else f"--{option} must come before its options"
        return f"{problem}: choose one of {', '.join(_choices(option))}"
    # In a nested report, the text before the first value is about the innermost option.
    report = re.sub(r"Given value(?= type)", "", text).replace("Got value", "Given value")
    head, _, tail = report.partition("Given value: ")
    kinds = re.findall(r"^[- ]*Expected an? (?!path)(.+?)[. ]*$", head, re.MULTILINE)
    expected = dict.fromkeys(map(_plain, kinds))
    if not expected or not tail:
        return f"option {inner}: " + " ".join(text.partition(":")[2].split())
    return f"option {inner}: expected {' or '.join(expected)}, not {tail.splitlines()[0]}"


def _plain(kind: str) -> str:
    """Return `<class 'int'>`, `<class 'NoneType'>` or `typing.Literal['a', 'b']` in plain words."""
    kind = re.sub(r"^dot import path.*", "a name that can be imported", kind)
    kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind).replace("NoneType", "null")
    return re.sub(r"typing\.Literal\[(.*)\]", lambda match: match[1].replace("'", ""), kind)


def _choices(option: str) -> list[str]:
    from prompt_transfer.projectors.projector import TrainedProjector
    from prompt_transfer.prompts.initializers import Initializer
    from prompt_transfer.prompts.reparameterizations import Reparameterization

    base: type = {
        "model.init": Initializer,
        "model.reparameterization": Reparameterization,
        "model.projector": TrainedProjector,
    }[option]
    subclasses: list[type] = base.__subclasses__()
    return sorted(kind.__name__ for kind in subclasses)


def program() -> str:
    """Return the command that starts this program: its name, or its path if the name is not on PATH."""
    script = Path(sys.executable).with_name("prompt-transfer")
    if shutil.which("prompt-transfer") or not script.is_file():
        return "prompt-transfer"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def build_parser(
    function: Callable[..., Any], command: str, positional: str | None = None
) -> jsonargparse.ArgumentParser:
    """Return a parser with one option per parameter of a typed function, and W&B's if the command can be logged there.

    Boolean options need no value: alone they mean true.

    Args:
        function: its docstring is the help; a dataclass counts as a function of its fields.
        command: name of the command, with its subcommand.
        positional: usage of the first parameter as a positional argument (`PROMPT...`); None: all are options.
    """
    import jsonargparse
    from docstring_parser import parse

    from prompt_transfer.tracking.options import WandbOptions
    from prompt_transfer.tracking.studies import STUDIES

    text = parse(function.__doc__ or "")
    head, rest = text.short_description or "", text.long_description or ""
    parser = jsonargparse.ArgumentParser(
        prog=f"prompt-transfer {command}",
        description=f"{head.rstrip('.')}. {' '.join(rest.split())}" if rest else head,
        exit_on_error=False,
    )
    helps = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in text.params}
    parameters = inspect.signature(function).parameters
    flags = [name for name, parameter in parameters.items() if parameter.default is False]
    skip = set(flags)
    if positional is not None:
        first = next(iter(parameters.values()))
        parser.usage = f"prompt-transfer {command} {positional} [OPTIONS]"
        _add_positional(parser, first, get_type_hints(function)[first.name], positional, helps.get(first.name, ""))
        skip.add(first.name)
    add = parser.add_class_arguments if inspect.isclass(function) else parser.add_function_arguments
    add(function, as_group=False, skip=skip, fail_untyped=True)
    for flag in flags:
        parser.add_argument(f"--{flag}", type=bool, default=False, nargs="?", const=True, help=helps.get(flag, ""))
    if command in STUDIES:
        parser.add_argument(
            "--logger", type=Literal["none", "wandb"], default="none", help="none, or log results to W&B"
        )
        parser.add_class_arguments(WandbOptions, "wandb")
    return parser


def _add_positional(
    parser: jsonargparse.ArgumentParser, parameter: inspect.Parameter, kind: Any, usage: str, text: str
) -> None:
    """Add a positional argument: one or more values for a list, at most one for a parameter with a default."""
    required = parameter.default is inspect.Parameter.empty
    nargs = "+" if kind == list[str] else None if required else "?"
    parser.add_argument(parameter.name, type=str, nargs=nargs, metavar=usage.strip("[]."), help=text)
    if not required:
        parser.set_defaults({parameter.name: parameter.default})


def call(
    function: Callable[..., Any],
    command: str,
    arguments: Sequence[str],
    positional: str | None = None,
    then: Callable[[Any], Any] = lambda result: result,
) -> Any:
    """Call a typed function with command-line arguments, and log its output files to W&B with `--logger wandb`.

    Args:
        function, command, positional: see `build_parser`.
        arguments: command-line arguments.
        then: called with the result before its files are logged, where `function` is a dataclass of options.

    Raises:
        UserError: an argument is unknown, missing or of the wrong type.
    """
    from prompt_transfer.tracking.studies import STUDIES, publish

    parser = build_parser(function, command, positional)
    try:
        values = parser.instantiate(parser.parse_args(_close_flags(parser, arguments))).as_dict()
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        usage = {} if positional is None else {next(iter(inspect.signature(function).parameters)): positional}
        raise one_line(error, command, options_of(parser), usage) from error
    if "dtype" in values:
        values["dtype"] = DTYPES.get(values["dtype"], values["dtype"])
    if command not in STUDIES:
        return then(function(**values))
    logger, options = values.pop("logger"), values.pop("wandb")
    result = then(function(**values))
    if logger == "wandb":
        publish(command, values, options)
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


def split_list(text: str | None) -> list[str]:
    """Return the non-empty items of a comma-separated list."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


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
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: prompt-transfer {command} SUBCOMMAND [OPTIONS]\n")
        print(*listing({name: (one.__doc__ or "").strip().splitlines()[0] for name, one in table.items()}), sep="\n")
        return None
    name, *rest = arguments
    if name not in table:
        raise UserError(f"unknown subcommand {command} {name!r}: {hint(name, table)}")
    return call(table[name], f"{command} {name}", rest, (positional or {}).get(name))
