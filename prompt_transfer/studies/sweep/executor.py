"""What executors of a sweep share: how a run is started, how its end is noted, and when it is tried again."""

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
MISTAKE = 2  # exit code of a mistake in the options
PATIENCE = 30.0  # seconds that a run has to end after an interrupt
Tell = Callable[[Run, State], None]


@dataclass(frozen=True)
class Outcome:
    """How one attempt at a run ended.

    Attributes:
        code: exit code of `fit`; below 0 the signal that killed it.
        error: its last line, or by what it was killed; empty after success.
        seconds: of the process.
    """

    code: int
    error: str = ""
    seconds: float = 0.0


class Executor(Protocol):
    """Does the runs of a sweep; each is a process of its own that reads its file of options."""

    def execute(self, runs: Sequence[Run], states: Sequence[State], tell: Tell) -> None:
        """Do all runs that are not done; `states` change on the way and are kept in the folder of the sweep.

        When this is left, by an error or Ctrl-C too, no run goes on.

        Args:
            runs: N runs.
            states: what is known of each.
            tell: called after each run, by one thread at a time.
        """
        ...


def state_file(folder: Path, run: Run) -> Path:
    """Where the state of a run is kept."""
    return folder / "state" / f"{run.name}.json"


def record_outcome(folder: Path, run: Run, state: State, outcome: Outcome) -> None:
    """Take an attempt into the state of its run, and keep it."""
    state.attempts += 1
    state.seconds += outcome.seconds
    state.status = "failed" if outcome.code else "done"
    state.error = outcome.error
    state.write(state_file(folder, run))


def is_final(outcome: Outcome, attempt: int, retries: int) -> bool:
    """Whether nothing is to be tried again after `attempt` (from 0): a mistake in the options stays one."""
    return outcome.code in (0, MISTAKE) or attempt >= retries


def start(folder: Path, name: str, environment: Mapping[str, str], place: str | None = None) -> subprocess.Popen[bytes]:
    """Start `fit` for the run `name`: from its checkpoint, or anew where a process that was killed left none.

    The process ends with the one that called this (a signal of the kernel, Linux).

    Args:
        folder: of the sweep, seen from `place`: `runs/`, `configs/`, `logs/` and `state/` lie in it.
        name: of the run.
        environment: variables of the process.
        place: folder to start it in; None: this process's own.
    """
    home, run = Path(place or "") / folder, folder / "runs" / name
    # -P: a folder of the working folder, such as an adapter named peft, must not be taken for a library.
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
    """End runs as Ctrl-C would; whoever does not end within half a minute is killed."""
    for child in children:
        child.send_signal(signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()


def read_outcome(folder: Path, name: str, code: int, seconds: float) -> Outcome:
    """What is to be noted of a process that ended with `code`."""
    return Outcome(code, _last_words(folder, name, code) if code else "", seconds)


def _last_words(folder: Path, name: str, code: int) -> str:
    """The last line that a failed run wrote, or by what it was killed."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    with (folder / "logs" / f"{name}.log").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {code}"


def _die_with_parent() -> None:
    """Let a run end when the sweep is killed (Linux only), and let it hear interrupts, which Ray's workers block."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.SIG_DFL)
