"""Leak check: sample memory, open files, hooks, tensors, threads and child processes during a long `fit`.

    python benchmarks/soak.py --output results/soak.json      # 2,000 steps, an evaluation and a checkpoint every 50

The run is a `prompt-transfer fit` with log, best prompt and checkpoints, capturing neurons in every evaluation. Growth
compares the median of the last tenth of all samples with that of the tenth after the warm-up (the first quarter of the
steps).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from common import facts, write
from lightning.pytorch.callbacks import Callback

from prompt_transfer.callbacks.neurons import CaptureNeurons
from prompt_transfer.commands.training import FitCommand
from prompt_transfer.utils.allocation import keep_memory

MOST_GROWTH = 0.02
# Counts that must not grow after the warm-up.
CONSTANT = ("files", "hooks", "children", "threads", "tensors")


def rss_mib() -> float:
    """Return the resident memory of this process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def children() -> int:
    """Return the number of live child processes."""
    tasks = Path("/proc/self/task").glob("*/children")
    return sum(len(task.read_text().split()) for task in tasks)


def hooks(module: torch.nn.Module) -> int:
    """Return the number of hooks on a module and its submodules."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(part, kind)) for part in module.modules() for kind in kinds)


def sample(module: torch.nn.Module) -> dict[str, Any]:
    """Return the quantities that may grow."""
    return {
        "rss_mib": round(rss_mib(), 1),
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "hooks": hooks(module),
        "children": children(),
        "threads": threading.active_count(),
        # type() instead of isinstance(): reading __class__ of lazy objects imports their target.
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
    }


class Samples(Callback):
    """Callback that takes a sample every few steps, between evaluations."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: list[dict[str, Any]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every == 0:
            gc.collect()
            self.rows.append({"step": trainer.global_step, **sample(pl_module)})


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the growth of memory and of the constant counts, and whether the run passes."""
    count = len(rows)
    early = rows[count // 4 : count // 4 + max(1, count // 10)]
    late = rows[-max(1, count // 10) :]
    before, after = (statistics.median(row["rss_mib"] for row in part) for part in (early, late))
    # Counts fluctuate slightly; a leak shows if every late sample exceeds every early one.
    leaked = {name: min(row[name] for row in late) - max(row[name] for row in early) for name in CONSTANT}
    growth = after / before - 1
    return {
        "rss_mib_after_warm_up": before,
        "rss_mib_at_the_end": after,
        "growth": round(growth, 4),
        "leaked": leaked,
        "well": growth < MOST_GROWTH and all(number <= 0 for number in leaked.values()),
    }


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and sample; return the report without facts about the machine."""
    fit = FitCommand(
        "fit",
        [
            *("--model.backbone", options.backbone, "--data.task", options.task, "--model.prompt_length", "20"),
            *("--output", str(folder / "run"), "--trainer.max_steps", str(options.steps)),
            *("--trainer.val_check_interval", str(options.interval), "--trainer.enable_progress_bar", "false"),
            *("--data.num_workers", str(options.num_workers), "--data.limit_eval", str(options.limit_eval)),
        ],
    )
    samples = Samples(options.every)
    fit.trainer.callbacks += [samples, CaptureNeurons(folder / "neurons")]
    before, started = sample(fit.model), time.perf_counter()
    fit.trainer.fit(fit.model, datamodule=fit.datamodule)
    after = sample(fit.model)
    evaluations = len(list((folder / "neurons").glob("*.safetensors")))
    return {
        "steps": fit.trainer.global_step,
        "evaluations": evaluations,
        "seconds": round(time.perf_counter() - started, 1),
        **verdict(samples.rows),
        "before_the_run": before,
        "after_the_run": after,
        "samples": samples.rows,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default="results/soak.json")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--interval", type=int, default=50, help="steps between two evaluations")
    parser.add_argument("--every", type=int, default=20, help="steps between two samples")
    parser.add_argument("--backbone", default="roberta-nano")
    parser.add_argument("--task", default="builtin_movies")
    parser.add_argument("--limit_eval", type=int, default=200)
    parser.add_argument("--num_workers", type=int, default=1)
    options = parser.parse_args()
    keep_memory()
    report = facts("a long run of fit, sampled", options={**vars(options)})
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report |= soak(options, Path(folder))
    write(options.output, report)
    print(json.dumps({key: value for key, value in report.items() if key not in ("machine", "samples")}, indent=2))
    return 0 if report["well"] else 1


if __name__ == "__main__":
    sys.exit(main())
