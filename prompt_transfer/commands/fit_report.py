"""Results of `fit`: one row per prompt and task, the mean over seeds, and the selection on validation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_transfer.callbacks.mlflow import finish
from prompt_transfer.commands.lightning import RESULTS_FILE
from prompt_transfer.commands.parsing import program
from prompt_transfer.commands.prompt_files import command_to_test
from prompt_transfer.commands.run_folders import CONVERGENCE_FILE, PROJECTOR_FILE, PROMPT_FILE
from prompt_transfer.data.baselines import trivial_score
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.cross_model_projector import CrossModelProjector
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.paired import spread
from prompt_transfer.utils import results

if TYPE_CHECKING:
    from prompt_transfer.commands.training import FitCommand

# Columns of a run's rows that a mean over seeds keeps.
KEPT = ("task", "backbone", "split", "metric", "majority", "lead", "n")


def report(fit: FitCommand, folder: Path) -> None:
    """Write and print the results of a finished run, and the command that follows."""
    model, data = fit.model, fit.datamodule
    assert isinstance(model, PromptTuning | CrossModelProjector)
    files = model.files if isinstance(model, PromptTuning) else ["projector"]
    rows = [row for name in files for row in _rows(fit, model, data, folder / f"{name}.safetensors")]
    results.write(results.table(rows), folder / RESULTS_FILE)
    if fit.tracker is not None:
        finish(fit.tracker, rows, folder, folder / CONVERGENCE_FILE)
    which = [*(("seed", "learning_rate") if len(files) > 1 else ()), *(("held_out",) if data.held_out else ())]
    columns = ("task", *which, "split", "metric", "value", *baselines_of(rows), "n", "best_step")
    labels = {(task.name, task.metric): task.metric_label(task.metric) for task in model.tasks}
    shown = [{**row, "metric": labels[row["task"], row["metric"]]} for row in rows]
    results.show(shown, columns=columns, data=rows, common=("task", "split"))
    if len(files) > 1:
        show_selection(rows, len(files), folder / PROMPT_FILE, labels)
    elif isinstance(model, PromptTuning):
        print(f"next: {program()} test --prompt {folder / PROMPT_FILE}")
    else:
        print(f"next: {program()} prompts project PROMPT --projector {folder / PROJECTOR_FILE} --output FILE")
    print(folder)


def baselines_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the baseline columns that any row has."""
    return [name for name in ("majority", "lead") if any(row.get(name) is not None for row in rows)]


def _rows(
    fit: FitCommand, model: PromptTuning | CrossModelProjector, data: TaskDataModule, path: Path
) -> list[dict[str, Any]]:
    """Return one row per task for a prompt or projector file; none if training failed before its first evaluation."""
    if not path.is_file():
        return []
    kind: type[Prompt] | type[ProjectorFile] = Prompt if isinstance(model, PromptTuning) else ProjectorFile
    facts, rows = kind.load(path).metadata, []
    scores = json.loads(facts.get("scores", "{}"))
    for index, task in enumerate(model.tasks):
        rows.append(
            {
                "task": task.name,
                "backbone": model.backbone.id,
                "seed": int(facts["seed"]),
                "split": f"validation ({data.data[index].origin['validation']})",
                "metric": task.metric,
                "value": scores.get(task.metric if len(model.tasks) == 1 else f"{task.name}/{task.metric}"),
                # The trivial baseline: the majority class, or the lead of each text.
                "majority": None,
                "lead" if task.is_generation else "majority": trivial_score(data, "validation", index),
                "n": len(data.selection.rows("validation", index)),
                "best_step": int(facts["steps"]),
                "prompt": str(path),
                **({"held_out": task.name in data.held_out} if data.held_out else {}),
                **({"method": model.method.name} if isinstance(model, PromptTuning) else {}),
                "attention": model.backbone.attention,
                "layout": model.backbone.layout.name,
                "dtype": model.backbone.dtype_name,
                "prompt_length": model.prompt_length,
                "learning_rate": facts["learning_rate"],
                **({} if data.selection.shots is None else {"shots": data.selection.shots.train}),
            }
        )
    return rows


def over_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per task and learning rate: mean `value` and `std` (sample standard deviation, n - 1) over seeds.

    `seeds` is the number of seeds with a score.

    Args:
        rows: one row per prompt and task (`results.csv` of `fit`).
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["value"] is not None:
            groups.setdefault((row["task"], row["learning_rate"]), []).append(row)
    found = []
    for (_, rate), mine in groups.items():
        mean, deviation = spread([row["value"] for row in mine])
        common = {key: mine[0][key] for key in KEPT if key in mine[0]}
        found.append({**common, "learning_rate": rate, "value": mean, "std": deviation, "seeds": len(mine)})
    return found


def show_selection(
    rows: Sequence[dict[str, Any]], asked: int, copy: Path, labels: Mapping[tuple[str, str], str]
) -> None:
    """Print the mean over seeds, the selection on validation, and the command that tests all seeds.

    Args:
        rows: one row per prompt and task.
        asked: number of prompts that the run was asked for.
        copy: the file with the best prompt on validation.
        labels: task and metric -> the metric's label.
    """
    means = over_seeds(rows)
    if not means:
        return
    rates = list(dict.fromkeys(row["learning_rate"] for row in means))
    paths = list(dict.fromkeys(row["prompt"] for row in rows))
    several = len(paths) > len(rates)
    if several:
        columns = ("task", "split", "metric", *(["learning_rate"] if len(rates) > 1 else []), "value", "std", "seeds")
        shown = [{**row, "metric": labels[row["task"], row["metric"]]} for row in means]
        title = "mean and standard deviation over seeds"
        results.show(shown, title, columns, data=means, common=("task", "split", "metric"))
    if len(paths) < asked:
        print(f"{asked - len(paths)} of {asked} prompts failed before their first evaluation and are in no mean")
    print(f"{copy} is the best of {len(paths)} prompts on validation: its validation score is biased upwards")
    # Seeds are compared at one learning rate, which validation selects by the mean over seeds.
    best = max(rates, key=lambda rate: _mean_of(means, rate))
    chosen = list(dict.fromkeys(row["prompt"] for row in rows if row["learning_rate"] == best))
    if len(rates) > 1:
        print(f"learning rate {best} has the highest mean of {len(rates)} on validation")
    print(f"next: {command_to_test(chosen)}")


def _mean_of(means: Sequence[dict[str, Any]], rate: str) -> float:
    values = [row["value"] for row in means if row["learning_rate"] == rate]
    return sum(values) / len(values)
