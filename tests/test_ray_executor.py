"""Sweeps on a Ray cluster of this machine: whole, with a worker that is killed, and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from prompt_transfer.prompts.prompt import Prompt

pytest.importorskip("ray", reason="Ray is not installed (pip install -e .[ray])")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parent.parent
WAIT = 1800.0  # on a machine with nothing else to do seconds are enough
# What differs between two ways to the same numbers.
OTHERWISE = ["seconds", "attempts"]


def sweep(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """The sweep `plan.yaml` of a folder, into its folder `out`; relative paths, so that tables name the same ones."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PROMPT_TRANSFER_CACHE"] = str(folder.parent / "cache")
    command = [sys.executable, "-m", "prompt_transfer", "sweep", "--config", "plan.yaml", "--output", "out", *more]
    return subprocess.Popen(command, cwd=folder, env=environment)


def plan(folder: Path, toy: Path, backbone: Path, runs: int) -> Path:
    """A sweep of tiny runs, each long enough to be killed in the middle."""
    folder.mkdir()
    content = {
        "fit": {
            "model": {"backbone": str(backbone), "prompt_length": 3, "learning_rate": 0.01},
            "data": {"task": str(toy), "batch_size": 4, "source": "local", "root": str(toy.parent)},
            "trainer": {"max_steps": 200, "val_check_interval": 20, "accelerator": "cpu"},
        },
        "grid": {"seed_everything": list(range(runs))},
        "name": "seed{seed_everything}",
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(content))
    return folder


def processes() -> Iterator[tuple[int, int, str]]:
    """Number, parent and command of all processes."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        yield int(place.name), parent, command


def fits(folder: Path) -> dict[int, int]:
    """Number -> parent of the runs of a folder."""
    found = {}
    for number, parent, command in processes():
        try:
            if " fit --config out/configs/" in command and Path(f"/proc/{number}/cwd").resolve() == folder:
                found[number] = parent
        except OSError:
            continue
    return found


def until(wanted: object, process: subprocess.Popen[bytes]) -> None:
    assert callable(wanted)
    deadline = time.monotonic() + WAIT
    while not wanted():
        assert process.poll() is None, "the sweep has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_worker_costs_only_its_run(tmp_path: Path, toy: Path, tiny_roberta: Path) -> None:
    here, there = (plan(tmp_path / name, toy, tiny_roberta, 12) for name in ("local", "ray"))
    process = sweep(there, "--executor", "ray", "--at_once", "2")
    try:
        until(lambda: list(there.glob("out/runs/*/checkpoints/last.ckpt")) and fits(there), process)
        victim, worker = next(iter(fits(there).items()))
        os.kill(worker, signal.SIGKILL)
        until(lambda: victim not in fits(there), process)
        assert process.wait(WAIT) == 0
    finally:
        process.kill()
    assert not fits(there)
    assert sweep(here).wait(WAIT) == 0
    tables = {}
    for folder in (here, there):
        states = pd.read_csv(folder / "out" / "sweep.csv")
        assert set(states["status"]) == {"done"}
        scores = pd.read_csv(folder / "out" / "results.csv")
        assert len(scores) == 12
        tables[folder] = states.drop(columns=OTHERWISE), scores
    for mine, other in zip(tables[here], tables[there], strict=True):
        pd.testing.assert_frame_equal(mine, other)
    attempts = pd.read_csv(there / "out" / "sweep.csv")["attempts"]
    assert sorted(attempts) == [1] * 11 + [2]
    for run in range(12):
        name = f"out/runs/seed{run}/prompt.safetensors"
        one, other = (Prompt.load(folder / name).embeddings for folder in (here, there))
        assert torch.equal(one, other)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_runs_end_with_their_sweep(tmp_path: Path, toy: Path, tiny_roberta: Path, how: signal.Signals) -> None:
    folder = plan(tmp_path / "ray", toy, tiny_roberta, 2)
    process = sweep(folder, "--executor", "ray", "--trainer.max_steps", "1000000")
    try:
        until(lambda: len(fits(folder)) == 2, process)
        process.send_signal(how)
        process.wait(WAIT)
        deadline = time.monotonic() + WAIT
        while fits(folder):
            assert time.monotonic() < deadline, "a run goes on without its sweep"
            time.sleep(0.1)
    finally:
        process.kill()
