"""Messages for users: the parser's errors in one line, and warnings without source lines."""

from __future__ import annotations

import difflib
import logging
import re
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_transfer.commands.own_classes import class_fault
from prompt_transfer.utils.errors import UserError, without_secrets

# jsonargparse raises one type of error, whose text alone says which option of which file is wrong and why. Its messages
# for unknown options: at the top level of a file, and nested in a file.
UNKNOWN = (
    r"^Option '([\w.]+)' is not accepted",
    r"^Group '([\w.]+)' does not accept option '([\w.]+)'",
)


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
        return unknown_option("--" + ".".join(unknown.groups()), command, options)
    return UserError(f"{message[:400]} (see prompt-transfer {command} --help)")


def unknown_option(option: str, command: str, options: Sequence[str]) -> UserError:
    """Return the error for an option that a command does not have, with a suggestion."""
    return UserError(f"unknown option {option}{_suggestion(option, options)} (see prompt-transfer {command} --help)")


def check_options(
    arguments: Sequence[str],
    command: str,
    known: Sequence[str],
    nested: Sequence[str] = (),
    suggestions: Sequence[str] | None = None,
) -> None:
    """Raise UserError for an option that a command does not have.

    Args:
        arguments: command-line arguments.
        command: name of the command.
        known: its options; the parser accepts the beginning of a name, too.
        nested: options that have options of their own (`--model.init.text`), which only the parser knows.
        suggestions: options to suggest; None: the known ones.
    """
    inner = tuple(f"{name}." for name in nested)
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option = argument.partition("=")[0]
        if not option.startswith("--") or option == "--" or before == "--model.init.text":
            continue
        if not option.startswith(inner) and not any(name.startswith(option.removesuffix("+")) for name in known):
            raise unknown_option(option, command, known if suggestions is None else suggestions)


def options_of(parser: ArgumentParser) -> list[str]:
    """Return all long options of a parser, including nested ones."""
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


# Names in other programs -> names here.
SYNONYMS = {
    **{"lr": "learning_rate", "epochs": "max_epochs", "num_train_epochs": "max_epochs", "steps": "max_steps"},
    **{"dataset": "task", "lr_scheduler_type": "schedule", "output_dir": "output", "max_seq_length": "max_length"},
    **{"per_device_train_batch_size": "batch_size", "train_batch_size": "batch_size"},
    "per_device_eval_batch_size": "eval_batch_size",
}


def _suggestion(option: str, known: Sequence[str]) -> str:
    """Return `: did you mean ...?` with options similar as a whole or in their last part, or an empty string."""
    last = option.rpartition(".")[2].lstrip("-")
    last = SYNONYMS.get(last, last)
    ends = {name: name.rpartition(".")[2].lstrip("-") for name in known if not name.endswith("+")}
    similar = [last] if last in ends.values() else difflib.get_close_matches(last, set(ends.values()), n=2)
    close = difflib.get_close_matches(option, ends, n=1, cutoff=0.8) or [name for name in ends if ends[name] in similar]
    return f": did you mean {' or '.join(close[:3])}?" if close else ""


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
        dotted = re.search(r"(?:given class_path '|Given value: )(\w+(?:\.\w+)+)'?:?$", text, re.MULTILINE)
        if dotted and (fault := class_fault(f"--{option}", dotted[1], _base(option))):
            return fault
        problem = f"cannot make --{option} {given[1]}" if given else f"--{option} must come before its options"
        subclasses: list[type] = _base(option).__subclasses__()
        choices = sorted(kind.__name__ for kind in subclasses)
        return f"{problem}: choose one of {', '.join(choices)}, or a class of your own, MODULE.CLASS"
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


def _base(option: str) -> type:
    """Return the class that the values of an option are derived from."""
    from prompt_transfer.projectors.projector import TrainedProjector
    from prompt_transfer.prompts.initializers import Initializer
    from prompt_transfer.prompts.reparameterizations import Reparameterization

    return {
        "model.init": Initializer,
        "model.reparameterization": Reparameterization,
        "model.projector": TrainedProjector,
    }[option]


def quiet() -> None:
    """Silence Lightning messages that need no action."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*overridden `on_before_batch_transfer`.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*Trying to infer the `batch_size`.*",
        ".*`lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",
        ".*LightningCLI's args parameter is intended.*",
        ".*module\\(s\\) in eval mode at the start of training.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*You're resuming from a checkpoint that ended.*",
    ):
        warnings.filterwarnings("ignore", message)


def show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    """Print a warning as one line, without file name and source line."""
    print("warning: " + without_secrets(" ".join(str(message).split())), file=sys.stderr)
