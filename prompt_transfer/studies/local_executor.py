"""Runs of a sweep on this machine: processes of their own, some at once, retried, watched."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prompt_transfer.studies.sweep import Run, State

CHECKPOINT = "checkpoints/last.ckpt"
DIE_WITH_PARENT = 1  # prctl(2): PR_SET_PDEATHSIG


class LocalExecutor:
    """Starts `fit` once for every run that is not done.

    Args:
        folder: of the sweep: `runs/`, `configs/`, `logs/` and `state/` lie in it.
        at_once: runs at a time. On a CPU they share the cores, on GPUs each takes the next one.
        retries: how often a run that failed is started again.
        devices: GPUs of this machine.
    """

    def __init__(self, folder: Path, at_once: int, retries: int, devices: int = 0) -> None:
        self.folder, self.at_once, self.retries, self.devices = folder, at_once, retries, devices
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()

    def state_file(self, run: Run) -> Path:
        """Where the state of a run is kept."""
        return self.folder / "state" / f"{run.name}.json"

    def execute(self, runs: Sequence[Run], states: Sequence[State], tell: Callable[[Run, State], None]) -> None:
        """Do all runs that are not done; `states` change on the way.

        Args:
            runs: N runs.
            states: what is known of each.
            tell: called after each run, by one thread at a time.
        """
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
                        tell(runs[number], states[number])
                except BaseException as error:
                    failures.append(error)
                    self._stopped.set()

        threads = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in range(self.at_once)]
        for thread in threads:
            thread.start()
        try:
            # In short waits, so that Ctrl-C arrives.
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(0.2)
        except BaseException:
            self.stop()
            raise
        if failures:
            raise failures[0]

    def stop(self) -> None:
        """End what runs, as Ctrl-C would; whoever does not end within half a minute is killed."""
        self._stopped.set()
        children = list(self._children)
        for child in children:
            child.send_signal(signal.SIGINT)
        for child in children:
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()

    def _run(self, run: Run, state: State, slot: int) -> None:
        for attempt in range(self.retries + 1):
            started = time.monotonic()
            state.attempts += 1
            code = self._start(run, slot)
            state.seconds += time.monotonic() - started
            if self._stopped.is_set() and code:
                return
            state.status = "failed" if code else "done"
            state.error = self._last_words(run, code) if code else ""
            state.write(self.state_file(run))
            # A mistake in the options (exit code 2) is the same mistake again.
            if not code or code == 2 or attempt == self.retries:
                return

    def _start(self, run: Run, slot: int) -> int:
        place = self.folder / "runs" / run.name
        command = [sys.executable, "-m", "prompt_transfer", "fit"]
        command += ["--config", str(self.folder / "configs" / f"{run.name}.yaml"), "--output", str(place)]
        if place.is_dir() and any(place.iterdir()):
            command += ["--resume"] if (place / CHECKPOINT).is_file() else ["--overwrite"]
        log = self.folder / "logs" / f"{run.name}.log"
        with log.open("ab") as file:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=self._environment(slot),
                preexec_fn=_die_with_parent,
            )  # fmt: skip
            self._children.add(child)
            try:
                return child.wait()
            finally:
                self._children.discard(child)

    def _environment(self, slot: int) -> dict[str, str]:
        own = dict(os.environ)
        # Processes that share cores and each start a thread a core are many times slower.
        if self.at_once > 1 and not self.devices:
            own.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.at_once)))
        if self.devices:
            visible = own.get("CUDA_VISIBLE_DEVICES", "").split(",") if own.get("CUDA_VISIBLE_DEVICES") else []
            devices = visible or [str(number) for number in range(self.devices)]
            own["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        return own

    def _last_words(self, run: Run, code: int) -> str:
        """The last line that a failed run wrote, or by what it was killed."""
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        with (self.folder / "logs" / f"{run.name}.log").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"exit code {code}"


def _die_with_parent() -> None:
    """Let a run end when the sweep is killed: two that write to one folder would spoil it (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
