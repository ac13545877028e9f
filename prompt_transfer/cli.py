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
from prompt_transfer.commands.table import COMMANDS, find, listing
from prompt_transfer.utils import results
from prompt_transfer.utils.allocation import keep_memory
from prompt_transfer.utils.errors import SEE_PROMPTS, UserError, no_such_file, without_secrets
from prompt_transfer.version import __version__

# By the number of an OSError that no command foresaw.
WHAT_TO_DO = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG), "free space, or choose another place to write to"
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions, or choose another place"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n)"),
}
ELSE = "--debug shows where"
OPTIONS = {
    "--help": "this text; `prompt-transfer COMMAND --help` for the options of a command",
    "--version": "print the version",
    "--json": "the tables of the command as one JSON document, all else on standard error",
    "--debug": "show the traceback of an error",
}


def usage() -> str:
    """The text of `prompt-transfer --help`."""
    return "\n".join(
        [
            "usage: prompt-transfer [--debug] [--json] COMMAND [OPTIONS]",
            "",
            "Soft prompts for frozen language models: train, move, understand.",
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
        arguments: of the command line; None: those of this process.
        own_process: whether this process does nothing else, so that what is imported stays to its end.

    Returns:
        The exit code: 0; 2 after a mistake of the user's, told in one line on standard error; 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug, as_json = "--debug" in arguments, "--json" in arguments and not {"-h", "--help"} & set(arguments)
    arguments = [find_shipped(argument) for argument in arguments if argument not in ("--debug", "--json")]
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(usage())
        elif arguments[0] == "--version":
            print(f"prompt-transfer {__version__}")
        elif as_json:
            _run_for_programs(arguments, own_process)
        else:
            _run(arguments, own_process)
        # Here rather than when Python exits, where a full disk behind a redirection is told in several lines.
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error), debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away (`| head`).
        _forget_output()
        return 0
    except OSError as error:
        # What a command did not foresee of disks and permissions; `--debug` shows where.
        _forget_output()
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}; {WHAT_TO_DO.get(error.errno or 0, ELSE)}", debug)
    return 0


def _run(arguments: list[str], own_process: bool) -> None:
    if own_process and arguments[0] in ("validate", "test", "predict"):
        # The command would say so too, after the seconds that importing it takes.
        prompt = find_value(arguments, "--prompt")
        if prompt is not None and not Path(prompt).expanduser().exists():
            raise no_such_file(prompt, "prompt", SEE_PROMPTS)
    find(arguments[0], own_process)(arguments[0], arguments[1:])


def _run_for_programs(arguments: list[str], own_process: bool) -> None:
    """Run a command; its tables are the only thing on standard output, and none of it when it fails."""
    with results.kept() as tables, redirect_stdout(sys.stderr):
        _run(arguments, own_process)
    # Of several processes, the first one speaks.
    rank = next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if os.environ.get(name)), "0")
    if rank == "0":
        print(json.dumps({"command": arguments, "tables": tables}, ensure_ascii=False))


def start() -> int:
    """`prompt-transfer` as a process of its own."""
    keep_memory()
    return main(own_process=True)


def _fail(message: str, debug: bool) -> int:
    if debug:
        print(without_secrets(traceback.format_exc()), file=sys.stderr, end="")
    print("error: " + without_secrets(" ".join(message.split())), file=sys.stderr)
    return 2


def _forget_output() -> None:
    """What is buffered cannot be written; Python would complain once more when it flushes at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # not a real file, as in notebooks and tests
        return
