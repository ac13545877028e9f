"""`validate`, `test` and `predict`: evaluation of a prompt file."""

from __future__ import annotations

import json
import shlex
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from prompt_transfer.commands.lightning import CONFIG_FILE, RESULTS_FILE, Command, as_user_error
from prompt_transfer.commands.parsing import find_value, program
from prompt_transfer.commands.prompt_files import check_comparable, check_different, load_prompts
from prompt_transfer.commands.repeated import take_values
from prompt_transfer.commands.scoring import check_class_metrics, check_records, score
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.texts import load_texts
from prompt_transfer.data.tokens import ID_BITS
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.registry import Task
from prompt_transfer.tracking.options import LOGGERS
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import LayoutKindError, UserError
from prompt_transfer.utils.files import check_writable_dir, prove_writable_dir
from prompt_transfer.utils.provenance import write_provenance

# Print every prediction of a text file of up to this many lines.
MOST_LINES = 20


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer validate | test | predict`."""
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
        parsed = Command(command, _with_prompt(rest, prompt, path))
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
    _check_output(command, parsed)
    model = parsed.model
    assert isinstance(model, PromptTuning)
    for one in prompts:
        one.prompt.check(model.backbone, model.backbone.layout.name, model.backbone.attention)
        _warn_changed_words(one.prompt, parsed.datamodule.tasks)
        _warn_unfinished(one.prompt)
    if command == "predict":
        _predict(parsed, model)
    else:
        score(command, parsed, model, prompts)


def _warn_changed_words(prompt: Prompt, tasks: list[Task]) -> None:
    """Warn if a task's label words changed after the prompt's training."""
    trained = _stored(prompt, "label_words", dict)
    for task in tasks:
        words = trained.get(task.name)
        if words is not None and words != list(task.label_words):
            warnings.warn(
                f"the prompt was trained on {task.name} with the label words {', '.join(words)}, "
                f"but is scored with {', '.join(task.label_words)}",
                stacklevel=2,
            )


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


def _with_prompt(arguments: list[str], prompt: Prompt, path: str) -> list[str]:
    """Return the arguments after the options in the prompt's metadata, which they override, and before the prompt."""
    facts = prompt.metadata
    first: list[str] = []
    for key in ("backbone", "layout", "attention", "dtype", "head", "label_words_policy"):
        if facts.get(key):
            first += [f"--model.{key}={facts[key]}"]
    tasks = _stored(prompt, "data_task", list) or [task for task in facts.get("task", "").split(",") if task]
    if not tasks and not any(find_value(arguments, option) for option in ("--data.task", "--config", "-c", "--data")):
        raise UserError(f"{path} does not name the task of its training: give one with --data.task")
    if tasks:
        first += ["--data.task", tasks[0] if len(tasks) == 1 else json.dumps(tasks)]
    for key in ("label_words", "max_length", "seed", "special_tokens"):
        if facts.get(f"data_{key}"):
            first += [f"--data.{key}", facts[f"data_{key}"]]
    if facts.get("revision"):
        first += ["--model.revision", facts["revision"]]
    if facts.get("data_source"):
        first += ["--data.source", facts["data_source"]]
    elif find_value(arguments, "--input") and not all(task.startswith("builtin_") for task in tasks):
        # With the user's own texts, only the task's label words are needed, not its data.
        first += ["--data.source", "hub"]
    if (
        facts.get("data_revision")
        and not find_value(arguments, "--data.task")
        and not find_value(arguments, "--data.source")
    ):
        first += ["--data.revision", facts["data_revision"]]
    if facts.get("data_root") and Path(facts["data_root"]).is_dir():
        first += ["--data.root", facts["data_root"]]
    length = str(prompt.embeddings.shape[0])
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


def _check_output(command: str, parsed: Command) -> None:
    """Raise UserError for output options that would fail after the evaluation."""
    if command == "predict":
        _check_predict(parsed)
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


def _check_predict(parsed: Command) -> None:
    config = parsed.config
    if config.format not in ("parquet", "csv"):
        raise UserError(f"unknown --format {config.format!r}: choose parquet or csv")
    if parsed.output is None:
        raise UserError("predict needs a folder for predictions.parquet: --output DIR")


def _predict(parsed: Command, model: PromptTuning) -> None:
    config, data = parsed.config, parsed.datamodule
    assert parsed.output is not None
    if config.input:
        data.set_predict_texts(load_texts(config.input, data.tasks[0]))
    model.keep_records = True
    with as_user_error("predict"):
        parsed.trainer.predict(model, datamodule=data, return_predictions=False)
    check_records(model)
    if not parsed.trainer.is_global_zero:
        return
    check_writable_dir(parsed.output)
    frame = _predictions(model, data)
    path = results.write(frame, parsed.output / f"predictions.{config.format}")
    write_provenance(parsed.output, "predict", parsed.plain_config(), data.digests())
    shown = frame.head(5)
    if "word" in frame and len(frame) <= MOST_LINES and frame["task"].nunique() == 1:
        texts = [frame[column] for column in ("text_a", "text_b") if column in frame]
        lines = [textwrap.shorten(" | ".join(row), 60, placeholder=" ...") for row in zip(*texts, strict=True)]
        shown = frame.assign(line=lines, p=frame.filter(regex="^p_").max(axis=1))[["line", "word", "p"]]
    elif "word" in frame:
        shown = frame.groupby(["task", "word"]).size().reset_index(name="rows")
    results.show([{str(key): value for key, value in row.items()} for row in shown.to_dict("records")])
    Console().print(f"{len(frame)} predictions in {path}", highlight=False, soft_wrap=True)


def _predictions(model: PromptTuning, data: TaskDataModule) -> pd.DataFrame:
    """Return the predictions in the order of the tasks' rows; columns as in `docs/pages/files.md`."""
    order = torch.cat([output["ids"] for output in model.records]).argsort().numpy()
    ids, task_ids = (
        torch.cat([output[name] for output in model.records]).numpy()[order] for name in ("ids", "task_ids")
    )
    frames = []
    for index, task in enumerate(model.tasks):
        mine = task_ids == index
        if not mine.any():
            continue
        rows = data.to_predict(index)
        place = {number: row for row, number in enumerate(rows["id"][:])}
        numbers = ids[mine] % (1 << ID_BITS)
        frame = pd.DataFrame({"id": numbers, "task": task.name})
        for column in ("text_a", "text_b"):
            texts = rows[column][:]
            if column == "text_a" or any(texts):
                frame[column] = [texts[place[number]] for number in numbers.tolist()]
        if task.is_generation:
            written = np.array([text for output in model.records for text in output["texts"]], dtype=object)
            frame["text"] = written[order][mine]
        else:
            probabilities = torch.cat([output["probabilities"] for output in model.records]).float().numpy()
            frame = frame.join(_answers(task, probabilities[order][mine]))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _answers(task: Task, probabilities: np.ndarray) -> pd.DataFrame:
    """Return one row per example: `label` (class), `answer` (the task's label), `word`, and `p_<word>` per class."""
    words, own = task.label_words, task.labels or range(task.num_classes)
    labels = probabilities[:, : len(words)].argmax(axis=1)
    named = [np.array(values, dtype=object)[labels].astype(str) for values in (own, words)]
    frame = pd.DataFrame({"label": labels, "answer": named[0], "word": named[1]})
    for column, word in enumerate(words):
        frame[f"p_{word}"] = probabilities[:, column]
    return frame
