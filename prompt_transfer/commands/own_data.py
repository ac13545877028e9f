"""Command-line options for users' own data: tables, tasks that a prompt file defines, and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import Namespace

from prompt_transfer.data.own import choose_tasks, is_table
from prompt_transfer.data.readers import data_root
from prompt_transfer.data.selection import default_source
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.definition import stored_tasks
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError

TEXT_OPTIONS = ("--text", "--text_b")


@dataclass(frozen=True)
class Texts:
    """The texts of `predict --text`, and their second texts (`--text_b`) for tasks on pairs."""

    first: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)


def take_texts(arguments: Sequence[str]) -> tuple[Texts | None, list[str]]:
    """Take the texts of `--text` and `--text_b` out of the arguments: the parser would read "a: b" as YAML.

    Raises:
        UserError: an option without a text, or texts and `--input`.
    """
    texts, kept = Texts(), list[str]()
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option not in TEXT_OPTIONS:
            kept.append(argument)
            continue
        text = value if equals else next(rest, None)
        if text is None:
            raise UserError(f"{option} needs a text: {option} 'a good film'")
        (texts.first if option == "--text" else texts.second).append(text)
    if not texts.first and not texts.second:
        return None, kept
    if any(argument.partition("=")[0] == "--input" for argument in kept):
        raise UserError("--text and --input exclude each other: give texts on the command line, or a file of them")
    return texts, kept


def own_options(
    prompt: Prompt, tasks: list[str], given: str | None, has_texts: bool
) -> tuple[list[str], list[str] | None]:
    """Return values of `--data.task` for a prompt, and options of their data; None: the options that it stores.

    Args:
        prompt: with the tasks that it defines.
        tasks: names or files of its tasks, from its metadata.
        given: the user's `--data.task`.
        has_texts: whether texts to predict are given, which need no rows of the task.

    Raises:
        UserError: rows are needed, and the prompt was trained on rows that no file holds.
    """
    if given is not None:
        # A task with its own rows does not take the source of the prompt's task.
        own_rows = is_table(given) or (_is_yaml(given) and get_task(given).local is not None)
        return ([], []) if own_rows else (tasks, None)
    defined = stored_tasks(prompt.metadata, prompt.path)
    without = [task for task in tasks if _lacks_rows(task, defined)]
    if has_texts and defined and all(task in without or is_table(task) for task in tasks):
        return list(defined), []
    if without:
        raise UserError(
            f"the rows that {prompt.path} was trained on ({', '.join(without)}) are not there: give a table with "
            "--data.task FILE.csv, or texts with predict --text or --input"
        )
    if not any(map(is_table, tasks)):
        return tasks, None
    files = [(name, prompt.metadata.get(f"data_{name}")) for name in ("validation", "test")]
    return tasks, [part for name, file in files if file for part in (f"--data.{name}", file)]


def _lacks_rows(task: str, defined: object) -> bool:
    """Return whether a task is defined by the prompt and has no file any more, or never had one."""
    if is_table(task) or _is_yaml(task):
        return bool(defined) and not Path(task).is_file()
    return isinstance(defined, dict) and task in defined


def _is_yaml(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def complete_data(data: Namespace) -> None:
    """Make the paths in the options of the data absolute, and choose the source if none is given.

    Stored configurations and prompts are used from other working directories.
    """
    tasks = [data.task] if isinstance(data.task, str) else data.task
    tasks = [_absolute(task) if is_table(task) or _is_yaml(task) else task for task in tasks]
    data.task = tasks[0] if isinstance(data.task, str) else tasks
    for name in ("validation", "test", "cache_dir"):
        if data.get(name) is not None:
            data[name] = _absolute(data[name])
    if data.get("held_out") is not None:
        data.held_out = [_absolute(task) if is_table(task) or _is_yaml(task) else task for task in data.held_out]
    if data.get("source") is None:
        # Tables are local; their rows are read later.
        found, own = choose_tasks([task for task in tasks if not is_table(task)], {}) if tasks else ([], {})
        data.source = default_source(found, own)
    root = data_root(data.root) if data.source == "local" else data.root
    data.root = None if root is None else _absolute(str(root))


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())
