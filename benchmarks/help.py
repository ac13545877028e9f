"""Time of help pages and of answers to typing errors in options and values, cold and warm.

    python benchmarks/help.py --output results/benchmarks/help.json --drop

Each command runs in a process of its own, with the interpreter of this script. *Cold*: with `--drop` after the system's
file cache was dropped (root on an idle Linux machine: it slows all other programs), else after the compiled files of
the package were removed. *Warm*: the median of the following runs. The lines of each page are counted too.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "--help", "tasks --help", "neurons --help", "analyze --help", "prompts --help", "transfer --help",
    "neurons mask --help", "sweep --help", "fit --help", "fit --help_trainer", "test --help", "pretrain --help",
    "fitt", "neurons captur", "fit --model.promt_length 3", "transfer --promts x", "neurons mask --ratois 0.1",
    "fit --data.task sst9", "fit --model.dtype bf17 --data.task sst2", "fit --model.init Vocabluary",
    "transfer --backbone roberta-nano --prompts . --tasks builtin_bookz --output NOFOLDER",
    "transfer --backbone roberta-nano --prompts NOFOLDER --tasks builtin_books --output NOFOLDER", "report NOFOLDER",
)  # fmt: skip
COLD = ("compiled files of the package removed", "file cache dropped")


def clear(drop: bool) -> None:
    """Empty the system's file cache, or remove the package's compiled files."""
    if drop:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    else:
        for folder in (ROOT / "prompt_transfer").rglob("__pycache__"):
            shutil.rmtree(folder, ignore_errors=True)


def timed(command: str) -> tuple[float, int]:
    """Run a command; return its seconds and the lines that it printed."""
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "prompt_transfer", *command.split()],
        capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode not in (0, 2):
        raise RuntimeError(f"{command} has failed:\n{done.stderr[-2000:]}")
    return seconds, len((done.stdout or done.stderr).splitlines())


def run(output: str, repeats: int = 5, drop: bool = False) -> None:
    """Measure and write a JSON file.

    Args:
        output: the file.
        repeats: warm runs of each command.
        drop: drop the system's file cache before each cold run.
    """
    from common import facts, write

    from prompt_transfer.utils import results

    report = facts("help pages and answers to typing errors", repeats=repeats)
    rows: list[dict[str, Any]] = []
    for command in COMMANDS:
        clear(drop)
        cold, lines = timed(command)
        warm = statistics.median(timed(command)[0] for _ in range(repeats))
        rows.append({"command": command, "cold": round(cold, 3), "warm": round(warm, 3), "lines": lines})
    write(output, {**report, "cold": COLD[drop], "rows": rows})
    results.show(rows, "seconds")


if __name__ == "__main__":
    from prompt_transfer.commands.parsing import call

    call(run, "help", sys.argv[1:])
