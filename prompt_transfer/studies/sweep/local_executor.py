"""Executes the runs of a sweep on this machine, as parallel processes with retries."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from prompt_transfer.studies.sweep.executor import (
    OnFinish,
    Outcome,
    is_final,
    read_outcome,
    record_outcome,
    start,
    stop,
)
from prompt_transfer.studies.sweep.plan import Run, State


class LocalExecutor:
    """Starts one `fit` process for every run that is not done.

    Args:
        folder: sweep folder; it holds `runs/`, `configs/`, `logs/` and `state/`.
        at_once: number of parallel runs; they share the CPU cores, or take the GPUs in turn.
        retries: number of restarts of a failed run.
        devices: number of GPUs of this machine.
    """

    def __init__(self, folder: Path, at_once: int, retries: int, devices: int = 0) -> None:
        self.folder, self.at_once, self.retries, self.devices = folder, at_once, retries, devices
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()

    def execute(self, runs: Sequence[Run], states: Sequence[State], on_finish: OnFinish) -> None:
        """See `Executor`."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number, state in enumerate(states):
            if state.status != "done":
                state.status = "open"
                waiting.put(number)
        lock, failures = threading.Lock(), []

        def work(slot: int) -> None:
            while not self._stopped.is_set():
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._run(runs[number], states[number], slot)
                    with lock:
                        on_finish(runs[number], states[number])
                except BaseException as error:
                    failures.append(error)
                    self._stopped.set()

        threads = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in range(self.at_once)]
        for thread in threads:
            thread.start()
        try:
            # Short timeouts let Ctrl-C through.
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(0.2)
        except BaseException:
            self._stopped.set()
            stop(list(self._children))
            raise
        if failures:
            raise failures[0]

    def _run(self, run: Run, state: State, slot: int) -> None:
        for attempt in range(self.retries + 1):
            outcome = self._attempt(run, slot)
            if self._stopped.is_set() and outcome.code:
                return
            record_outcome(self.folder, run, state, outcome)
            if is_final(outcome, attempt, self.retries):
                return

    def _attempt(self, run: Run, slot: int) -> Outcome:
        started = time.monotonic()
        child = start(self.folder, run.name, self.environment(slot, run.devices))
        self._children.add(child)
        try:
            code = child.wait()
        finally:
            self._children.discard(child)
        return read_outcome(self.folder, run.name, code, time.monotonic() - started)

    def environment(self, slot: int, wanted: int = 1) -> dict[str, str]:
        """Return the environment of a run: its GPUs (shared in turn if there are fewer), or a share of cores.

        Args:
            slot: number of the parallel run.
            wanted: devices of the run.
        """
        own = dict(os.environ)
        if self.devices:
            visible = own.get("CUDA_VISIBLE_DEVICES")
            devices = visible.split(",") if visible else [str(number) for number in range(self.devices)]
            wanted = min(wanted, len(devices))
            mine = [devices[(slot * wanted + number) % len(devices)].strip() for number in range(wanted)]
            own["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        elif self.at_once > 1:
            # Parallel processes with one thread per core each would oversubscribe the cores and be many times slower.
            own.setdefault("OMP_NUM_THREADS", str(max(1, cores() // (self.at_once * wanted))))
        return own


def cores() -> int:
    """Return the number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
