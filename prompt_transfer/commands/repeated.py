"""Options that are given more than once: the parser would silently keep the last value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from prompt_transfer.utils.errors import UserError

# Their files are merged in the order given; a class name is a single value.
COMPOSED = ("--config", "-c")
GROUPS = ("--model", "--data", "--trainer")
# Command -> options that take several values.
SEVERAL = {"validate": ("--prompt",), "test": ("--prompt",), "predict": ("--prompt", "--text", "--text_b")}


def check_repeated(arguments: Sequence[str]) -> None:
    """Raise UserError if an option has several values; equal values, configuration files and `--option+` may repeat.

    Args:
        arguments: a command and its arguments, as the user gave them.
    """
    if not arguments:
        return
    appended = [option.removesuffix("+") + "." for option, _ in option_values(arguments) if option.endswith("+")]
    found: dict[str, list[str]] = {}
    for option, value in option_values(arguments):
        merged = option in GROUPS and value.endswith((".yaml", ".yml"))
        # Each `--trainer.callbacks+ NAME` is followed by options of its own.
        own = option.endswith("+") or option.startswith(tuple(appended))
        if not merged and not own and option not in (*COMPOSED, *SEVERAL.get(arguments[0], ())):
            found.setdefault(option, []).append(value)
    for option, values in found.items():
        if len({value.lower() if value.lower() in ("true", "false") else value for value in values}) > 1:
            raise UserError(
                f"{option} is given {len(values)} times ({', '.join(values)}): give it once, as a list if it takes "
                "several values"
            )


def option_values(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option with its value; an option without a value counts as true."""
    for argument, following in pairwise([*arguments, "--"]):
        option, equals, value = argument.partition("=")
        if option.startswith("--") and option != "--":
            yield option, value if equals else "true" if following.startswith("--") else following


def take_values(arguments: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """Return all values of an option (`--x a b`, `--x a --x b`, `--x=a`), and the other arguments.

    Raises:
        UserError: the option has no value.
    """
    values: list[str] = []
    rest: list[str] = []
    open_, missing = False, False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == option:
            if missing:
                break
            values += [value] if equals else []
            open_, missing = not equals, not equals
        elif open_ and not argument.startswith("-"):
            values.append(argument)
            missing = False
        else:
            open_ = False
            rest.append(argument)
            if missing:
                break
    if missing:
        raise UserError(f"{option} needs a value")
    return values, rest
