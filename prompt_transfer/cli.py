"""The command line: a table of commands; what is heavy is imported by the command that needs it."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from prompt_transfer.backbones.builtin import find_shipped
from prompt_transfer.commands.parsing import find_value
from prompt_transfer.commands.repeated import check_repeated, take_values
from prompt_transfer.commands.table import COMMANDS, VERBS, find, listing
from prompt_transfer.utils import results
from prompt_transfer.utils.allocation import restart_if_requested
from prompt_transfer.utils.errors import SEE_PROMPTS, UserError, no_such_file, without_secrets
from prompt_transfer.utils.figures import using_formats
from prompt_transfer.version import __version__

# Advice for unexpected OSErrors, by error number.
WHAT_TO_DO = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG), "free space, or choose another place to write to"
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions, or choose another place"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n)"),
}
ELSE = "--debug shows the traceback"
OPTIONS = {
    "--help": "show this help; `prompt-transfer COMMAND --help` shows the options of a command",
    "--version": "print the version",
    "--json": "print the command's tables as one JSON document; other output goes to standard error",
    "--debug": "show the traceback of an error",
    "--figures png,pdf,svg": "file formats of figures; default: png",
}


def usage() -> str:
    """Return the text of `prompt-transfer --help`."""
    return "\n".join(
        [
            "usage: prompt-transfer [--debug] [--json] [--figures FORMATS] COMMAND [OPTIONS]",
            "",
            "Train, transfer and analyze soft prompts for frozen language models.",
            "",
            "commands:",
            *listing({name: text for name, (_, text) in COMMANDS.items()}),
            "",
            "options:",
            *listing(OPTIONS),
            "",
            "start here: prompt-transfer quickstart",
        ]
    )


def main(arguments: Sequence[str] | None = None, own_process: bool = False) -> int:
    """Run one command.

    Args:
        arguments: command-line arguments; None: those of this process.
        own_process: whether the process runs this one command: a missing prompt file is then reported before imports.

    Returns:
        Exit code: 0; 2 for a user error, reported in one line on standard error; 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug, as_json = "--debug" in arguments, "--json" in arguments and not {"-h", "--help"} & set(arguments)
    arguments = [find_shipped(argument) for argument in arguments if argument not in ("--debug", "--json")]
    try:
        figures, arguments = _take_value(arguments, "--figures")
        with using_formats(figures):
            _choose(arguments, as_json, own_process)
        # Flushing here reports a full disk in one line; at exit Python would print several.
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error), debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe exited (`| head`).
        _forget_output()
        return 0
    except OSError as error:
        # Disk and permission errors that the command did not handle.
        _forget_output()
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}; {WHAT_TO_DO.get(error.errno or 0, ELSE)}", debug)
    return 0


def _choose(arguments: list[str], as_json: bool, own_process: bool) -> None:
    """Print the help or the version, or run the command."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
    elif arguments[0] == "--version":
        print(f"prompt-transfer {__version__}")
    elif as_json:
        _run_for_programs(arguments, own_process)
    else:
        _run(arguments, own_process)


def _take_value(arguments: list[str], option: str) -> tuple[str | None, list[str]]:
    """Return an option's value, None if it is absent, and the other arguments."""
    value = find_value(arguments, option)
    if value is None:
        return None, arguments
    place = next(number for number, word in enumerate(arguments) if word == option or word.startswith(f"{option}="))
    return value, arguments[:place] + arguments[place + (1 if "=" in arguments[place] else 2) :]


def _run(arguments: list[str], own_process: bool) -> None:
    check_repeated(arguments)
    if own_process and arguments[0] in ("validate", "test", "predict"):
        # Saves the seconds of imports that precede the command's own check.
        for prompt in take_values(arguments, "--prompt")[0]:
            if not set("[*?") & set(prompt) and not Path(prompt).expanduser().exists():
                raise no_such_file(prompt, "prompt", SEE_PROMPTS)
    if arguments[0] in VERBS:
        # Without the seconds of imports: help, and options that do not exist.
        from prompt_transfer.commands.run_options import answer

        if (text := answer(arguments[0], arguments[1:])) is not None:
            print(text)
            return
    find(arguments[0])(arguments[0], arguments[1:])


def _run_for_programs(arguments: list[str], own_process: bool) -> None:
    """Run a command and print only its tables to standard output, or nothing if it fails."""
    with results.kept() as tables, redirect_stdout(sys.stderr):
        _run(arguments, own_process)
    # Only the first process prints.
    rank = next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if os.environ.get(name)), "0")
    if rank == "0":
        print(json.dumps({"command": arguments, "tables": tables}, ensure_ascii=False))


def start() -> int:
    """Run `prompt-transfer` as a program."""
    restart_if_requested()
    return main(own_process=True)


def _fail(message: str, debug: bool) -> int:
    if debug:
        print(without_secrets(traceback.format_exc()), file=sys.stderr, end="")
    print("error: " + without_secrets(" ".join(message.split())), file=sys.stderr)
    return 2


def _forget_output() -> None:
    """Discard buffered output: Python would fail once more when it flushes at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # not a real file, as in notebooks and tests
        return
