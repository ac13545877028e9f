"""`validate`, `test` and `predict`: evaluation of a prompt file."""

from __future__ import annotations

import json
import shlex
import warnings
from pathlib import Path
from typing import Any

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands.lightning import CONFIG_FILE, RESULTS_FILE, Command
from prompt_transfer.commands.own_data import Texts, own_options, take_texts
from prompt_transfer.commands.parsing import find_value, program
from prompt_transfer.commands.predicting import check_predict, predict
from prompt_transfer.commands.prompt_files import check_comparable, check_different, load_prompts
from prompt_transfer.commands.repeated import take_values
from prompt_transfer.commands.scoring import check_class_metrics, score
from prompt_transfer.data.own import defined_tasks
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.entries import changed_format
from prompt_transfer.tasks.definition import stored_tasks
from prompt_transfer.tasks.registry import Task
from prompt_transfer.tracking.options import LOGGERS
from prompt_transfer.utils.errors import LayoutKindError, UserError
from prompt_transfer.utils.files import prove_writable_dir


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer validate | test | predict`."""
    texts, arguments = take_texts(arguments) if command == "predict" else (None, arguments)
    if command == "predict" and find_value(arguments, "--output") is None:
        # The predictions go to standard output.
        arguments = ["--trainer.enable_progress_bar=false", *arguments]
    given, rest = take_values(arguments, "--prompt")
    if not given:
        if {"-h", "--help"} & set(arguments):
            Command(command, arguments)
        raise UserError(f"{command} needs a prompt: --prompt FILE (prompt-transfer prompts list DIR lists files)")
    prompts = load_prompts(given)
    if command == "predict" and len(prompts) > 1:
        names = " and ".join(one.path for one in prompts[:2])
        raise UserError(f"predict takes one prompt, not {len(prompts)} ({names}, ...): run it once for each")
    check_comparable(prompts, rest, command)
    prompt, path = prompts[0].prompt, prompts[0].path
    try:
        with defined_tasks(stored_tasks(prompt.metadata, path)):
            parsed = Command(command, _with_prompt(rest, prompt, path, texts is not None))
    except LayoutKindError as error:
        other = find_value(arguments, "--model.backbone")
        if other is None or find_value(arguments, "--model.layout") is not None:
            raise
        own = prompt.metadata.get("backbone", "another backbone")
        raise UserError(
            f"prompt {path}, trained on {own}, does not fit {other}: {error}. Use {own}, or project the prompt with "
            "`prompt-transfer prompts project`"
        ) from error
    check_different(prompts)
    parsed.config.prompt = path if len(prompts) == 1 else [one.path for one in prompts]
    _check_strategy(parsed)
    _check_output(command, parsed, texts)
    model = parsed.model
    assert isinstance(model, PromptTuning)
    model.calibrate, model.label_source = bool(parsed.config.calibrate), prompt
    for one in prompts:
        if model.method.name != one.prompt.method:
            raise UserError(f"{one.path} is a {one.prompt.method}: leave out --model.method {model.method.name}")
        one.prompt.check(model.backbone, model.backbone.layout.name, model.backbone.attention)
        _warn_changed_words(one.prompt, parsed.datamodule.tasks, model.backbone)
        _warn_unfinished(one.prompt)
    if command == "predict":
        predict(parsed, model, texts)
    else:
        score(command, parsed, model, prompts)


def _warn_changed_words(prompt: Prompt, tasks: list[Task], backbone: FrozenBackbone) -> None:
    """Warn if a task's label words or template changed after the prompt's training."""
    for task in tasks:
        if said := changed_format(prompt, task, backbone):
            warnings.warn(f"the prompt was trained on {task.name} with {said}", stacklevel=2)


def _warn_unfinished(prompt: Prompt) -> None:
    """Warn if the prompt's run was interrupted: the file holds the best prompt so far."""
    assert prompt.path is not None
    folder = prompt.path.parent
    if (folder / CONFIG_FILE).is_file() and not (folder / RESULTS_FILE).is_file():
        warnings.warn(
            f"the run in {folder} is not finished, this is its best prompt so far; resume it with: {program()} fit "
            f"--output {shlex.quote(str(folder))} --resume",
            stacklevel=2,
        )


def _with_prompt(arguments: list[str], prompt: Prompt, path: str, has_texts: bool = False) -> list[str]:
    """Return the arguments after the options in the prompt's metadata, which they override, and before the prompt.

    Args:
        has_texts: whether the texts to predict are given: only the task's label words are needed then, not its data.
    """
    facts = prompt.metadata
    has_texts = has_texts or find_value(arguments, "--input") is not None
    first: list[str] = ["--model.method", prompt.method]
    for key in ("backbone", "layout", "attention", "dtype", "head", "label_words_policy"):
        if facts.get(key):
            first += [f"--model.{key}={facts[key]}"]
    tasks = _stored(prompt, "data_task", list) or [task for task in facts.get("task", "").split(",") if task]
    if not tasks and not any(find_value(arguments, option) for option in ("--data.task", "--config", "-c", "--data")):
        raise UserError(f"{path} does not name the task of its training: give one with --data.task")
    tasks, own = own_options(prompt, tasks, find_value(arguments, "--data.task"), has_texts)
    if tasks:
        first += ["--data.task", tasks[0] if len(tasks) == 1 else json.dumps(tasks)]
    first += own or []
    for key in ("label_words", "max_length", "seed", "special_tokens", "template", "chat_template"):
        if facts.get(f"data_{key}") and (own is None or key != "label_words"):
            first += [f"--data.{key}={facts[f'data_{key}']}"]
    if facts.get("revision"):
        first += ["--model.revision", facts["revision"]]
    if own is None and facts.get("data_source"):
        first += ["--data.source", facts["data_source"]]
    elif own is None and has_texts and not all(task.startswith("builtin_") for task in tasks):
        # Only the task's label words are needed, not its data.
        first += ["--data.source", "hub"]
    if (
        facts.get("data_revision")
        and not find_value(arguments, "--data.task")
        and not find_value(arguments, "--data.source")
    ):
        first += ["--data.revision", facts["data_revision"]]
    if facts.get("data_root") and Path(facts["data_root"]).is_dir():
        first += ["--data.root", facts["data_root"]]
    length = str(prompt.length)
    # A JSON list, since the parser would read the path "7" as a number and "a: b" as a mapping.
    last = ["--model.prompt_length", length, "--model.init", "FromPrompt", "--model.init.prompt", json.dumps([path])]
    task = find_value(arguments, "--data.task")
    if task and task.startswith("builtin_"):
        for option, value in (("--data.source", "builtin"), ("--data.label_words", "default")):
            last += [] if find_value(arguments, option) else [option, value]
    return [*first, *arguments, *last]


def _stored(prompt: Prompt, key: str, kind: type[Any]) -> Any:
    """Return a JSON value of the prompt's metadata; an empty `kind` if it is missing."""
    try:
        value = json.loads(prompt.metadata.get(key) or "null")
    except ValueError:
        value = ...
    if value is not None and not isinstance(value, kind):
        raise UserError(f"{prompt.path} is damaged: its metadata {key!r} is {prompt.metadata[key][:60]!r}")
    return kind() if value is None else value


def _check_strategy(parsed: Command) -> None:
    """Raise UserError for strategies whose processes cannot return results."""
    strategy = str(parsed.config.trainer.strategy)
    if "fork" in strategy or "spawn" in strategy or "notebook" in strategy:
        raise UserError(f"--trainer.strategy {strategy} cannot return predictions: use ddp")


def _check_output(command: str, parsed: Command, texts: Texts | None) -> None:
    """Raise UserError for output options that would fail after the evaluation."""
    if command == "predict":
        check_predict(parsed, texts)
    else:
        check_class_metrics(parsed)
    if parsed.output is None:
        if parsed.config.logger in LOGGERS:
            raise UserError(f"--logger {parsed.config.logger} logs the output folder of {command}: give --output DIR")
        return
    if command != "predict" and (parsed.output / CONFIG_FILE).exists() and (parsed.output / RESULTS_FILE).exists():
        raise UserError(
            f"{parsed.output} is a run folder, whose {RESULTS_FILE} would be overwritten: give another --output"
        )
    prove_writable_dir(parsed.output)
