"""Live view of a sweep: runs done, time left, and step, score and best score of the runs under way."""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from prompt_transfer.studies.sweep.plan import Run, State
from prompt_transfer.utils.progress import duration, is_watched

# Seconds between two looks at the runs' files.
INTERVAL = 1.0
DEFAULT_STEPS = 1000
# No estimate of the time left before this much is done.
LEAST_DONE, LEAST_SECONDS = 0.1, 5.0


def latest(folder: Path) -> tuple[int, float, float] | None:
    """Return step, score and best score of a run folder by its convergence file; None before its first evaluation."""
    with suppress(OSError, KeyError, TypeError, ValueError):
        with (folder / "convergence.csv").open(newline="", encoding="utf-8") as file:
            rows = [(int(row["step"]), float(row["value"])) for row in csv.DictReader(file)]
        if rows:
            last = max(step for step, _ in rows)
            return last, max(value for step, value in rows if step == last), max(value for _, value in rows)
    return None


def _steps(run: Run) -> int | None:
    """Return the budget of a run in steps; None if it has none."""
    steps = run.options.get("trainer.max_steps", DEFAULT_STEPS)
    return steps if isinstance(steps, int) and steps > 0 else None


class SweepView:
    """Shows a sweep while it runs: bars in a terminal; elsewhere nothing but the lines that are printed.

    Args:
        folder: sweep folder.
        runs: all runs of the sweep.
        states: the state of each run.
    """

    def __init__(self, folder: Path, runs: Sequence[Run], states: Sequence[State]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.folder, self.runs, self.states = folder, runs, states
        self.open = sum(state.status != "done" for state in states)
        self.finished, self._began = 0, time.monotonic()
        self._ended = threading.Event()
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
        )
        self.bars = Progress(*columns, console=console, disable=not is_watched(console), transient=True)
        self._whole = self.bars.add_task("runs", total=self.open, facts="")
        self._tasks: dict[str, Any] = {}
        # A thread of its own: the executor returns when all runs have ended.
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> SweepView:
        self.bars.start()
        if not self.bars.disable:
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self.bars.stop()

    @property
    def best(self) -> tuple[float, str] | None:
        """The best score of all runs so far, and its run."""
        found = [(mine[2], run.name) for run in self.runs if (mine := latest(self.folder / "runs" / run.name))]
        return max(found, default=None)

    def left(self) -> float | None:
        """Return the estimated seconds that are left; None while too little is done to tell."""
        seconds = time.monotonic() - self._began
        done = self.finished + sum(self._share(run) for run, state in self._pairs() if state.status == "open")
        if self.finished == self.open or done < LEAST_DONE or seconds < LEAST_SECONDS:
            return None
        return seconds / done * max(self.open - done, 0.0)

    def _pairs(self) -> Iterator[tuple[Run, State]]:
        return zip(self.runs, self.states, strict=True)

    def _share(self, run: Run) -> float:
        """Return the share of its steps that a run has taken by its last evaluation."""
        mine, steps = latest(self.folder / "runs" / run.name), _steps(run)
        return min(mine[0] / steps, 1.0) if mine and steps else 0.0

    def report(self, run: Run, state: State) -> str:
        """Count a finished run and return its line."""
        self.finished += 1
        parts = [f"[{self.finished}/{self.open}] {run.name}: {state.status}"]
        if state.error:
            parts[0] += f": {state.error}"
        if state.status == "done" and (mine := latest(self.folder / "runs" / run.name)):
            parts.append(f"score {mine[2]:.3f}")
        if self.best is not None:
            parts.append(f"best {self.best[0]:.3f} ({self.best[1]})")
        parts.append(f"{state.seconds:.0f} s")
        if (left := self.left()) is not None:
            parts.append("less than a minute left" if left < 60 else f"about {duration(left)} left")
        return ", ".join(parts)

    def update(self) -> None:
        """Read the runs' files and update the bars."""
        for run, state in self._pairs():
            mine = latest(self.folder / "runs" / run.name)
            if state.status != "open" or mine is None:
                if run.name in self._tasks:
                    self.bars.remove_task(self._tasks.pop(run.name))
                continue
            steps = _steps(run)
            if run.name not in self._tasks:
                self._tasks[run.name] = self.bars.add_task(run.name, total=steps, facts="")
            facts = f"score {mine[1]:.3f}, best {mine[2]:.3f}"
            self.bars.update(self._tasks[run.name], completed=mine[0], facts=facts)
        parts = [] if (best := self.best) is None else [f"best {best[0]:.3f} ({best[1]})"]
        parts += [] if (left := self.left()) is None else [f"{duration(left)} left"]
        self.bars.update(self._whole, completed=self.finished, facts=", ".join(parts))

    def _follow(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.update()
