"""An option with two values is an error of every command; the parsers would silently keep the last one."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cli import error_of, fit

from prompt_transfer.cli import main
from prompt_transfer.commands import table
from prompt_transfer.commands.repeated import check_repeated, take_values
from prompt_transfer.commands.table import COMMANDS
from prompt_transfer.utils.errors import UserError


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("joined", [True, False])
def test_no_command_runs_with_two_values_of_an_option(
    command: str, joined: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(name: str) -> None:
        raise AssertionError(f"{name} was started")

    monkeypatch.setattr("prompt_transfer.cli.find", find)
    assert table.find is not find
    twice = ["--data.task=a", "--data.task=b"] if joined else ["--data.task", "a", "--data.task", "b"]
    told = "error: --data.task is given 2 times (a, b): give it once, as a list if it takes several values"
    assert error_of(capsys, main([command, "list", *twice])) == told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--model.backbone a --model.backbone b", r"^--model.backbone is given 2 times \(a, b\)"),
        ("--model PromptTuning --model CrossModelProjector", r"^--model is given 2 times \(PromptTuning, Cross"),
        ("--trainer.max_steps 3 --x 1 --trainer.max_steps=4", r"^--trainer.max_steps is given 2 times \(3, 4\)"),
        ("--overwrite --overwrite false", r"^--overwrite is given 2 times \(true, false\)"),
        ("--tasks a --tasks b --tasks c", r"^--tasks is given 3 times \(a, b, c\)"),
        ("--model.init Text --model.init Normal", r"^--model.init is given 2 times \(Text, Normal\)"),
    ],
)
def test_two_values(options: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_repeated(["fit", *options.split()])


@pytest.mark.parametrize(
    "options",
    [
        # Configurations are merged, and equal values lose nothing.
        "--config a.yaml --config b.yaml -c c.yaml",
        "--model x.yaml --model PromptTuning --trainer a.yaml --trainer b.yaml",
        "--data.task a --data.task a --overwrite --overwrite=True",
        # Callbacks are appended, each with options of its own.
        "--trainer.callbacks+ A --trainer.callbacks.x 1 --trainer.callbacks+ B --trainer.callbacks.x 2",
        "--model.init Text --model.init.text x --model.initial 3",
    ],
)
def test_what_may_be_repeated(options: str) -> None:
    check_repeated(["fit", *options.split()])


def test_only_scores_take_several_prompts() -> None:
    twice = ["--prompt", "a", "--prompt", "b"]
    check_repeated(["test", *twice])
    with pytest.raises(UserError, match=r"^--prompt is given 2 times"):
        check_repeated(["prompts", *twice])


def test_all_values_of_an_option_are_taken() -> None:
    arguments = ["--x", "1", "--prompt", "a", "b", "--y=2", "--prompt=c d", "--prompts", "e"]
    assert take_values(arguments, "--prompt") == (["a", "b", "c d"], ["--x", "1", "--y=2", "--prompts", "e"])
    assert take_values(["--x"], "--prompt") == ([], ["--x"])
    for given in (["--prompt"], ["--prompt", "--x"], ["--prompt", "--prompt", "a"]):
        with pytest.raises(UserError, match=r"^--prompt needs a value$"):
            take_values(given, "--prompt")


def test_a_run_is_not_started_on_the_second_of_two_tasks(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = error_of(capsys, fit(toy, tiny_roberta, tmp_path / "run", "--data.task", "builtin_movies"))
    assert told.startswith(f"error: --data.task is given 2 times ({toy}, builtin_movies)")
    assert not (tmp_path / "run").exists()
