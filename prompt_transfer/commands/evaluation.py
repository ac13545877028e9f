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

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands.lightning import CONFIG_FILE, RESULTS_FILE, Command, as_user_error
from prompt_transfer.commands.parsing import find_value, program
from prompt_transfer.data.baselines import majority_class, trivial_answers
from prompt_transfer.data.choices import chosen_options
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.texts import load_texts
from prompt_transfer.data.tokens import ID_BITS
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.prompts.reparameterizations import Plain
from prompt_transfer.studies.entries import changed_format
from prompt_transfer.tasks.metrics import bootstrap_mean_interval, bootstrap_metric_interval, example_scores
from prompt_transfer.tasks.registry import Task
from prompt_transfer.tracking.options import WandbOptions
from prompt_transfer.tracking.studies import publish
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import LayoutKindError, UserError
from prompt_transfer.utils.files import check_writable_dir, prove_writable_dir
from prompt_transfer.utils.provenance import write_provenance

# Print every prediction of a text file of up to this many lines.
MOST_LINES = 20


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer validate | test | predict`."""
    path = find_value(arguments, "--prompt")
    if path is None:
        if {"-h", "--help"} & set(arguments):
            Command(command, arguments)
        raise UserError(f"{command} needs a prompt: --prompt FILE (prompt-transfer prompts list DIR lists files)")
    prompt = Prompt.load(path)
    try:
        parsed = Command(command, _with_prompt(arguments, prompt, path))
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
    _check_output(command, parsed)
    model = parsed.model
    assert isinstance(model, PromptTuning)
    model.calibrate, model.label_source = bool(parsed.config.calibrate), prompt
    prompt.check(model.backbone, model.backbone.layout.name, model.backbone.attention)
    _warn_changed_words(prompt, parsed.datamodule.tasks, model.backbone)
    _warn_unfinished(prompt)
    if command == "predict":
        _predict(parsed, model)
    else:
        _score(command, parsed, model, path)


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
    for key in ("label_words", "max_length", "seed", "special_tokens", "template", "chat_template"):
        if facts.get(f"data_{key}"):
            first += [f"--data.{key}={facts[f'data_{key}']}"]
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
            model.use_label_words()
        model.records = []
        with as_user_error(command):
            verb(model, datamodule=data, verbose=False)
        _check_records(model)
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
        what = "best position" if task.is_choice else "majority class"
        row = {**common, "what": what, "n": len(data.selection.rows(split, index))}
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
        kinds = ("scores",) if task.has_example_scores else ("predictions", "labels")
        answers = [column(name)[mine] for name in kinds]
        groups = column("groups")[mine] if task.group is not None else None
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
            if task.has_example_scores:
                row = _mean_row(row, answers[0][:, number])
            else:
                predictions, labels = answers
                row["low"], row["high"] = bootstrap_metric_interval(
                    metric, predictions, labels, task.num_classes, seed=0, groups=groups
                )
            rows.append(row)
    return rows


def _modes(model: PromptTuning) -> dict[str, Any]:
    """Return attention, layout, dtype and, if it is on, calibration, stored in every row for merged tables."""
    backbone = model.backbone
    modes = {"attention": backbone.attention, "layout": backbone.layout.name, "dtype": backbone.dtype_name}
    return {**modes, "calibrated": True} if model.calibrate else modes


def _check_records(model: PromptTuning) -> None:
    if not model.records:
        raise UserError("nothing was evaluated: --trainer.limit_..._batches leaves no batch, raise it")


def _check_strategy(parsed: Command) -> None:
    """Raise UserError for strategies whose processes cannot return results."""
    strategy = str(parsed.config.trainer.strategy)
    if "fork" in strategy or "spawn" in strategy or "notebook" in strategy:
        raise UserError(f"--trainer.strategy {strategy} cannot return predictions: use ddp")


def _check_output(command: str, parsed: Command) -> None:
    """Raise UserError for output options that would fail after the evaluation."""
    if command == "predict":
        _check_predict(parsed)
    if parsed.output is None:
        if parsed.config.logger == "wandb":
            raise UserError(f"--logger wandb logs the output folder of {command}: give --output DIR")
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
    _check_records(model)
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
        elif task.is_choice:
            given = [row for output in model.records for row in output["options"]]
            mine_given = [given[number] for number in order[mine].tolist()]
            frame = frame.assign(**chosen_options([rows["choices"][place[number]] for number in numbers], mine_given))
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
