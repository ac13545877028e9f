"""Live view of a sweep: runs done, time left, and step, score and best score of the runs under way."""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from prompt_transfer.studies.sweep.plan import Run, State
from prompt_transfer.utils.progress import duration, is_watched

# Seconds between two looks at the runs' files.
INTERVAL = 1.0
DEFAULT_STEPS = 1000
# No estimate of the time left before this much is done.
LEAST_DONE, LEAST_SECONDS = 0.1, 5.0


class Standing(NamedTuple):
    """The last step of a run, its score there, the best score so far, and the metric of both."""

    step: int
    score: float
    best: float
    metric: str


def latest(folder: Path) -> Standing | None:
    """Return the standing of a run folder by its convergence file; None before its first evaluation."""
    with suppress(OSError, KeyError, TypeError, ValueError):
        with (folder / "convergence.csv").open(newline="", encoding="utf-8") as file:
            rows = [(int(row["step"]), float(row["value"]), row["metric"]) for row in csv.DictReader(file)]
        if rows:
            last = max(step for step, *_ in rows)
            score = max(value for step, value, _ in rows if step == last)
            return Standing(last, score, max(value for _, value, _ in rows), rows[-1][2])
    return None


def _task(run: Run) -> str:
    """Return the task of a run, or its tasks joined by `+`."""
    task = run.options.get("data.task", "")
    return "+".join(map(str, task)) if isinstance(task, list) else str(task)


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
    def best(self) -> dict[tuple[str, str], tuple[float, str]]:
        """The best score so far and its run, by task and metric: other scores cannot be compared."""
        found: dict[tuple[str, str], tuple[float, str]] = {}
        for run in self.runs:
            if mine := latest(self.folder / "runs" / run.name):
                key, score = (_task(run), mine.metric), (mine.best, run.name)
                found[key] = max(found.get(key, score), score)
        return found

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
        return min(mine.step / steps, 1.0) if mine and steps else 0.0

    def report(self, run: Run, state: State) -> str:
        """Count a finished run and return its line."""
        self.finished += 1
        parts = [f"[{self.finished}/{self.open}] {run.name}: {state.status}"]
        if state.error:
            parts[0] += f": {state.error}"
        if state.status == "done" and (mine := latest(self.folder / "runs" / run.name)):
            parts.append(f"score {mine.best:.3f}")
        several = len({_task(one) for one in self.runs}) > 1
        for (task, _), (score, name) in self.best.items():
            if task == _task(run):
                parts.append(f"best {f'of {task} ' if several else ''}{score:.3f} ({name})")
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
            facts = f"score {mine.score:.3f}, best {mine.best:.3f}"
            self.bars.update(self._tasks[run.name], completed=mine.step, facts=facts)
        # One line has no room for the best of several tasks.
        best = list(self.best.values())
        parts = [f"best {score:.3f} ({name})" for score, name in best] if len(best) == 1 else []
        parts += [] if (left := self.left()) is None else [f"{duration(left)} left"]
        self.bars.update(self._whole, completed=self.finished, facts=", ".join(parts))

    def _follow(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.update()
