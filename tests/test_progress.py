"""Progress bars: on standard error, and only in a terminal."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import pytest
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.console import Console
from rich.progress import Progress
from test_cli import fit

from prompt_transfer.callbacks.progress import StepLines, StepProgress, progress_callback
from prompt_transfer.commands.sweep import show_scores
from prompt_transfer.studies.sweep.plan import Run, State
from prompt_transfer.studies.sweep.view import SweepView, latest
from prompt_transfer.utils import results
from prompt_transfer.utils.progress import duration, progress, steps, waiting


def test_steps_hands_on_all_items_and_prints_nothing_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(steps(range(3), "counting")) == [0, 1, 2]
    assert list(steps(iter("ab"), "letters", total=2)) == ["a", "b"]
    with waiting("thinking"):
        pass
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err == ""


def test_a_terminal_sees_description_share_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Console, "is_terminal", True)
    bar = progress()
    bar.live.transient = False
    with bar:
        bar.update(bar.add_task("scoring", total=4), advance=1, refresh=True)
    seen = capsys.readouterr()
    assert seen.out == ""
    assert "scoring" in seen.err
    assert "25%" in seen.err
    assert "-:--:--" in seen.err  # one step gives no estimate of the time left
    with progress(shown=False) as bar:
        bar.add_task("second process", total=1)
    assert capsys.readouterr().err == ""


def test_what_breaks_inside_is_not_hidden() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("bad item")

    with pytest.raises(ValueError, match="bad item"):
        list(steps(broken(), "work"))


def test_a_bar_of_one_batch_shows_no_speed_of_zero() -> None:
    bar = StepProgress()
    columns = bar.configure_columns(MagicMock())
    speed = next(column for column in columns if isinstance(column, ProcessingSpeedColumn))
    clock = iter(range(100))
    with Progress(disable=True, get_time=lambda: next(clock)) as shown:
        number = shown.add_task("validation", total=1)
        shown.advance(number)
        assert str(speed.render(shown.tasks[0])) == ""
        shown.advance(number)
        assert str(speed.render(shown.tasks[0])).endswith("it/s")


def test_a_run_prints_lines_outside_of_a_terminal(
    toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    assert fit(toy, tiny_roberta, tmp_path / "run", "--convergence") == 0
    seen = capsys.readouterr()
    assert "step 2/4" not in seen.out
    lines = [line for line in seen.err.splitlines() if line.startswith("step ")]
    scores = pd.read_csv(tmp_path / "run" / "convergence.csv")["value"]
    assert [line.split(",")[0] for line in lines] == ["step 0/4", "step 2/4", "step 4/4"]
    assert [float(re.findall(r", score ([\d.]+)", line)[0]) for line in lines] == pytest.approx(list(scores), abs=5e-4)
    best = [float(re.findall(r", best ([\d.]+)", line)[0]) for line in lines]
    assert best == pytest.approx(list(scores.cummax()), abs=5e-4)
    assert ["left" in line for line in lines] == [False, True, False]
    assert fit(toy, tiny_roberta, tmp_path / "quiet", "--trainer.enable_progress_bar", "false") == 0
    assert "step 2/4" not in capsys.readouterr().err


def test_a_terminal_shows_steps_of_the_run_score_and_best(
    toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Console, "is_terminal", True)
    assert isinstance(progress_callback(), StepProgress)
    shown: list[tuple[float | None, float, set[str]]] = []
    original = StepProgress.on_train_batch_end

    def noted(self: StepProgress, trainer: Any, module: Any, *rest: Any) -> None:
        original(self, trainer, module, *rest)
        bar = self.train_progress_bar
        shown.append((bar.total, bar.completed, set(self.get_metrics(trainer, module))))

    monkeypatch.setattr(StepProgress, "on_train_batch_end", noted)
    # An epoch of two batches: the bar goes on through the epochs.
    more = ["--data.batch_size", "10", "--trainer.max_steps", "5"]
    assert fit(toy, tiny_roberta, tmp_path / "run", *more) == 0
    assert [(total, done) for total, done, _ in shown] == [(5, step) for step in (1, 2, 3, 4, 5)]
    assert {"score", "best"} <= shown[-1][2]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "run")


def test_the_length_of_a_run_is_that_of_its_epochs(
    toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    for limit in ("1000", "-1"):
        # Two epochs of two batches.
        more = ["--data.batch_size", "20", "--trainer.max_steps", limit, "--trainer.max_epochs", "2"]
        assert fit(toy, tiny_roberta, tmp_path / limit, *more) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
        assert [line.split(",")[0] for line in lines] == ["step 2/4", "step 4/4"]
        assert ["left" in line for line in lines] == [True, False]


def test_a_bar_breaks_no_number_in_80_columns() -> None:
    bar, trainer = StepProgress(), MagicMock(sanity_checking=False, training=True)
    trainer.state.fn, trainer.progress_bar_callback = "fit", bar
    bar._init_progress(trainer)
    assert bar.progress is not None
    assert bar._metric_component is not None
    bar.train_progress_bar_id = bar.progress.add_task("training", total=10000, completed=1000)
    for number in range(1, 4):
        bar.progress.advance(bar.train_progress_bar_id, number)
    bar._metric_component.update({"score": "0.801", "best": "0.817"})
    for width in (80, 200):
        console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
        with console.capture() as text:
            console.print(bar.progress.get_renderable())
        lines = text.get().splitlines()
        assert len(lines) == 1
        assert "1006/10000" in lines[0]
        assert "score: 0.801 best: 0.817" in lines[0]
    bar._stop_progress()


def test_lines_are_those_of_the_first_process(capsys: pytest.CaptureFixture[str]) -> None:
    lines = StepLines()
    lines.disable()
    lines.on_validation_end(MagicMock(), MagicMock())
    assert capsys.readouterr().err == ""


def save_evaluations(folder: Path, values: list[float], metric: str = "accuracy") -> None:
    folder.mkdir(parents=True)
    rows = {"prompt": "prompt", "step": range(0, 10 * len(values), 10), "metric": metric, "value": values}
    pd.DataFrame(rows).to_csv(folder / "convergence.csv", index=False)


def test_a_sweep_shows_score_best_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [Run(name, {"trainer.max_steps": 40}, {"data.task": name}) for name in ("a", "b", "c")]
    states = [State("", "done"), State("", "open"), State("", "open")]
    save_evaluations(tmp_path / "runs" / "a", [0.5, 0.9, 0.7])
    save_evaluations(tmp_path / "runs" / "b", [0.5, 0.6])
    assert latest(tmp_path / "runs" / "a") == (20, 0.7, 0.9, "accuracy")
    assert latest(tmp_path / "runs" / "c") is None
    (tmp_path / "runs" / "c").mkdir()
    (tmp_path / "runs" / "c" / "convergence.csv").write_text("prompt,step\nx,")
    assert latest(tmp_path / "runs" / "c") is None
    with SweepView(tmp_path, runs, states) as view:
        assert view.bars.disable  # no terminal
        view.update()
        whole, b = view.bars.tasks
        assert (whole.total, whole.completed, whole.fields["facts"]) == (2, 0, "best 0.900 (a)")
        assert (b.description, b.total, b.completed, b.fields["facts"]) == ("b", 40, 10, "score 0.600, best 0.600")
        began = time.monotonic()
        assert view.left() is None
        monkeypatch.setattr(time, "monotonic", lambda: began + 30)
        # A quarter of the first of two runs.
        assert view.left() == pytest.approx(210, rel=0.05)
        monkeypatch.setattr(time, "monotonic", lambda: began + 120)
        states[1].status, states[1].seconds = "done", 120.0
        line = view.report(runs[1], states[1])
        assert line == "[1/2] b: done, score 0.600, best 0.900 (a), 120 s, about 2 min left"
        view.update()
        assert [bar.description for bar in view.bars.tasks] == ["runs"]
        states[2].status, states[2].error = "failed", "broken"
        assert view.report(runs[2], states[2]) == "[2/2] c: failed: broken, best 0.900 (a), 0 s"


def test_a_sweep_compares_runs_of_one_task_only(tmp_path: Path) -> None:
    tasks = {"films-1": "films", "films-2": "films", "texts-1": "texts", "both": ["films", "texts"]}
    runs = [Run(name, {"data.task": task}, {"data.task": task}) for name, task in tasks.items()]
    states = [State("", "done") for _ in runs]
    save_evaluations(tmp_path / "runs" / "films-1", [0.9])
    save_evaluations(tmp_path / "runs" / "films-2", [0.5])
    save_evaluations(tmp_path / "runs" / "texts-1", [0.2], "rougeL")
    save_evaluations(tmp_path / "runs" / "both", [0.95], "accuracy,rougeL")
    with SweepView(tmp_path, runs, states) as view:
        lines = [view.report(run, state) for run, state in zip(runs, states, strict=True)]
        view.update()
        assert view.bars.tasks[0].fields["facts"] == ""
    assert [re.findall(r"best .*?\)", line) for line in lines] == [
        ["best of films 0.900 (films-1)"],
        ["best of films 0.900 (films-1)"],
        ["best of texts 0.200 (texts-1)"],
        ["best of films+texts 0.950 (both)"],
    ]


def test_a_sweep_ends_with_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [Run(f"{task}-{rate}", {}, {"data.task": task, "model.learning_rate": rate})
            for task in ("builtin_restaurants", "builtin_ethics_deeds") for rate in (0.1, 0.01)]  # fmt: skip
    show_scores(runs, tmp_path)
    assert capsys.readouterr().out == ""
    frame = pd.DataFrame([
        {"run": run.name, "task": run.values["data.task"], "metric": "accuracy", "value": 0.5 + number / 10,
         "majority": 0.5, "best_step": 100, "model.learning_rate": run.values["model.learning_rate"],
         "data.task": run.values["data.task"]} for number, run in enumerate(runs)
    ])  # fmt: skip
    frame.to_csv(tmp_path / "results.csv", index=False)
    monkeypatch.setenv("COLUMNS", "80")
    show_scores(runs, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "the best of each task marked *, accuracy" in " ".join(" ".join(lines[:2]).split())
    assert sum("0.800" in line for line in lines) == 1
    with results.kept() as tables:
        show_scores(runs, tmp_path)
    assert tables[0]["rows"][0]["learning_rate"] == 0.1
    assert [row["best"] for row in tables[0]["rows"]] == ["", "*", "", "*"]
    frame.iloc[2:].to_csv(tmp_path / "results.csv", index=False)
    show_scores(runs[2:], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert "the best 0.800 (builtin_ethics_deeds-0.01)" in " ".join(" ".join(lines[:2]).split())
    frame.assign(run=["0.10", "0.010", "7", "1e3"]).to_csv(tmp_path / "results.csv", index=False)
    with results.kept() as tables:
        show_scores(runs, tmp_path)
    assert [row["run"] for row in tables[0]["rows"]] == ["0.10", "0.010", "7", "1e3"]
    assert tables[0]["rows"][0]["value"] == 0.5


def test_durations() -> None:
    assert [duration(seconds) for seconds in (4.6, 90, 5399, 12600)] == ["5 s", "2 min", "90 min", "3.5 h"]
