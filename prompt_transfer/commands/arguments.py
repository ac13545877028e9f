"""Command-line arguments prepared for LightningCLI's parser.

jsonargparse has no place for this: its own choice of a class changes stored configurations, its action for
`--model FILE` is private and takes paths only, and values of a class's options are read as YAML before their types are
known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from prompt_transfer.backbones.builtin import shipped
from prompt_transfer.utils.errors import UserError

# Options with a configuration file, in the working folder or the project's `configs/`.
CONFIG_OPTIONS = (
    *("--config", "-c", "--model", "--data", "--trainer"),
    *("--model.init", "--model.reparameterization", "--model.projector"),
)
TEXT_OPTION, TEXT = "--model.init.text", "text"


def take_class(arguments: list[str], option: str, table: dict[str, type]) -> tuple[type, list[str]]:
    """Return the class that `--model NAME` chooses (default: the first of the table), and the other arguments.

    `--model FILE.yaml` is left to the parser.
    """
    kept: list[str] = []
    chosen = next(iter(table))
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name != option:
            kept.append(argument)
            continue
        value = value or next(rest, "")
        if value.endswith((".yaml", ".yml")):
            kept += [option, value]
            continue
        chosen = value
        if chosen not in table:
            raise UserError(f"unknown {option} {chosen!r}: choose one of {', '.join(table)}")
    return table[chosen], kept


def find_configs(arguments: list[str]) -> list[str]:
    """Resolve short names of configuration files (`experiment/sst2.yaml`): working folder first, then `configs/`.

    The parser takes only paths, for `--config` and for groups such as `--model`.

    Raises:
        UserError: a file is missing or unreadable.
    """
    found = list(arguments)
    for position, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option not in CONFIG_OPTIONS:
            continue
        if not value:
            if position + 1 == len(arguments):
                raise UserError(f"{option} needs a file")
            value = arguments[position + 1]
        path = Path(value)
        if option not in ("--config", "-c") and path.suffix not in (".yaml", ".yml"):
            continue
        if not path.is_file():
            path = shipped("configs") / Path(value.removeprefix("configs/"))
        if not path.is_file():
            raise UserError(f"no configuration file {value} in the working folder or in {shipped('configs')}")
        try:
            path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UserError(f"cannot read the configuration file {path}: {reason}") from error
        if argument == option:
            found[position + 1] = str(path)
        else:
            found[position] = f"{option}={path}"
    return found


def extract_init_text(arguments: list[str]) -> tuple[list[str], str | None]:
    """Replace the value of `--model.init.text` by a placeholder and return it: the parser would read "a: b" as YAML."""
    kept, text = list(arguments), None
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == TEXT_OPTION and equals:
            kept[position], text = f"{option}={TEXT}", value
        elif option == TEXT_OPTION and position + 1 < len(arguments):
            kept[position + 1], text = TEXT, arguments[position + 1]
    return kept, text


def sets_model_option(arguments: Sequence[str], options: Sequence[str]) -> bool:
    """Return whether the arguments or their configuration files set one of these model options."""
    if any(argument.split("=")[0].rstrip("+") in [f"--model.{name}" for name in options] for argument in arguments):
        return True
    pairs = [argument.partition("=")[::2] for argument in arguments]
    for position, (option, value) in enumerate(pairs):
        if option not in ("--config", "-c", "--model"):
            continue
        try:
            content = yaml.safe_load(Path(value or arguments[position + 1]).read_text())
        except (OSError, ValueError, IndexError, yaml.YAMLError):
            continue  # reported by the parser
        section = content if option == "--model" else content.get("model") if isinstance(content, dict) else None
        if isinstance(section, dict) and any(section.get(name) for name in options):
            return True
    return False
