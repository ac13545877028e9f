"""Shared parts of the sweep executors: starting a run, recording its outcome, deciding on retries."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prompt_transfer.studies.sweep.plan import Run, State

CHECKPOINT = "checkpoints/last.ckpt"
DIE_WITH_PARENT = 1  # prctl(2): PR_SET_PDEATHSIG
MISTAKE = 2  # exit code for invalid options
PATIENCE = 30.0  # seconds for a run to exit after an interrupt
OnFinish = Callable[[Run, State], None]


@dataclass(frozen=True)
class Outcome:
    """The result of one attempt at a run.

    Attributes:
        code: exit code of `fit`; negative: the signal that killed it.
        error: last output line, or the signal; empty after success.
        seconds: run time of the process.
    """

    code: int
    error: str = ""
    seconds: float = 0.0


class Executor(Protocol):
    """Executes the runs of a sweep, each as a separate process with its own options file."""

    def execute(self, runs: Sequence[Run], states: Sequence[State], on_finish: OnFinish) -> None:
        """Execute all runs that are not done; updates `states` and saves them in the sweep folder.

        No run is left running on return, error or Ctrl-C.

        Args:
            runs: N runs.
            states: the state of each run.
            on_finish: callback after each run, called by one thread at a time.
        """
        ...


def state_file(folder: Path, run: Run) -> Path:
    """Return the path of a run's state file."""
    return folder / "state" / f"{run.name}.json"


def record_outcome(folder: Path, run: Run, state: State, outcome: Outcome) -> None:
    """Update the state of a run by the outcome of an attempt, and save it."""
    state.attempts += 1
    state.seconds += outcome.seconds
    state.status = "failed" if outcome.code else "done"
    state.error = outcome.error
    state.write(state_file(folder, run))


def is_final(outcome: Outcome, attempt: int, retries: int) -> bool:
    """Return whether `attempt` (from 0) was the last: success, invalid options, or no retries left."""
    return outcome.code in (0, MISTAKE) or attempt >= retries


def start(folder: Path, name: str, environment: Mapping[str, str], place: str | None = None) -> subprocess.Popen[bytes]:
    """Start `fit` for the run `name`: resume from its checkpoint, or start over if there is none.

    On Linux the kernel kills the process when its parent exits.

    Args:
        folder: sweep folder relative to `place`; it holds `runs/`, `configs/`, `logs/` and `state/`.
        name: name of the run.
        environment: environment variables of the process.
        place: working directory; None: that of this process.
    """
    home, run = Path(place or "") / folder, folder / "runs" / name
    # -P: a folder in the working directory, such as an adapter named peft, must not shadow a library.
    command = [sys.executable, "-P", "-m", "prompt_transfer", "fit"]
    command += ["--config", str(folder / "configs" / f"{name}.yaml"), "--output", str(run)]
    here = home / "runs" / name
    if here.is_dir() and any(here.iterdir()):
        command += ["--resume"] if (here / CHECKPOINT).is_file() else ["--overwrite"]
    with (home / "logs" / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=place, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=dict(environment), preexec_fn=_die_with_parent,
        )  # fmt: skip


def stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt runs; kill those still running after `PATIENCE` seconds."""
    for child in children:
        child.send_signal(signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()


def read_outcome(folder: Path, name: str, code: int, seconds: float) -> Outcome:
    """Return the outcome of a process that exited with `code`."""
    return Outcome(code, _last_words(folder, name, code) if code else "", seconds)


def _last_words(folder: Path, name: str, code: int) -> str:
    """Return the last output line of a failed run, or the signal that killed it."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    with (folder / "logs" / f"{name}.log").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {code}"


def _die_with_parent() -> None:
    """Kill this run when the sweep dies (Linux only), and unblock interrupts, which Ray's workers block."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.SIG_DFL)
