"""Every table of `make bench` on a GPU, with small settings, in at most ten minutes.

    python benchmarks/gpu.py --output results/benchmarks/gpu
    python benchmarks/gpu.py --dry_run true

The reports are those of the scripts that `make bench` runs; the tables are printed. A table that is not finished in
time is named, and the exit status is 1. Not run on a GPU yet.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import table
import torch

from prompt_transfer.commands.parsing import call

# Report -> options of its script, cheapest first. The rest of the options are those of `make bench`.
COMMANDS = {
    "start_up": "--repeats 2",
    "cost": "--repeats 5",
    "many_prompts": "--dtype bfloat16 --repeats 1",
    "time_to_accuracy": "--learning_rates 0.03 --seeds 0 --steps 200 --own_steps 400 --dtype bfloat16",
    "training_step": "--models roberta,gpt2,t5 --steps 5",
}
# Scripts that read a real task.
READ_DATA = ("start_up", "time_to_accuracy", "training_step")


def commands(output: Path, data_root: str, device: str) -> dict[str, list[str]]:
    """Return the command of each report."""
    found = {}
    for name, options in COMMANDS.items():
        script = str(Path(__file__).with_name(f"{name}.py"))
        found[name] = [sys.executable, script, "--output", str(output / f"{name}.json"), *shlex.split(options)]
        found[name] += ["--device", device]
        if name in READ_DATA:
            # The race has no built-in sentences of its own to fall back on.
            real = (Path(data_root) / "sst2").is_dir()
            missing = ["--data_root", "null", "--task", "builtin_movies"] if name == "time_to_accuracy" else []
            found[name] += ["--data_root", data_root] if real else missing
    return found


def measure(wanted: dict[str, list[str]], seconds: float) -> dict[str, str]:
    """Run the commands one after the other and return why a report is missing, by name.

    Args:
        wanted: the command of each report.
        seconds: time for all of them.
    """
    end, missing = time.monotonic() + seconds, {}
    for name, command in wanted.items():
        print(f"{name}: {shlex.join(command)}", flush=True)
        try:
            ran = subprocess.run(command, timeout=max(0.1, end - time.monotonic()), stdout=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            missing[name] = "out of time"
            continue
        if ran.returncode:
            missing[name] = f"exit status {ran.returncode}"
    return missing


def run(
    output: str = "results/benchmarks/gpu",
    data_root: str = "../shared/data",
    minutes: float = 10.0,
    device: str = "cuda",
    dry_run: bool = False,
) -> None:
    """Measure, write JSON files and print their tables.

    Args:
        output: folder of the reports.
        data_root: folder with sst2/; built-in sentences without it.
        minutes: time for everything.
        device: cuda, or cpu to try the script.
        dry_run: only print the commands.
    """
    wanted = commands(Path(output), data_root, device)
    if dry_run:
        print("\n".join(shlex.join(command) for command in wanted.values()))
        return
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: no GPU found (torch.cuda.is_available() is False): use a machine with one")
    missing = measure(wanted, 60 * minutes)
    for name in wanted:
        file = Path(output) / f"{name}.json"
        if name not in missing:
            print(f"\n{table.PARTS[name](json.loads(file.read_text(encoding='utf-8')))}")
    if missing:
        raise SystemExit("error: no table of " + ", ".join(f"{name} ({reason})" for name, reason in missing.items()))


if __name__ == "__main__":
    call(run, "gpu", sys.argv[1:])
