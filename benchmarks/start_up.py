"""Time from starting `fit` to the end of its first training step, by phase.

    python benchmarks/start_up.py --output results/benchmarks/start_up.json

Each run of `fit` is a process of its own; the first one fills the cache of tokenized rows and is not counted. The
report has medians of imports, option parsing, backbone loading, data and the first step; `rest` is everything else
(trainer, callbacks, files).
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = ("import", "parse", "load", "data", "first_step", "rest")
# Prefix of the line on which a run prints its times.
MARK = "start-up: "


def child(started: float, arguments: list[str]) -> None:
    """Run `fit` and time its phases."""
    from prompt_transfer.commands.table import find

    find("fit")
    import lightning as L
    import torch

    from prompt_transfer.backbones.frozen import FrozenBackbone
    from prompt_transfer.commands import training
    from prompt_transfer.data.datamodule import TaskDataModule

    seconds = dict.fromkeys(PARTS, 0.0)
    imported = time.time()
    seconds["import"] = imported - started

    def measure(owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def measured(*args: Any, **kwargs: Any) -> Any:
            began = time.time()
            try:
                return original(*args, **kwargs)
            finally:
                seconds[part] += time.time() - began

        setattr(owner, name, measured)

    measure(FrozenBackbone, "__init__", "load")
    measure(TaskDataModule, "setup", "data")
    # The parser is built from the signatures of all classes before it parses anything.
    measure(training.FitCommand, "setup_parser", "parse")
    measure(training.FitCommand, "parse_arguments", "parse")

    class FirstStep(L.Callback):
        """A callback that ends the process after the first step."""

        began = 0.0

        def on_train_batch_start(self, *args: Any) -> None:
            self.began = time.time()

        def on_train_batch_end(self, *args: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ended = time.time()
            seconds["first_step"] = ended - self.began
            seconds["rest"] = ended - started - sum(seconds.values())
            print(f"\n{MARK}{json.dumps({'total': ended - started, **seconds})}", flush=True)
            os._exit(0)

    own: Callable[[Any], list[L.Callback]] = training.FitCommand.extra_callbacks
    training.FitCommand.extra_callbacks = lambda self: [*own(self), FirstStep()]
    from prompt_transfer.cli import main

    sys.exit(main(["fit", *arguments]))


def run(
    output: str,
    backbone: str = "roberta-nano",
    task: str = "sst2",
    data_root: str = "../shared/data",
    repeats: int = 5,
    threads: int = 2,
    device: str = "cpu",
) -> None:
    """Measure and write a JSON file.

    Args:
        output: the file.
        backbone: name, folder or hub id.
        task: name of a task; builtin_movies if the folder does not contain it.
        data_root: folder with the task's data.
        repeats: number of measured runs, after a warm-up.
        threads: number of torch threads.
        device: cpu or cuda.
    """
    from common import facts, write

    from prompt_transfer.utils import results

    real = (Path(data_root) / task).is_dir()
    name = task if real else "builtin_movies"
    source = ["--data.source", "local", "--data.root", data_root] if real else []
    report = facts(
        "time from starting fit to the end of its first step, tokens cached", backbone=backbone, task=name,
        repeats=repeats, threads=threads, device=device,
    )  # fmt: skip
    taken: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ, "PROMPT_TRANSFER_CACHE": str(Path(scratch) / "cache"), "OMP_NUM_THREADS": str(threads),
        }  # fmt: skip
        for index in range(repeats + 1):
            options = ["--model.backbone", backbone, "--data.task", name, *source]
            options += ["--output", str(Path(scratch) / f"run{index}"), "--trainer.enable_progress_bar", "false"]
            options += ["--trainer.accelerator", "gpu" if device == "cuda" else device]
            done = subprocess.run(
                [sys.executable, __file__, "--child", repr(time.time()), *options],
                capture_output=True, text=True, env=environment,
            )  # fmt: skip
            lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
            if not lines:
                raise RuntimeError(f"fit ended before its first step:\n{done.stderr[-2000:]}")
            if index:
                taken.append(json.loads(lines[-1].removeprefix(MARK)))
    row = {part: statistics.median(each[part] for each in taken) for part in ("total", *PARTS)}
    write(output, {**report, "rows": [{"backbone": backbone, **row}]})
    results.show([row])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(float(sys.argv[2]), sys.argv[3:])
    else:
        from prompt_transfer.commands.parsing import call

        call(run, "start_up", sys.argv[1:])
