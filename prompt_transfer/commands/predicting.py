"""`predict`: predictions as a table, for rows of a task or for new texts."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from prompt_transfer.commands.lightning import Command, as_user_error
from prompt_transfer.commands.own_data import Texts
from prompt_transfer.commands.scoring import check_records
from prompt_transfer.data.choices import chosen_options
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.texts import gold_answer, load_texts, typed_texts
from prompt_transfer.data.tokens import ID_BITS
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.tasks.registry import Task
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir
from prompt_transfer.utils.provenance import write_provenance

if TYPE_CHECKING:
    from datasets import Dataset

# Print every prediction of a text file of up to this many lines.
MOST_LINES = 20


FORMATS = ("parquet", "csv", "jsonl")


def check_predict(parsed: Command, texts: Texts | None) -> None:
    """Raise UserError for options that would fail after the prediction."""
    config = parsed.config
    if config.format not in (None, *FORMATS):
        raise UserError(f"unknown --format {config.format!r}: choose {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if parsed.output is None and texts is None and config.input != "-":
        raise UserError("predict needs a folder for predictions.parquet: --output DIR")
    if parsed.output is None and config.format == "parquet":
        raise UserError("--format parquet needs a folder: give --output DIR, or --format csv or jsonl")
    if texts is not None and len(texts.second) not in (0, len(texts.first)):
        raise UserError(f"{len(texts.first)} times --text and {len(texts.second)} times --text_b: give pairs")


def predict(parsed: Command, model: PromptTuning, texts: Texts | None = None) -> None:
    """Predict with the model's prompt, and write or print the predictions.

    Args:
        texts: texts of the command line, instead of `--input` or the task's rows.
    """
    config, data = parsed.config, parsed.datamodule
    if texts is not None:
        data.set_predict_texts(typed_texts(data.tasks[0], texts.first, texts.second))
    elif config.input:
        data.set_predict_texts(load_texts(config.input, data.tasks[0]))
    model.keep_records = True
    with as_user_error("predict"):
        parsed.trainer.predict(model, datamodule=data, return_predictions=False)
    check_records(model)
    if not parsed.trainer.is_global_zero:
        return
    frame = _predictions(model, data)
    if model.calibrate:
        frame["calibrated"] = True
    if parsed.output is None and config.format is not None:
        print(results.as_text(frame, f".{config.format}"), end="")
        results.keep(_records(frame))
        return
    _show(frame, every=parsed.output is None)
    if parsed.output is None:
        return
    check_writable_dir(parsed.output)
    path = results.write(frame, parsed.output / f"predictions.{config.format or FORMATS[0]}")
    write_provenance(parsed.output, "predict", parsed.plain_config(), data.digests())
    Console().print(f"{len(frame)} predictions in {path}", highlight=False, soft_wrap=True)


def _show(frame: pd.DataFrame, every: bool) -> None:
    """Print all predictions of a few texts, else how often each word was predicted.

    Args:
        every: print all predictions, however many.
    """
    gold = [name for name in ("gold",) if name in frame]
    texts = [frame[column] for column in ("text_a", "text_b") if column in frame]
    lines = [textwrap.shorten(" | ".join(row), 60, placeholder=" ...") for row in zip(*texts, strict=True)]
    shown = frame.head(5)
    few = len(frame) <= MOST_LINES and frame["task"].nunique() == 1
    if "word" not in frame and every:
        shown = frame.assign(line=lines)[["line", *gold, "text"]]
    elif "word" in frame and (few or every):
        shown = frame.assign(line=lines, p=frame.filter(regex="^p_").max(axis=1))[["line", *gold, "word", "p"]]
    elif "word" in frame:
        shown = frame.groupby(["task", "word"]).size().reset_index(name="rows")
    results.show(_records(shown), "calibrated probabilities" if "calibrated" in frame else None)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


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
        if (gold := _gold(task, rows)) is not None:
            frame["gold"] = [gold[place[number]] for number in numbers.tolist()]
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


def _gold(task: Task, rows: Dataset) -> list[str | None] | None:
    """Return the known answer of each row as text; None if the rows have no answers."""
    if "gold" in rows.column_names:
        return list(rows["gold"][:])
    if "label" in rows.column_names:
        return [str(task.class_labels[label]) for label in rows["label"][:]]
    return [gold_answer(task, value) for value in rows["target"][:]] if "target" in rows.column_names else None


def _answers(task: Task, probabilities: np.ndarray) -> pd.DataFrame:
    """Return one row per example: `prediction` and `answer` (the task's label), `label` (class), `word`, `p_<word>`."""
    words, own = task.label_words, task.class_labels
    labels = probabilities[:, : len(words)].argmax(axis=1)
    named = [np.array(values, dtype=object)[labels].astype(str) for values in (own, words)]
    # `answer` is the name of `prediction` in earlier releases.
    frame = pd.DataFrame({"prediction": named[0], "label": labels, "answer": named[0], "word": named[1]})
    for column, word in enumerate(words):
        frame[f"p_{word}"] = probabilities[:, column]
    return frame
