"""`quickstart`: train and reuse a prompt offline, in minutes."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.commands.parsing import call, program
from prompt_transfer.commands.table import find
from prompt_transfer.utils.errors import UserError

# Both tasks have the label words "terrible" and "great": a prompt for films also applies to restaurants.
SOURCE, TARGET = "builtin_movies", "builtin_restaurants"


DEFAULT_OUTPUT, RESULT = "runs/quickstart", "quickstart.csv"


@dataclass(frozen=True)
class Budget:
    """The budget of a quick start.

    Attributes:
        steps: optimizer steps.
        random_prompts: number of random-prompt baselines.
        options: further options of `fit`.
    """

    steps: int
    random_prompts: int
    options: tuple[str, ...] = ()


BUILTIN = Budget(500, 3)
# A model of 135 M parameters takes seconds per step on one core.
PRETRAINED = Budget(60, 1, ("--data.batch_size", "16", "--trainer.val_check_interval", "30"))


def quickstart(
    output: str = DEFAULT_OUTPUT, steps: int | None = None, seed: int = 0, backbone: str = "roberta-nano"
) -> None:
    """Train a prompt on one built-in task and use it unchanged on another.

    Args:
        output: folder for prompt, tables and figure; an earlier quick start there is replaced.
        steps: optimizer steps; null: 500 for a built-in backbone, 60 for others.
        seed: seed of initialization and data order.
        backbone: a built-in or named backbone, e.g. `smollm2-135m` (see `prompt-transfer backbones list`).
    """
    import pandas as pd

    from prompt_transfer.analysis import captions, plots
    from prompt_transfer.utils import results

    started = time.monotonic()
    folder = Path(output)
    prompt = folder / "prompt.safetensors"
    budget = BUILTIN if backbone in builtin_backbones() else PRETRAINED
    fit = ["fit", "--config", "experiment/quickstart.yaml", "--trainer.max_steps", str(steps or budget.steps)]
    fit += [*_backbone_options(backbone), *budget.options]
    random = ["--random_prompts", str(budget.random_prompts)]
    _run([*fit, "--seed_everything", str(seed), "--output", str(folder), *_replace(folder)])
    tables = []
    for task in (SOURCE, TARGET):
        place = folder / task
        _run(["test", "--prompt", str(prompt), "--data.task", task, *random, "--output", str(place)])
        tables.append(pd.read_parquet(place / "results.parquet"))
    frame = pd.concat(tables, ignore_index=True)
    rows = summary(frame)
    results.write(pd.DataFrame(rows), folder / RESULT)
    majority = float(frame.loc[(frame.what == "majority class") & (frame.task == SOURCE), "value"].iloc[0])
    curve = plots.read_curve(folder / "logs" / "metrics.csv")
    ax = plots.learning_curve(curve, majority)
    figure = plots.save(ax, folder / "learning_curve.png", captions.LEARNING_CURVE)
    print()
    results.show(rows, title=f"accuracy on test sets, {backbone}, {time.monotonic() - started:.0f} s in all")
    print(f"prompt    {prompt}\ntable     {folder / RESULT}\nfigure    {figure}")
    name = program()
    print(f"next      inspect the prompt:   {name} prompts inspect {prompt}")
    print(f"          your own sentences:   {name} predict --prompt {prompt} --input FILE.txt --output DIR")
    print(f"          real data and models: see README.md, or {name} fit --help")


def summary(frame: Any) -> list[dict[str, Any]]:
    """Return one row per task: trained prompt, mean of the random prompts, majority class."""
    rows = []
    for task in (SOURCE, TARGET):
        mine = frame[(frame.task == task) & (frame.metric == "accuracy")].groupby("what")["value"].mean()
        rows.append(
            {
                "task": task,
                "use": "trained on it" if task == SOURCE else "zero-shot",
                "trained prompt": float(mine["this prompt"]),
                "random prompt": float(mine["random prompt"]),
                "majority": float(mine["majority class"]),
            }
        )
    return rows


def _backbone_options(name: str) -> list[str]:
    """Return the `fit` options of a backbone; large ones use bfloat16 on processors that support it."""
    if name == "roberta-nano":  # the configuration file's backbone
        return []
    options = ["--model.backbone", name]
    if name in builtin_backbones():
        return options
    import torch

    from prompt_transfer.backbones.config import is_emulated

    fast = not is_emulated("bfloat16", torch.device("cpu"))
    return [*options, *(["--model.dtype", "bfloat16"] if fast else [])]


def _replace(folder: Path) -> list[str]:
    """Return `--overwrite` for the folder of an earlier quick start, finished or not.

    Raises:
        UserError: the folder has other files.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return []
    if not (folder / RESULT).is_file() and folder != Path(DEFAULT_OUTPUT):
        raise UserError(f"{folder} has files that are not from a quick start: give another --output")
    return ["--overwrite"]


def _run(arguments: list[str]) -> None:
    """Print and run another command in this process."""
    print(f"$ {program()} {shlex.join(arguments)}", flush=True)
    find(arguments[0])(arguments[0], arguments[1:])


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer quickstart`."""
    call(quickstart, command, arguments)
