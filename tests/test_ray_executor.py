"""Runs on Ray: requests and handling of answers with a fake, and whole sweeps on a local cluster."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.sweep.executor import Outcome
from prompt_transfer.studies.sweep.plan import Run, State
from prompt_transfer.studies.sweep.ray_executor import RayExecutor, attempt, code_path, shared_environment
from prompt_transfer.utils import paths
from prompt_transfer.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
WAIT = 1800.0  # seconds suffice on an idle machine
# Columns that may differ between equivalent runs.
OTHERWISE = ["seconds", "attempts"]


# Set RAY_ADDRESS to use a running cluster; Ray's start may time out on a busy machine.
on_a_cluster = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -e .[ray]")


RUNS = [Run(name, {"data.task": name}, {}) for name in ("a", "b", "c", "d")]


class FakeRay(ModuleType):
    """A scripted stand-in for Ray: an outcome of `attempt`, or an error, for each start of a run."""

    def __init__(self, script: dict[str, list[Outcome | Exception]], machines: list[dict[str, float]]) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.exceptions = SimpleNamespace(RayError=RuntimeError)
        self.script, self.machines = script, machines
        self.started: list[str] = []
        self.running: list[str] = []
        self.most = 0
        self.asked: dict[str, Any] = {}
        self.cancelled: list[str] = []
        self.addresses: list[str] = []
        self.ended = False

    def init(self, address: str, **options: Any) -> None:
        self.addresses.append(address)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": machine} for machine in self.machines]

    def remote(self, *arguments: Any) -> Any:
        if callable(arguments[0]):
            return self
        self.started.append(arguments[1])
        self.running.append(arguments[1])
        self.most = max(self.most, len(self.running))
        return arguments[1]

    def options(self, **options: Any) -> FakeRay:
        self.asked = options
        return self

    def wait(self, jobs: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert jobs
        return jobs[:num_returns], jobs[num_returns:]

    def get(self, job: str) -> Outcome:
        self.running.remove(job)
        outcome = self.script[job].pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cancel(self, job: str) -> None:
        self.cancelled.append(job)

    def shutdown(self) -> None:
        self.ended = True


def fake(
    monkeypatch: pytest.MonkeyPatch, script: dict[str, list[Outcome | Exception]], *machines: dict[str, float]
) -> FakeRay:
    made = FakeRay(script, list(machines) or [{"CPU": 4.0}])
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return made


def test_a_crash_is_tried_again_and_a_mistake_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = RuntimeError("The worker died unexpectedly.\nSome advice of Ray's.")
    ray = fake(
        monkeypatch,
        {"a": [killed, Outcome(0, "", 2.0)], "b": [Outcome(2, "error: no", 1.0)], "c": [killed] * 2, "d": []},
    )
    states = [State(run.digest) for run in RUNS]
    states[3].status = "done"
    told: list[str] = []
    RayExecutor(tmp_path, 1, at_once=2).execute(RUNS, states, lambda run, state: told.append(run.name))
    assert sorted(ray.started) == ["a", "a", "b", "c", "c"]
    assert sorted(told) == ["a", "b", "c"]
    assert [(state.status, state.attempts, state.seconds) for state in states[:3]] == [
        ("done", 2, 2.0), ("failed", 1, 1.0), ("failed", 2, 0.0),
    ]  # fmt: skip
    assert [state.error for state in states[:3]] == ["", "error: no", "RuntimeError: The worker died unexpectedly."]
    assert State.read(tmp_path / "state" / "a.json", RUNS[0]) == states[0]
    assert (ray.most, ray.addresses, ray.ended) == (2, ["local"], True)
    assert ray.asked["max_retries"] == 0


def test_what_fails_here_ends_the_runs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = fake(monkeypatch, {name: [Outcome(0)] for name in "abcd"})

    def tell(run: Run, state: State) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RayExecutor(tmp_path, 1).execute(RUNS, [State(run.digest) for run in RUNS], tell)
    assert ray.cancelled == ["b", "c", "d"]
    assert ray.ended


@pytest.mark.parametrize(
    ("machines", "options", "asked"),
    [
        ([{"CPU": 4.0}], {}, (1.0, 0.0)),
        ([{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}], {}, (1.0, 1.0)),
        ([{"CPU": 4.0, "GPU": 1.0}], {"cpus": 2.0, "gpus": 0.5}, (2.0, 0.5)),
        ([{"CPU": 4.0, "GPU": 1.0}], {"gpus": 0.0}, (1.0, 0.0)),
    ],
)
def test_what_a_run_asks_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machines: list[dict[str, float]],
    options: dict[str, float],
    asked: tuple[float, float],
) -> None:
    ray = fake(monkeypatch, {"a": [Outcome(0)]}, *machines)
    RayExecutor(tmp_path, 0, **options).execute(RUNS[:1], [State(RUNS[0].digest)], lambda run, state: None)
    assert (ray.asked["num_cpus"], ray.asked["num_gpus"]) == asked


def test_a_run_asks_for_each_of_its_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("a", {"trainer.devices": 2, "trainer.strategy": "fsdp"}, {})
    for machine, options, asked in (
        ({"CPU": 8.0, "GPU": 4.0}, {}, (2.0, 2.0)),
        ({"CPU": 8.0}, {}, (2.0, 0.0)),
        ({"CPU": 8.0, "GPU": 4.0}, {"cpus": 6.0}, (6.0, 2.0)),
    ):
        ray = fake(monkeypatch, {"a": [Outcome(0)]}, machine)
        RayExecutor(tmp_path, 0, **options).execute([run], [State(run.digest)], lambda run, state: None)
        assert (ray.asked["num_cpus"], ray.asked["num_gpus"]) == asked
    fake(monkeypatch, {"a": [Outcome(0)]}, {"CPU": 8.0, "GPU": 1.0})
    with pytest.raises(UserError, match="no machine of the cluster has 2 CPUs and 2 GPUs for a run"):
        RayExecutor(tmp_path, 0).execute([run], [State(run.digest)], lambda run, state: None)


def test_more_than_any_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(address: str | None) -> None:
        executor = RayExecutor(tmp_path, 0, cpus=8.0, address=address)
        executor.execute(RUNS[:1], [State(RUNS[0].digest)], lambda run, state: None)

    ray = fake(monkeypatch, {"a": [Outcome(0)]})
    with pytest.raises(UserError, match="no machine of the cluster has 8 CPUs and 0 GPUs for a run: give fewer"):
        execute(None)
    # A cluster may grow.
    with pytest.warns(UserWarning, match="runs wait for one"):
        execute("10.0.0.1:6379")
    assert ray.addresses == ["local", "10.0.0.1:6379"]


def test_an_installed_package_needs_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_path({"PYTHONPATH": "/mine"}) == {"PYTHONPATH": f"{ROOT}{os.pathsep}/mine"}
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "site-packages" / "prompt_transfer")
    assert code_path({"PYTHONPATH": "/mine"}) == {}


def test_what_runs_take_along_to_other_machines() -> None:
    given = {
        "HF_HOME": "/shared/hf", "HF_TOKEN": "secret", "WANDB_API_KEY": "secret", "WANDB_MODE": "offline",
        "PROMPT_TRANSFER_DATA": "/shared", "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false", "PATH": "/bin",
    }  # fmt: skip
    kept = {"HF_HOME", "WANDB_MODE", "PROMPT_TRANSFER_DATA", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"}
    assert set(shared_environment(given)) == kept


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="need a shared file system"):
        attempt("nowhere", "a", {}, str(tmp_path))


def sweep(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Run the sweep `plan.yaml` of a folder into its folder `out`; relative paths keep tables comparable."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PROMPT_TRANSFER_CACHE"] = str(folder.parent / "cache")
    command = [sys.executable, "-m", "prompt_transfer", "sweep", "--config", "plan.yaml", "--output", "out", *more]
    return subprocess.Popen(command, cwd=folder, env=environment)


def plan(folder: Path, toy: Path, backbone: Path, runs: int) -> Path:
    """Write a sweep of tiny runs, each long enough to be killed midway."""
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
    """Yield number, parent and command of each process."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        yield int(place.name), parent, command


def fits(folder: Path) -> dict[int, int]:
    """Return number -> parent of the running fits of a folder."""
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


@on_a_cluster
@pytest.mark.slow
@pytest.mark.timeout(3600)
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


@on_a_cluster
@pytest.mark.slow
@pytest.mark.timeout(3600)
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
