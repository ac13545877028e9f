"""Arguments as they were typed, made into what the parser of `fit` and its kin reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from prompt_transfer.backbones.builtin import shipped
from prompt_transfer.utils.errors import UserError

# Options that take a file of values, from the working folder or from the project's `configs/`.
CONFIG_OPTIONS = (
    *("--config", "-c", "--model", "--data", "--trainer"),
    *("--model.init", "--model.reparameterization", "--model.projector"),
)
TEXT_OPTION, TEXT = "--model.init.text", "text"


def take_class(arguments: list[str], option: str, table: dict[str, type]) -> tuple[type, list[str]]:
    """Remove `--model NAME` from the arguments; the class it names, else the first of the table.

    `--model FILE.yaml` stays: the parser reads the file.
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
    """Let `--config` name a file of the working folder or one that ships with the project (`experiment/sst2.yaml`)."""
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
            raise UserError(f"no configuration file {value}, here or among those of the project ({shipped('configs')})")
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
    """Remove the value of `--model.init.text`, which the parser would read as a mapping where it has a ": "."""
    kept, text = list(arguments), None
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == TEXT_OPTION and equals:
            kept[position], text = f"{option}={TEXT}", value
        elif option == TEXT_OPTION and position + 1 < len(arguments):
            kept[position + 1], text = TEXT, arguments[position + 1]
    return kept, text


def sets_model_option(arguments: Sequence[str], options: Sequence[str]) -> bool:
    """Whether options, or files of options, give one of these options of the model."""
    if any(argument.split("=")[0].rstrip("+") in [f"--model.{name}" for name in options] for argument in arguments):
        return True
    pairs = [argument.partition("=")[::2] for argument in arguments]
    for position, (option, value) in enumerate(pairs):
        if option not in ("--config", "-c", "--model"):
            continue
        try:
            content = yaml.safe_load(Path(value or arguments[position + 1]).read_text())
        except (OSError, ValueError, IndexError, yaml.YAMLError):
            continue  # the parser has the right words for it
        section = content if option == "--model" else content.get("model") if isinstance(content, dict) else None
        if isinstance(section, dict) and any(section.get(name) for name in options):
            return True
    return False
