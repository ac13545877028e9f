"""Scores of prompts and their baselines for `validate` and `test`: tables, printed and written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from prompt_transfer.commands import class_report
from prompt_transfer.commands.comparison import difference_rows, show_differences, summary_rows
from prompt_transfer.commands.lightning import Command, as_user_error
from prompt_transfer.commands.prompt_files import NamedPrompt, best_on_validation, selection_note
from prompt_transfer.data.baselines import majority_class, trivial_answers
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.reparameterizations import Plain
from prompt_transfer.tasks.metrics import bootstrap_mean_interval, bootstrap_metric_interval, example_scores
from prompt_transfer.tracking.options import LOGGERS
from prompt_transfer.tracking.studies import publish
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir
from prompt_transfer.utils.provenance import write_provenance

THIS, RANDOM = "this prompt", "random prompt"
CALIBRATED = "calibrated"
DIFFERENCES = "differences"


@dataclass(frozen=True)
class Answers:
    """What a prompt answers on a split, examples in the same order for every prompt.

    Attributes:
        rows: one result row per task and metric.
        records: `task_ids` [N], and `labels`, `predictions` [N], `probabilities` [N, C], or `scores` [N, metrics].
    """

    rows: list[dict[str, Any]]
    records: dict[str, NDArray[Any]]

    def of(self, task_index: int, name: str) -> NDArray[Any]:
        """Return the record `name` of a task's examples."""
        return self.records[name][self.records["task_ids"] == task_index]


def score(command: str, parsed: Command, model: PromptTuning, prompts: list[NamedPrompt]) -> None:
    """Score prompts, random prompts and the trivial baseline; print and write the tables.

    Args:
        prompts: the first is the one that the model is made for.
    """
    split = {"validate": "validation", "test": "test"}[command]
    trainer, data = parsed.trainer, parsed.datamodule
    model.keep_records = True
    found = []
    for number, one in enumerate(prompts):
        if number:
            use(model, one.prompt.values)
            model.label_source = one.prompt
        facts = {key: int(one.prompt.metadata[key]) for key in ("seed", "best_of") if _is_number(one.prompt, key)}
        found.append(_evaluate(parsed, model, split, {"what": THIS, "prompt": one.path, **facts}))
    drawn = []
    for number in range(1, parsed.config.random_prompts + 1):
        use(model, model.method.random(model.backbone, model.prompt_length, number))
        model.use_label_words()
        drawn += _evaluate(parsed, model, split, {"what": RANDOM, "prompt": f"random {number}", "seed": number}).rows
    best = best_on_validation(prompts) if command == "test" else None
    rows = [row for answers in found for row in answers.rows]
    summary = summary_rows([answers.rows for answers in found], best)
    rows += [*summary, *drawn]
    for index, task in enumerate(model.tasks):
        origin = next(row["split"] for row in rows if row["task"] == task.name)
        rows += _baseline(data, split, index, {"task": task.name, "split": origin, **_modes(model)})
    rows.sort(key=lambda row: [task.name for task in model.tasks].index(row["task"]))
    if not trainer.is_global_zero:
        return
    _show(rows, prompts, model)
    tables = {"results": rows}
    if len(prompts) > 1:
        tables[DIFFERENCES] = difference_rows(model.tasks, found)
        about = CALIBRATED if model.calibrate else ""
        show_differences(tables[DIFFERENCES], {one.path: one.name for one in prompts}, model.tasks, about)
    _show_notes(command, prompts, best)
    reports = class_report.tables(parsed.config.metrics, model.tasks, list(zip(prompts, found, strict=True)))
    class_report.show(reports, CALIBRATED if model.calibrate else "")
    if parsed.output:
        _write(command, parsed, model, {**tables, **reports})
        print(parsed.output)


def use(model: PromptTuning, values: torch.Tensor) -> None:
    """Replace the prompt of a model by the values of another one of its method."""
    model.reparameterization = Plain()
    model.build(model.method.to_vectors(values), torch.Generator())


def _is_number(prompt: Prompt, key: str) -> bool:
    # Metadata of other tools may hold anything.
    return prompt.metadata.get(key, "").isdecimal()


def _evaluate(parsed: Command, model: PromptTuning, split: str, facts: dict[str, Any]) -> Answers:
    """Score the model's current prompt; `facts` are columns of its rows."""
    verb = parsed.trainer.validate if split == "validation" else parsed.trainer.test
    model.records = []
    with as_user_error("validate" if split == "validation" else "test"):
        verb(model, datamodule=parsed.datamodule, verbose=False)
    check_records(model)
    names = [name for name, value in model.records[0].items() if isinstance(value, torch.Tensor)]
    records = {name: torch.cat([record[name] for record in model.records]).numpy() for name in names}
    order = records.pop("ids").argsort(kind="stable")
    answers = Answers([], {name: values[order] for name, values in records.items()})
    answers.rows.extend(_rows(parsed, model, split, facts, answers))
    return answers


def _rows(
    parsed: Command, model: PromptTuning, split: str, facts: dict[str, Any], answers: Answers
) -> list[dict[str, Any]]:
    data, rows = parsed.datamodule, []
    for index, task in enumerate(model.tasks):
        prefix = split if len(model.tasks) == 1 else f"{split}/{task.name}"
        for number, metric in enumerate(task.metrics):
            row = {
                "task": task.name,
                "backbone": model.backbone.id,
                "seed": parsed.config.seed_everything,
                **facts,
                "split": f"{split} ({data.data[index].origin[split]})",
                "metric": metric,
                "value": float(parsed.trainer.callback_metrics[f"{prefix}/{metric}"]),
                "n": len(answers.of(index, "task_ids")),
                **_modes(model),
            }
            if task.has_example_scores:
                row = _mean_row(row, answers.of(index, "scores")[:, number])
            else:
                predictions, labels = answers.of(index, "predictions"), answers.of(index, "labels")
                groups = answers.of(index, "groups") if task.group is not None else None
                row["low"], row["high"] = bootstrap_metric_interval(
                    metric, predictions, labels, task.num_classes, seed=0, groups=groups
                )
            rows.append(row)
    return rows


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


def _modes(model: PromptTuning) -> dict[str, Any]:
    """Return method, attention, layout, dtype and, if it is on, calibration, stored in every row for merged tables."""
    backbone = model.backbone
    modes = {"attention": backbone.attention, "layout": backbone.layout.name, "dtype": backbone.dtype_name}
    modes = {"method": model.method.name, **modes}
    return {**modes, "calibrated": True} if model.calibrate else modes


def check_records(model: PromptTuning) -> None:
    """Raise UserError if an evaluation had no batch."""
    if not model.records:
        raise UserError("nothing was evaluated: --trainer.limit_..._batches leaves no batch, raise it")


def check_class_metrics(parsed: Command) -> None:
    """Parse `--metrics`.

    Raises:
        UserError: an unknown name, or a task without classes.
    """
    parsed.config.metrics = class_report.parse(parsed.config.metrics, parsed.datamodule.tasks)


def _show(rows: list[dict[str, Any]], prompts: list[NamedPrompt], model: PromptTuning) -> None:
    labels = {(task.name, name): task.metric_label(name) for task in model.tasks for name in task.metrics}
    names = {one.path: one.name for one in prompts} if len(prompts) > 1 else {}
    shown = []
    for row in rows:
        what = names.get(row.get("prompt", ""), row["what"]) if row["what"] == THIS else row["what"]
        more = {"what": what, "metric": labels[row["task"], row["metric"]], "scores": CALIBRATED}
        shown.append({**row, **more})
    about = ("task", "split", "metric", *(("scores",) if model.calibrate else ()))
    columns = (*about, "what", "value", *(("std",) if names else ()), "low", "high", "n")
    results.show(shown, columns=columns, data=rows, common=about)


def _show_notes(command: str, prompts: list[NamedPrompt], best: int | None) -> None:
    """Print what was selected on which split."""
    for one in prompts:
        if (note := selection_note(one)) is not None:
            print(note)
    if len(prompts) < 2:
        return
    if command == "validate":
        print("the highest of these scores is biased upwards: it would be selected on the split that is scored")
    elif best is not None:
        print(f"best on validation: {prompts[best].name}, selected by the validation score of its training")


def _write(command: str, parsed: Command, model: PromptTuning, tables: dict[str, list[dict[str, Any]]]) -> None:
    assert parsed.output is not None
    check_writable_dir(parsed.output)
    # Files of an earlier evaluation in this folder would be taken for those of this one.
    for path in (parsed.output / f"{DIFFERENCES}.csv", *class_report.files(parsed.output)):
        path.unlink(missing_ok=True)
    for name, rows in tables.items():
        frame = pd.DataFrame(rows) if name in class_report.CLASS_METRICS else results.table(rows)
        for suffix in ("csv", "parquet") if name == "results" else ("csv",):
            results.write(frame, parsed.output / f"{name}.{suffix}")
    class_report.draw(tables, parsed.output)
    write_provenance(parsed.output, command, parsed.plain_config(), parsed.datamodule.digests())
    name = parsed.config.logger
    if name in LOGGERS:
        options = {key: value for key, value in parsed.plain_config().items() if key not in ("logger", *LOGGERS)}
        given = {**options, "backbone": model.backbone.id, "task": "+".join(task.name for task in model.tasks)}
        publish(command, given, LOGGERS[name](**vars(parsed.config[name])))
