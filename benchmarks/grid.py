"""Run `fit` for each point of a small grid, varying one option at a time, and write the best validation scores.

    python benchmarks/grid.py --root ../shared/data --output results/sst2_grid.csv --jobs 2

An interrupted grid resumes: finished runs are not repeated.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.commands.parsing import call
from prompt_transfer.utils import results

BASE = {
    "model.learning_rate": "0.003",
    "model.prompt_length": "20",
    "model.layout": "prefix",
    "model.attention": "full",
    "model.reparameterization": "Plain",
    "model.init": "Vocabulary",
    "data.batch_size": "32",
}
VARIED = {
    "model.learning_rate": ["0.001", "0.01", "0.03"],
    "model.attention": ["shared"],
    "model.layout": ["mask_first"],
    "model.reparameterization": ["ResidualMLP", "LowRank", "Superposition"],
    "model.prompt_length": ["50"],
    "model.init": ["Normal"],
}


def shipped_version() -> str:
    """Return eight hex digits that identify the built-in backbone's weights."""
    weights = builtin_backbones()["roberta-nano"] / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:8]


def points(seeds: int) -> list[dict[str, str]]:
    """Return the base point and all points that differ from it in one option, for each seed."""
    varied = [BASE] + [BASE | {option: value} for option, values in VARIED.items() for value in values]
    return [point | {"seed_everything": str(seed)} for seed in range(seeds) for point in varied]


def run(point: dict[str, str], task: str, root: str, steps: int, folder: Path) -> dict[str, object]:
    """Return the score of one point, read from its folder if it has finished."""
    name = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items() if BASE.get(key) != value)
    # The name includes everything that affects the score; otherwise a finished run could be mistaken for another.
    place = folder / "-".join(part for part in (task, str(steps), shipped_version(), name) if part)
    seconds = None
    if not (place / "results.csv").is_file():
        arguments = [part for key, value in point.items() for part in (f"--{key}", value)]
        command = [sys.executable, "-m", "prompt_transfer", "fit", "--data.task", task, "--data.source", "local"]
        command += ["--data.root", root, "--trainer.max_steps", str(steps), "--trainer.enable_progress_bar", "false"]
        command += [*arguments, "--output", str(place), "--overwrite"]
        started = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
        seconds = round(time.perf_counter() - started, 1)
    row = pd.read_csv(place / "results.csv").iloc[0]
    print(f"{name}: {row['value']:.3f}", flush=True)
    facts = {key.rpartition(".")[2]: value for key, value in point.items()}
    keys = ("task", "backbone", "split", "metric", "value", "majority", "n", "best_step")
    return facts | {key: row[key] for key in keys} | {"steps": steps, "seconds": seconds}


def grid(
    root: str, output: str, task: str = "sst2", steps: int = 300, seeds: int = 1, jobs: int = 1, runs: str = "runs/grid"
) -> None:
    """Score every point of the grid.

    Args:
        root: folder of local data.
        output: table, .csv or .parquet.
        task: task name.
        steps: optimizer steps per run.
        seeds: number of seeds: 0 to seeds - 1.
        jobs: number of parallel runs, one thread each.
        runs: folder for the runs.
    """
    with ThreadPoolExecutor(jobs) as pool:
        rows = list(pool.map(lambda point: run(point, task, root, steps, Path(runs)), points(seeds)))
    results.write(results.table(rows), output)
    shown = (
        "learning_rate",
        "prompt_length",
        "layout",
        "attention",
        "reparameterization",
        "init",
        "batch_size",
        "value",
    )
    results.show(sorted(rows, key=lambda row: -float(str(row["value"]))), columns=shown)


if __name__ == "__main__":
    call(grid, "grid", sys.argv[1:])
