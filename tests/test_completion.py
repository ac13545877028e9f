"""Shell completion: the script knows every command and option, and bash completes them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from prompt_transfer.cli import main
from prompt_transfer.commands.completion import script, tree
from prompt_transfer.commands.table import COMMANDS


@pytest.fixture(scope="module")
def commands() -> dict[str, dict[str, list[str]]]:
    return tree()


def complete(script: Path, *words: str) -> list[str]:
    """Return bash's completions for the last of these words."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    lines = """
        source "$1"; shift
        COMP_WORDS=(prompt-transfer "$@"); COMP_CWORD=$#
        _prompt_transfer prompt-transfer "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    call = ["bash", "-uc", lines, "bash", str(script), *words]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()


def test_the_tree_is_what_help_says(commands: dict[str, dict[str, list[str]]]) -> None:
    assert {name.split()[0] for name in commands} == set(COMMANDS)
    assert {"list", "inspect", "recommend"} <= set(commands["prompts"])
    assert {"--model.backbone", "--data.task", "--output", "--config"} <= set(commands["fit"])
    assert commands["fit"]["--data.source"] == ["hub", "local", "builtin"]
    assert "builtin_movies" in commands["fit"]["--data.task"]
    assert "roberta-nano" in commands["transfer"]["--backbone"]
    assert "experiment/quickstart.yaml" in commands["fit"]["--config"]
    assert commands["prompts fit-projector"]["--kind"] == ["least_squares", "linear_combination", "relative"]
    assert commands["tasks list"] == {}


def test_bash_completes(commands: dict[str, dict[str, list[str]]], tmp_path: Path) -> None:
    path = tmp_path / "completion"
    path.write_text(script("bash", commands))
    assert complete(path, "tra") == ["transfer"]
    assert complete(path, "prompts", "rec") == ["recommend"]
    assert complete(path, "fit", "--model.lay") == ["--model.layout"]
    assert complete(path, "fit", "--data.source", "lo") == ["local"]
    assert complete(path, "tasks", "list", "--j") == ["--json"]
    assert complete(path, "completion", "") == ["bash", "zsh"]
    # The shell completes file names.
    assert complete(path, "prompts", "inspect", "") == []
    assert complete(path, "nothing", "") == []


def test_zsh_reads_the_script_of_bash(commands: dict[str, dict[str, list[str]]], tmp_path: Path) -> None:
    text = script("zsh", commands)
    assert text.splitlines()[0].endswith("bashcompinit")
    assert text.split("_prompt_transfer() {")[1] == script("bash", commands).split("_prompt_transfer() {")[1]
    if shutil.which("zsh"):
        path = tmp_path / "completion"
        path.write_text(text)
        subprocess.run(["zsh", "-n", str(path)], check=True)


def test_another_shell_is_an_error_and_help_needs_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bsh"]) == 2
    assert "did you mean 'bash'" in capsys.readouterr().err
    assert main(["completion"]) == 0
    assert "~/.bashrc" in capsys.readouterr().out
