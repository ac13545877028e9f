"""Progress bars: on standard error, and only in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import MagicMock

import pytest
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.console import Console
from rich.progress import Progress

from prompt_transfer.callbacks.progress import StepProgress
from prompt_transfer.utils.progress import progress, steps, waiting


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
