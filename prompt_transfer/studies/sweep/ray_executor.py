"""Executes the runs of a sweep on a Ray cluster, each as a process started by a Ray worker.

Needs a shared file system: all machines see the sweep folder, data and backbones under the same paths. The calling
process saves the state there; Ray transfers only names and exit codes.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prompt_transfer.studies.sweep.executor import (
    PATIENCE,
    OnFinish,
    Outcome,
    is_final,
    read_outcome,
    record_outcome,
    start,
    stop,
)
from prompt_transfer.studies.sweep.plan import Run, State
from prompt_transfer.utils import paths
from prompt_transfer.utils.errors import UserError, install_command, is_secret

# Environment variables passed to other machines. Tokens and keys are not passed: they would be readable in the cluster.
PASSED = re.compile(r"(HF_|PROMPT_TRANSFER_|WANDB_|TOKENIZERS_|OMP_NUM_THREADS$|PYTHONPATH$)")
# Ray's object store is unused; its default size is a third of the memory.
STORE_BYTES = 80 * 2**20


class RayExecutor:
    """Submits every run that is not done to Ray, which starts as many as resources allow.

    Args:
        folder: sweep folder on a shared file system.
        retries: number of restarts of a run that failed or whose worker was killed.
        cpus: CPUs per run, and its threads unless OMP_NUM_THREADS is set; None: one per device of the run.
        gpus: GPUs per run, fractions allowed; None: one per device of the run if the cluster has any.
        address: cluster address (`auto`, `HOST:PORT`, `ray://HOST:PORT`); None: RAY_ADDRESS if set, else start Ray on
            this machine for the duration of the sweep.
        at_once: maximum number of parallel runs.

    Raises:
        UserError: Ray is not installed, or the resources are invalid.
    """

    def __init__(
        self,
        folder: Path,
        retries: int,
        cpus: float | None = None,
        gpus: float | None = None,
        address: str | None = None,
        at_once: int | None = None,
    ) -> None:
        if (cpus is not None and cpus <= 0) or (gpus is not None and gpus < 0):
            raise UserError("--cpus must be above 0, --gpus 0 or more")
        if importlib.util.find_spec("ray") is None:
            raise UserError(f"--executor ray needs an extra: {install_command('ray')}")
        self.folder, self.retries = folder, retries
        self.cpus, self.gpus, self.at_once = cpus, gpus, at_once
        self.address = address or os.environ.get("RAY_ADDRESS")

    def execute(self, runs: Sequence[Run], states: Sequence[State], on_finish: OnFinish) -> None:
        """See `Executor`."""
        waiting = deque((number, 0) for number, state in enumerate(states) if state.status != "done")
        if not waiting:
            return
        for number, _ in waiting:
            states[number].status = "open"
        environment = shared_environment(os.environ) | code_path(os.environ)
        common = environment, str(Path.cwd())
        with self._cluster() as ray:
            # Ray's own retries do not distinguish invalid options from a crash.
            remote, path = ray.remote(attempt), {"env_vars": code_path(os.environ)}
            resources = {
                devices: self._resources(ray, devices) for devices in {runs[number].devices for number, _ in waiting}
            }
            running: dict[Any, tuple[int, int]] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < (self.at_once or len(runs)):
                        number, tries = waiting.popleft()
                        needed = resources[runs[number].devices]
                        job = remote.options(max_retries=0, runtime_env=path, **needed)
                        running[job.remote(str(self.folder), runs[number].name, *common)] = number, tries
                    # Short timeouts let Ctrl-C through.
                    for job in ray.wait(list(running), num_returns=1, timeout=0.5)[0]:
                        number, tries = running.pop(job)
                        outcome = _outcome(ray, job)
                        record_outcome(self.folder, runs[number], states[number], outcome)
                        if is_final(outcome, tries, self.retries):
                            on_finish(runs[number], states[number])
                        else:
                            waiting.appendleft((number, tries + 1))
            except BaseException:
                for job in running:
                    ray.cancel(job)
                if running:
                    ray.wait(list(running), num_returns=len(running), timeout=PATIENCE + 5)
                raise

    @contextmanager
    def _cluster(self) -> Iterator[Any]:
        """Connect to a Ray cluster, or start a local one for the duration of the context."""
        # Disables Ray's usage reports: a sweep must work without a network.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        here: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        try:
            ray.init(
                address=self.address or "local", log_to_driver=False, logging_level="ERROR",
                **({} if self.address else here),
            )  # fmt: skip
        except Exception as error:  # Ray has no specific exception for processes that fail to start
            where = f"at {self.address}" if self.address else "on this machine"
            raise UserError(f"no Ray cluster {where}: {' '.join(str(error).split())[:200]}") from error
        try:
            yield ray
        finally:
            ray.shutdown()

    def _resources(self, ray: Any, devices: int) -> dict[str, float]:
        """Return the resources that a run on `devices` devices of one machine requests."""
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = self.cpus or float(devices), self.gpus
        if gpus is None:
            gpus = float(devices) if any(machine.get("GPU") for machine in machines) else 0.0
        if not any(machine.get("CPU", 0) >= cpus and machine.get("GPU", 0) >= gpus for machine in machines):
            problem = f"no machine of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for a run"
            if self.address is None:
                raise UserError(f"{problem}: give fewer with --cpus and --gpus")
            warnings.warn(f"{problem} now: runs wait for one", stacklevel=3)
        return {"num_cpus": cpus, "num_gpus": gpus}


def shared_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables passed to runs on other machines, without tokens and keys."""
    return {name: value for name, value in environment.items() if PASSED.match(name) and not is_secret(name)}


def code_path(environment: Mapping[str, str]) -> dict[str, str]:
    """Return PYTHONPATH with this process's checkout, for other machines to run the same code.

    Empty if the package is installed: then it must be installed on all machines.
    """
    root = paths.PACKAGE.parent
    if root.name in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(root), environment.get("PYTHONPATH"))))}


def attempt(folder: str, name: str, environment: dict[str, str], place: str) -> Outcome:
    """Start a run and wait for it, inside a Ray worker. The run ends with the worker."""
    home = Path(place) / folder
    if not (home / "configs" / f"{name}.yaml").is_file():
        raise UserError(f"{home} does not exist on {platform.node()}: machines of a sweep need a shared file system")
    # Ray cancels by SIGINT, which a cluster started by a background script ignores.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    # Ray sets the run's GPUs and threads in the environment.
    child = start(Path(folder), name, {**os.environ, **environment}, place)
    try:
        # Polling, because a blocking `wait` would not notice an interrupted sweep.
        while child.poll() is None:
            time.sleep(0.1)
    except BaseException:
        stop([child])
        raise
    return read_outcome(home, name, child.returncode, time.monotonic() - began)


def _outcome(ray: Any, job: Any) -> Outcome:
    """Return the outcome of an attempt; a killed worker raises an error of Ray's instead."""
    try:
        outcome: Outcome = ray.get(job)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        return Outcome(1, f"{type(cause).__name__}: {lines[0] if lines else 'no reason given'}"[:300])
    return outcome
