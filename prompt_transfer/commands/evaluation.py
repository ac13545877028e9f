"""`validate`, `test` and `predict`: evaluation of a prompt file."""

from __future__ import annotations

import json
import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prompt_transfer.commands.lightning import CONFIG_FILE, RESULTS_FILE, Command, as_user_error
from prompt_transfer.commands.own_data import Texts, own_options, take_texts
from prompt_transfer.commands.parsing import find_value, program
from prompt_transfer.commands.predicting import check_predict, check_records, predict
from prompt_transfer.data.baselines import majority_class, trivial_answers
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.own import defined_tasks
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.prompts.reparameterizations import Plain
from prompt_transfer.tasks.definition import stored_tasks
from prompt_transfer.tasks.metrics import bootstrap_mean_interval, bootstrap_metric_interval, example_scores
from prompt_transfer.tasks.registry import Task
from prompt_transfer.tracking.options import WandbOptions
from prompt_transfer.tracking.studies import publish
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import LayoutKindError, UserError
from prompt_transfer.utils.files import check_writable_dir, prove_writable_dir
from prompt_transfer.utils.provenance import write_provenance


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer validate | test | predict`."""
    texts, arguments = take_texts(arguments) if command == "predict" else (None, arguments)
    if command == "predict" and find_value(arguments, "--output") is None:
        # The predictions go to standard output.
        arguments = ["--trainer.enable_progress_bar=false", *arguments]
    path = find_value(arguments, "--prompt")
    if path is None:
        if {"-h", "--help"} & set(arguments):
            Command(command, arguments)
        raise UserError(f"{command} needs a prompt: --prompt FILE (prompt-transfer prompts list DIR lists files)")
    prompt = Prompt.load(path)
    try:
        with defined_tasks(stored_tasks(prompt.metadata, path)):
            parsed = Command(command, _with_prompt(arguments, prompt, path, texts is not None))
    except LayoutKindError as error:
        other = find_value(arguments, "--model.backbone")
        if other is None or find_value(arguments, "--model.layout") is not None:
            raise
        own = prompt.metadata.get("backbone", "another backbone")
        raise UserError(
            f"prompt {path}, trained on {own}, does not fit {other}: {error}. Use {own}, or project the prompt with "
            "`prompt-transfer prompts project`"
        ) from error
    _check_strategy(parsed)
    _check_output(command, parsed, texts)
    model = parsed.model
    assert isinstance(model, PromptTuning)
    prompt.check(model.backbone, model.backbone.layout.name, model.backbone.attention)
    _warn_changed_words(prompt, parsed.datamodule.tasks)
    _warn_unfinished(prompt)
    if command == "predict":
        predict(parsed, model, texts)
    else:
        _score(command, parsed, model, path)


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


def _with_prompt(arguments: list[str], prompt: Prompt, path: str, has_texts: bool = False) -> list[str]:
    """Return the arguments after the options in the prompt's metadata, which they override, and before the prompt.

    Args:
        has_texts: whether the texts to predict are given: only the task's label words are needed then, not its data.
    """
    facts = prompt.metadata
    has_texts = has_texts or find_value(arguments, "--input") is not None
    first: list[str] = []
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
    for key in ("label_words", "max_length", "seed", "special_tokens"):
        if facts.get(f"data_{key}") and (own is None or key != "label_words"):
            first += [f"--data.{key}", facts[f"data_{key}"]]
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


def _score(command: str, parsed: Command, model: PromptTuning, path: str) -> None:
    split = {"validate": "validation", "test": "test"}[command]
    trainer, data = parsed.trainer, parsed.datamodule
    verb = trainer.validate if split == "validation" else trainer.test
    names = ["this prompt"] + ["random prompt"] * parsed.config.random_prompts
    rows: list[dict[str, Any]] = []
    model.keep_records = True
    for number, name in enumerate(names):
        if number:
            shape = (model.prompt_length, model.backbone.hidden_size)
            model.reparameterization = Plain()
            model.build(random_prompt(model.backbone, shape, number), torch.Generator())
        model.records = []
        with as_user_error(command):
            verb(model, datamodule=data, verbose=False)
        check_records(model)
        rows += _rows(parsed, model, split, name, path if not number else f"random {number}")
    for index, task in enumerate(model.tasks):
        origin = next(row["split"] for row in rows if row["task"] == task.name)
        rows += _baseline(data, split, index, {"task": task.name, "split": origin, **_modes(model)})
    rows.sort(key=lambda row: [task.name for task in model.tasks].index(row["task"]))
    if not trainer.is_global_zero:
        return
    columns = ("task", "split", "metric", "what", "value", "low", "high", "n")
    results.show(rows, columns=columns, common=("task", "split", "metric"))
    if parsed.output:
        check_writable_dir(parsed.output)
        for suffix in ("csv", "parquet"):
            results.write(results.table(rows), parsed.output / f"results.{suffix}")
        write_provenance(parsed.output, command, parsed.plain_config(), data.digests())
        if parsed.config.logger == "wandb":
            options = {key: value for key, value in parsed.plain_config().items() if key not in ("wandb", "logger")}
            given = {**options, "backbone": model.backbone.id, "task": "+".join(task.name for task in model.tasks)}
            publish(command, given, WandbOptions(**vars(parsed.config.wandb)))
        print(parsed.output)


def _baseline(data: TaskDataModule, split: str, index: int, common: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows of the trivial baseline: the majority class, or the lead of the text for generation tasks."""
    task = data.tasks[index]
    if not task.is_generation:
        row = {**common, "what": "majority class", "n": sum(data.label_counts(split, index))}
        found = majority_class(data, split, index)
        return [{**row, "metric": name, "value": value} for name, value in found.items()]
    rows = data.selection.rows(split, index)
    scores = example_scores(task, trivial_answers(data.data[index], rows), rows["target"][:])
    return [_mean_row({**common, "what": "lead of the text", "metric": name}, scores[name]) for name in task.metrics]


def _mean_row(row: dict[str, Any], scores: np.ndarray) -> dict[str, Any]:
    low, high = bootstrap_mean_interval(scores, seed=0)
    return {**row, "value": float(scores.mean()), "low": low, "high": high, "n": len(scores)}


def _rows(parsed: Command, model: PromptTuning, split: str, what: str, path: str) -> list[dict[str, Any]]:
    data, rows = parsed.datamodule, []

    def column(name: str) -> np.ndarray:
        return torch.cat([record[name] for record in model.records]).numpy()

    task_ids = column("task_ids")
    for index, task in enumerate(model.tasks):
        prefix = split if len(model.tasks) == 1 else f"{split}/{task.name}"
        mine = task_ids == index
        answers = [column(name)[mine] for name in (("scores",) if task.is_generation else ("predictions", "labels"))]
        for number, metric in enumerate(task.metrics):
            row = {
                "task": task.name,
                "backbone": model.backbone.id,
                "prompt": path,
                "seed": parsed.config.seed_everything,
                "split": f"{split} ({data.data[index].origin[split]})",
                "metric": metric,
                "what": what,
                "value": float(parsed.trainer.callback_metrics[f"{prefix}/{metric}"]),
                "n": int(mine.sum()),
                **_modes(model),
            }
            if task.is_generation:
                row = _mean_row(row, answers[0][:, number])
            else:
                predictions, labels = answers
                row["low"], row["high"] = bootstrap_metric_interval(
                    metric, predictions, labels, task.num_classes, seed=0
                )
            rows.append(row)
    return rows


def _modes(model: PromptTuning) -> dict[str, str]:
    """Return attention, layout and dtype, stored in every row for merged tables."""
    backbone = model.backbone
    return {"attention": backbone.attention, "layout": backbone.layout.name, "dtype": backbone.dtype_name}


def _check_strategy(parsed: Command) -> None:
    """Raise UserError for strategies whose processes cannot return results."""
    strategy = str(parsed.config.trainer.strategy)
    if "fork" in strategy or "spawn" in strategy or "notebook" in strategy:
        raise UserError(f"--trainer.strategy {strategy} cannot return predictions: use ddp")


def _check_output(command: str, parsed: Command, texts: Texts | None) -> None:
    """Raise UserError for output options that would fail after the evaluation."""
    if command == "predict":
        check_predict(parsed, texts)
    if parsed.output is None:
        if parsed.config.logger == "wandb":
            raise UserError(f"--logger wandb logs the output folder of {command}: give --output DIR")
        return
    if command != "predict" and (parsed.output / CONFIG_FILE).exists() and (parsed.output / RESULTS_FILE).exists():
        raise UserError(
            f"{parsed.output} is a run folder, whose {RESULTS_FILE} would be overwritten: give another --output"
        )
    prove_writable_dir(parsed.output)
