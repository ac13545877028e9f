"""Crash safety: SIGKILL `fit`, `transfer` and `sweep` at random moments, restart them and compare the results.

    python benchmarks/kill.py --kills 20 --output results/benchmarks/kill.json

Each command first runs undisturbed. For each kill, it is started in an empty folder, killed at a random moment and
restarted with the same arguments until it finishes. After each kill every file must be readable; in the end all results
must equal those of the undisturbed run: prompts bit for bit, tables except for columns of seconds. The report has the
cost of each kill: the seconds of both starts minus those of the undisturbed run. Tasks are small and built in.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image

from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.prompts.prompt import Prompt

ROOT = Path(__file__).resolve().parent.parent
OUT = "out"
# Columns that a kill may change.
TIMES = ("seconds", "attempts")
# Files whose last line may be truncated; resuming ignores it.
BY_LINE = (".log",)
TRIES = 10

SMALL = {
    "model": {"backbone": "roberta-nano", "prompt_length": 5},
    "data": {"batch_size": 8, "max_length": 32, "limit_train": 400, "limit_eval": 200},
    "trainer": {"accelerator": "cpu", "max_steps": 60, "val_check_interval": 10, "enable_progress_bar": False},
}
SWEEP = {
    "fit": SMALL | {"convergence": True},
    "grid": {"data.task": ["builtin_movies", "builtin_books"]},
    "name": "{data.task}",
    "then": [
        {
            "transfer": {
                "backbone": "roberta-nano", "prompts": "{runs}", "tasks": "{data.task}", "random_prompts": 1,
                "data.limit_eval": 200, "output": "{output}/transfer", "accelerator": "cpu",
            }
        }
    ],
}  # fmt: skip
FIT = ["fit", "--config", "fit.yaml", "--data.task", "builtin_movies", "--convergence"]
COMMANDS = {
    "fit": [*FIT, "--output", OUT, "--resume"],
    "transfer": [
        "transfer", "--backbone", "roberta-nano", "--prompts", "prompts", "--tasks",
        "builtin_movies,builtin_restaurants,builtin_books", "--data.limit_eval", "600", "--accelerator", "cpu",
        "--output", OUT,
    ],
    "sweep": ["sweep", "--config", "sweep.yaml", "--output", OUT],
}  # fmt: skip


@dataclass
class Place:
    """Working folder of a command; its output is `out` there, which makes paths in tables equal between runs."""

    folder: Path
    environment: dict[str, str]

    def start(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        """Start `prompt-transfer` with its output in `printed.txt`."""
        with (self.folder / "printed.txt").open("ab") as printed:
            return subprocess.Popen(
                [sys.executable, "-m", "prompt_transfer", *arguments], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def finish(self, arguments: list[str]) -> float:
        """Run the command to its end and return the seconds.

        Raises:
            RuntimeError: the command failed.
        """
        began = time.monotonic()
        process = self.start(arguments)
        if process.wait():
            raise RuntimeError(
                f"prompt-transfer {' '.join(arguments)} failed in {self.folder} (kept):\n"
                + (self.folder / "printed.txt").read_text(errors="replace")[-2000:]
            )
        return time.monotonic() - began

    def kill(self, arguments: list[str], moment: float) -> tuple[bool, float]:
        """Start the command, kill it after `moment` seconds; return whether it was still running, and the seconds."""
        began = time.monotonic()
        process = self.start(arguments)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        return process.returncode == -signal.SIGKILL, time.monotonic() - began


def files(folder: Path) -> Iterator[Path]:
    """Yield all files except unfinished temporary ones."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield path


def check_readable(folder: Path) -> int:
    """Read every file below `folder` and return their number.

    Raises:
        RuntimeError: a file cannot be read.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        ".ckpt": lambda path: torch.load(path, weights_only=True),
        ".safetensors": lambda path: (ProjectorFile if path.stem == "projector" else Prompt).load(path),
        ".parquet": pd.read_parquet,
        ".csv": pd.read_csv,
        ".json": lambda path: json.loads(path.read_text()),
        ".yaml": lambda path: yaml.safe_load(path.read_text()),
        ".npz": lambda path: dict(np.load(path)),
        ".png": lambda path: Image.open(path).load(),
    }
    read = list(files(folder))
    for path in read:
        by_line = path.suffix in BY_LINE or path.parent.name == "logs"
        try:
            path.read_bytes() if by_line else readers[path.suffix](path)
        except Exception as error:
            raise RuntimeError(f"{path} (kept) cannot be read after a kill: {error}") from error
    return len(read)


def numbers(folder: Path) -> dict[str, Any]:
    """Return the results of a command: file name -> its tensors, or its table without times."""
    found: dict[str, Any] = {}
    for path in files(folder):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            prompt = Prompt.load(path)
            found[name] = {"embeddings": prompt.embeddings, "initial": prompt.initial}
        elif path.suffix in (".csv", ".parquet"):
            frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
            found[name] = frame.drop(columns=[column for column in TIMES if column in frame])
    return found


def check_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise RuntimeError naming the first file that differs between two runs."""
    if set(found) != set(expected):
        raise RuntimeError(f"files differ: {sorted(set(found) ^ set(expected))}")
    for name, value in expected.items():
        try:
            if isinstance(value, pd.DataFrame):
                pd.testing.assert_frame_equal(found[name], value, check_exact=True)
            else:
                torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        except AssertionError as error:
            raise RuntimeError(f"{name} differs from the undisturbed run: {error}") from error


class Trials:
    """Kills of one command.

    Args:
        name: name of the command.
        scratch: folder for all files.
        environment: environment variables of all processes.
    """

    def __init__(self, name: str, scratch: Path, environment: dict[str, str]) -> None:
        self.name, self.arguments = name, COMMANDS[name]
        self.scratch, self.environment = scratch / name, environment
        self.whole = self.place("whole")
        # Warm the token and byte-code caches, which a restart finds filled.
        self.place("warm").finish(self.arguments)
        self.undisturbed = self.whole.finish(self.arguments)
        self.expected = numbers(self.whole.folder / OUT)

    def place(self, name: str) -> Place:
        """Create a fresh folder with the command's inputs."""
        folder = self.scratch / name
        folder.mkdir(parents=True)
        (folder / "fit.yaml").write_text(yaml.safe_dump(SMALL))
        (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
        if self.name == "transfer":
            shutil.copytree(self.scratch.parent / "prompts", folder / "prompts")
        return Place(folder, self.environment)

    def run(self, kills: int, generator: random.Random) -> dict[str, Any]:
        """Kill the command once in each of `kills` equal intervals of its duration; return a row of the report.

        Raises:
            RuntimeError: a file cannot be read, the restarted command fails, or its results differ.
        """
        rows = [self.one(number, kills, generator) for number in range(kills)]
        lost = [row["seconds_lost"] for row in rows]
        return {
            "command": self.name,
            "kills": len(rows),
            "files_read_after_kills": sum(row["files_then"] for row in rows),
            "files_compared_in_the_end": len(rows) * len(self.expected),
            "seconds_undisturbed": round(self.undisturbed, 2),
            "seconds_lost_median": round(statistics.median(lost), 2),
            "seconds_lost_max": round(max(lost), 2),
            "each": rows,
        }

    def one(self, number: int, kills: int, generator: random.Random) -> dict[str, Any]:
        """Kill the command once, then restart it until it finishes."""
        for attempt in range(TRIES):
            place = self.place(f"kill{number}-{attempt}")
            moment = self.undisturbed * (number + generator.random()) / kills
            at_work, killed = place.kill(self.arguments, moment)
            if at_work:
                break
            # It finished faster than the undisturbed run, which other load may have slowed down.
            self.undisturbed = min(self.undisturbed, killed)
            shutil.rmtree(place.folder)
        else:
            raise RuntimeError(f"{self.name} always ends before it can be killed")
        readable = check_readable(place.folder / OUT) if (place.folder / OUT).is_dir() else 0
        rest = place.finish(self.arguments)
        check_readable(place.folder / OUT)
        check_equal(numbers(place.folder / OUT), self.expected)
        shutil.rmtree(place.folder)
        lost = killed + rest - self.undisturbed
        print(f"{self.name}: killed after {killed:.1f} s, resumed for {rest:.1f} s, equal results", flush=True)
        return {"killed_after": round(killed, 2), "files_then": readable, "seconds_lost": round(lost, 2)}


def run(output: str, kills: int = 20, commands: str = "fit,transfer,sweep", seed: int = 0, threads: int = 1) -> None:
    """Kill, resume, compare, and write a JSON file.

    Args:
        output: the file.
        kills: number of kills per command.
        commands: any of fit, transfer and sweep, separated by commas.
        seed: seed of the random moments.
        threads: number of torch threads.
    """
    from common import facts, write

    from prompt_transfer.commands.parsing import split_list
    from prompt_transfer.utils import results

    report = facts("SIGKILL at random moments, then the same command again", kills=kills, seed=seed, threads=threads)
    scratch = Path(tempfile.mkdtemp(prefix="prompt_transfer_kill_"))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PROMPT_TRANSFER_CACHE": str(scratch / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    generator, rows = random.Random(seed), []
    for name in split_list(commands):
        if name == "transfer":
            made = scratch / "prompts"
            made.mkdir()
            (made / "fit.yaml").write_text(yaml.safe_dump(SMALL))
            Place(made, environment).finish([*FIT, "--output", "movies"])
        rows.append(Trials(name, scratch, environment).run(kills, generator))
        # Written after each command, in case this script is interrupted.
        write(output, {**report, "rows": rows})
    shutil.rmtree(scratch)
    results.show([{key: value for key, value in row.items() if key != "each"} for row in rows])


if __name__ == "__main__":
    from prompt_transfer.commands.parsing import call

    call(run, "kill", sys.argv[1:])
