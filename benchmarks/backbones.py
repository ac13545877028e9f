"""Scores of tuned prompts on every built-in backbone and real tasks, with random-prompt and model-free baselines.

    python benchmarks/backbones.py --root ../shared/data --output results/backbones

Every run is a `fit` and a `test` as a user would type them; `commands.txt` has the commands. Runs that are already in
the table are skipped.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pandas as pd

from prompt_transfer.cli import main
from prompt_transfer.commands.parsing import call
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils import results
from prompt_transfer.utils.files import write_text_atomic

CLASSES = ("sst2", "mrpc")
TEXTS = ("squad", "samsum")
ALL = ("roberta-nano", "bert-nano", "minilm-mlm", "gpt2-nano", "t5-nano")
WRITERS = ("gpt2-nano", "t5-nano")
COLUMNS = ["task", "backbone", "split", "metric", "what", "value", "low", "high", "n", "seed", "attention", "layout"]


def commands(
    task: str,
    backbone: str,
    root: str,
    folder: Path,
    steps: int,
    learning_rate: float | None = None,
    dtype: str | None = None,
) -> list[list[str]]:
    """Return the `fit` and `test` commands of one cell."""
    chosen_on, lengths, written = "2000", list[str](), list[str]()
    if get_task(task).is_generation:
        # Most answers are within 192 tokens; 300 generated texts are enough to select the step.
        chosen_on = "300"
        lengths = ["--data.max_length", "192", "--data.batch_size", "8"]
        written = ["--data.eval_batch_size", "50"]
    data = ["--data.task", task, "--data.source", "local", "--data.root", root, "--data.limit_eval", chosen_on]
    data += [*lengths, *written]
    budget = ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps // 4)]
    rate = ["--model.learning_rate", f"{learning_rate:g}"] if learning_rate else []
    weights = ["--model.dtype", dtype] if dtype else []
    fit = ["fit", "--model.backbone", backbone, *rate, *weights, *data, *budget, "--output", str(folder)]
    limits = ["--data.limit_eval", "2000", *written]
    test = [
        "test",
        "--prompt",
        str(folder),
        *weights,
        *limits,
        "--random_prompts",
        "3",
        "--output",
        str(folder / "test"),
    ]
    return [fit, test]


def run(
    root: str = "../shared/data",
    output: str = "results/backbones",
    runs: str = "runs/backbones",
    backbones: str = ",".join(ALL),
    tasks: str = ",".join((*CLASSES, *TEXTS)),
    steps: int = 600,
    text_steps: int = 1500,
    learning_rate: float | None = None,
    dtype: str | None = None,
) -> None:
    """Fill the table.

    Args:
        root: folder with the tasks in local form.
        output: folder of `results.csv` and `commands.txt`.
        runs: folder of the run folders.
        backbones: names, separated by commas.
        tasks: names, separated by commas.
        steps: optimizer steps per run.
        text_steps: optimizer steps for generation tasks.
        learning_rate: learning rate of the prompts; default: that of the backbone's family.
        dtype: dtype of the backbone's weights; default: float32.
    """
    place = Path(output)
    file = place / "results.csv"
    frames = [pd.read_csv(file)] if file.is_file() else []
    done = {(row.task, row.backbone) for frame in frames for row in frame.itertuples()}
    for task in tasks.split(","):
        for backbone in backbones.split(","):
            if (task, backbone) in done or (get_task(task).is_generation and backbone not in WRITERS):
                continue
            folder = Path(runs) / f"{task}-{backbone}"
            budget = text_steps if get_task(task).is_generation else steps
            lines = commands(task, backbone, root, folder, budget, learning_rate, dtype)
            for line in lines:
                extra = ["--overwrite"] if line[0] == "fit" else []
                if main([*line, *extra, "--trainer.enable_progress_bar", "false"]):
                    raise SystemExit(f"failed: prompt-transfer {shlex.join(line)}")
            frame = pd.read_csv(folder / "test" / "results.csv").assign(backbone=backbone)
            frames.append(frame[[column for column in COLUMNS if column in frame]])
            table = pd.concat(frames, ignore_index=True).sort_values(["task", "backbone"], kind="stable")
            results.write(table, file)
            said = place / "commands.txt"
            before = said.read_text() if said.is_file() else ""
            write_text_atomic(said, before + "".join(f"prompt-transfer {shlex.join(line)}\n" for line in lines))


if __name__ == "__main__":
    call(run, "backbones", sys.argv[1:])
