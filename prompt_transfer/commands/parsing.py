"""Arguments to typed values, with mistakes told in one line."""

from __future__ import annotations

import difflib
import json
import re
import shutil
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from prompt_transfer.commands.table import listing
from prompt_transfer.utils.errors import UserError

# How jsonargparse says that there is no such option: on the command line, and in a file at its top and further in.
UNKNOWN = (
    r"(?:unrecognized arguments: |^unknown option )--([\w.+-]+)",
    r"^Option '([\w.]+)' is not accepted",
    r"^Group '([\w.]+)' does not accept option '([\w.]+)'",
)


def one_line(error: BaseException, command: str, options: Sequence[str] = ()) -> UserError:
    """A parser's error of several lines as one that a person reads.

    Args:
        error: of jsonargparse.
        command: whose help is named.
        options: those of the command, to guess what a misspelt one was to be.
    """
    message = _reason(str(error)) or type(error).__name__
    if missing := re.search(r"^the following arguments are required: (.+)", message):
        # Lightning's options have dots in their names and come as a person writes them but for the dashes.
        message = f"{command} needs {' and '.join(f'--{name} VALUE' for name in missing[1].split(', '))}"
    if unknown := next(filter(None, (re.search(pattern, message) for pattern in UNKNOWN)), None):
        option = "--" + ".".join(unknown.groups())
        message = f"unknown option {option}{_meant(option, options)}"
    return UserError(f"{message[:400]} (see prompt-transfer {command} --help)")


def options_of(parser: ArgumentParser) -> list[str]:
    """All options of a parser, with those of nested ones."""
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


# What other programs call it.
CALLED_ELSEWHERE = {"lr": "learning_rate", "epochs": "max_epochs", "steps": "max_steps", "dataset": "task"}


def _meant(option: str, known: Sequence[str]) -> str:
    """`: did you mean ...?` with the options that look like one, as a whole or in their last part."""
    last = option.rpartition(".")[2].lstrip("-")
    last = CALLED_ELSEWHERE.get(last, last)
    ends = {name: name.rpartition(".")[2].lstrip("-") for name in known if not name.endswith("+")}
    alike = difflib.get_close_matches(last, set(ends.values()), n=2)
    close = [*difflib.get_close_matches(option, ends, n=1, cutoff=0.8), *(n for n in ends if ends[n] in alike)]
    return f": did you mean {' or '.join(list(dict.fromkeys(close))[:3])}?" if close else ""


def _reason(text: str) -> str:
    """What jsonargparse says in a nested and indented report: the option, what it got, what it may be."""
    keys = list(dict.fromkeys(re.findall(r'Parser key "([\w.]+)":', text)))
    if not keys:
        # What the constructor of a chosen class said, inside a report on the option's type.
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
        what = f"cannot make --{option} {given[1]}" if given else f"--{option} comes before its options"
        return f"{what}: choose one of {', '.join(_choices(option))}"
    # Of a nested report, what stands before the first value speaks of the innermost option.
    report = re.sub(r"Given value(?= type)", "", text).replace("Got value", "Given value")
    head, _, tail = report.partition("Given value: ")
    kinds = re.findall(r"^[- ]*Expected an? (?!path)(.+?)[. ]*$", head, re.MULTILINE)
    expected = dict.fromkeys(map(_plain, kinds))
    if not expected or not tail:
        return f"option {inner}: " + " ".join(text.partition(":")[2].split())
    return f"option {inner}: expected {' or '.join(expected)}, not {tail.splitlines()[0]}"


def _plain(kind: str) -> str:
    """`<class 'int'>`, `<class 'NoneType'>` and `typing.Literal['a', 'b']` as a person writes them."""
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
    """How this program is called from here: by its name, or by its path where the name is not found."""
    beside = Path(sys.executable).with_name("prompt-transfer")
    if shutil.which("prompt-transfer") or not beside.is_file():
        return "prompt-transfer"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


def description(function: Callable[..., Any]) -> str:
    """What a docstring says before its sections: those about arguments stand beside the options."""
    text = re.split(r"^ *(?:Args|Returns|Raises|Yields):$", function.__doc__ or "", maxsplit=1, flags=re.MULTILINE)[0]
    head, _, rest = text.strip().partition("\n\n")
    return f"{head.rstrip('.')}. {' '.join(rest.split())}".strip() if rest else head


def call(function: Callable[..., Any], command: str, arguments: Sequence[str], unnamed: str | None = None) -> Any:
    """Call a typed function with command-line arguments; what it leaves goes to W&B with `--logger wandb`.

    Args:
        function: what the arguments are for.
        command: its name for a user.
        arguments: those of the command line.
        unnamed: an option whose value people give without its name (`PROMPT...`), for the usage.

    Raises:
        UserError: an argument is unknown, missing or of the wrong type.
    """
    import jsonargparse

    from prompt_transfer.tracking.options import WandbOptions
    from prompt_transfer.tracking.studies import STUDIES, publish

    parser = jsonargparse.ArgumentParser(
        prog=f"prompt-transfer {command}", description=description(function), exit_on_error=False
    )
    parser.add_function_arguments(function, fail_untyped=True)
    if unnamed is not None:
        parser.usage = f"prompt-transfer {command} {unnamed} [OPTIONS]"
    if command in STUDIES:
        parser.add_argument("--logger", type=Literal["none", "wandb"], default="none", help="where else results go")
        parser.add_class_arguments(WandbOptions, "wandb")
    try:
        values = parser.instantiate(parser.parse_args(list(arguments))).as_dict()
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise one_line(error, command, options_of(parser)) from error
    if command not in STUDIES:
        return function(**values)
    logger, options = values.pop("logger"), values.pop("wandb")
    result = function(**values)
    if logger == "wandb":
        publish(command, values, options)
    return result


def collect_positionals(option: str, arguments: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
    """What stands without an option's name, anywhere, as the list `option`.

    Args:
        option: gets the values as JSON.
        arguments: of a subcommand.
        flags: options that need no value: alone they mean true.
    """
    values, rest, left = [], [], iter(expand_flags(arguments, flags))
    for argument in left:
        if not argument.startswith("-"):
            values.append(argument)
        else:
            takes_value = "=" not in argument and argument not in ("-h", "--help")
            rest += [argument, *([value] if takes_value and (value := next(left, None)) is not None else [])]
    return [option, json.dumps(values), *rest] if values else rest


def expand_flags(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The arguments with `true` for each of `flags` that has no value of its own."""
    found: list[str] = []
    for position, argument in enumerate(arguments):
        value = arguments[position + 1].lower() if position + 1 < len(arguments) else ""
        if found and found[-1] in flags:
            found[-1] += f"={argument.lower()}"
        elif argument in flags and value not in ("true", "false"):
            found.append(f"{argument}=true")
        else:
            found.append(argument)
    return found


def find_value(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option as it was written, before anything parses it; None where it is not given."""
    for position, argument in enumerate(arguments):
        if argument == option:
            if position + 1 == len(arguments):
                raise UserError(f"{option} needs a value")
            return arguments[position + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def split_list(text: str | None) -> list[str]:
    """What stands between commas, without spaces around it; nothing of None."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def hint(name: str, known: Iterable[str]) -> str:
    """What somebody may have meant who wrote `name`, and what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"there are {', '.join(known)}"


def subcommand(
    command: str,
    table: dict[str, Callable[..., Any]],
    arguments: list[str],
    unnamed: Mapping[str, str] | None = None,
) -> Any:
    """Call one of several functions, chosen by the first argument; `unnamed` says what stands without an option."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: prompt-transfer {command} SUBCOMMAND [OPTIONS]\n")
        print(*listing({name: (one.__doc__ or "").strip().splitlines()[0] for name, one in table.items()}), sep="\n")
        return None
    if arguments[0] not in table:
        raise UserError(f"unknown subcommand {command} {arguments[0]!r}: {hint(arguments[0], table)}")
    return call(table[arguments[0]], f"{command} {arguments[0]}", arguments[1:], (unnamed or {}).get(arguments[0]))
