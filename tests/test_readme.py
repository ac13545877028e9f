"""What the README shows runs. The quick start runs with few steps here, and in full among the slow tests."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from prompt_transfer.cli import main
from prompt_transfer.commands.lightning import find_configs

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# A run of some steps, for commands that would train for minutes.
SHORT = {
    "fit": ["--trainer.max_steps", "6", "--trainer.val_check_interval", "3"],
    "test": ["--data.limit_eval", "100"],
    "transfer": ["--data.limit_eval", "40", "--random_prompts", "1"],
}
QUICKSTART = ["quickstart", "--output", "runs/quickstart"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("prompt-transfer ")]


def test_the_shell_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    found = commands()
    assert {"fit", "test", "prompts"} <= {command[0] for command in found}
    for command in found:
        if "FacebookAI/roberta-base" in command:
            # The hub is not for tests: the rest of the command must be sound, and the answer one line.
            assert main(command) == 2
            assert "unknown backbone 'FacebookAI/roberta-base'" in capsys.readouterr().err
            continue
        assert main([*command, *SHORT.get(command[0], [])]) == 0, command
    assert (tmp_path / "runs" / "films" / "prompt.safetensors").is_file()


def test_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", "\n".join(blocks("bash")), flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M)


def test_the_python_block_runs(tmp_path: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([20, 256]) roberta-nano" in done.stdout


def test_the_task_of_the_readme_is_a_task(tmp_path: Path) -> None:
    from prompt_transfer.tasks import get_task

    (text,) = blocks("yaml")
    (tmp_path / "trec.yaml").write_text(text)
    task = get_task(str(tmp_path / "trec.yaml"))
    assert (task.name, task.num_classes) == ("trec", 3)


def test_named_configurations_are_found() -> None:
    for name in re.findall(r"--config (\S+\.yaml)", README):
        assert Path(find_configs(["--config", name])[1]).is_file()


def quick_start(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> pd.DataFrame:
    monkeypatch.chdir(folder)
    assert main([*QUICKSTART, *more]) == 0
    assert (folder / "runs/quickstart/prompt.safetensors").is_file()
    assert (folder / "runs/quickstart/learning_curve.png").stat().st_size > 10_000
    return pd.read_csv(folder / "runs/quickstart/quickstart.csv").set_index("task")


def test_quick_start_leaves_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = quick_start(tmp_path, monkeypatch, "--steps", "10")
    assert list(table["use"]) == ["trained on it", "zero-shot"]


@pytest.mark.slow
def test_quick_start_reaches_what_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = quick_start(tmp_path, monkeypatch)
    own, other = table.iloc[0], table.iloc[1]
    assert own["trained prompt"] >= own["majority"] + 0.15
    assert other["trained prompt"] >= other["random prompt"] + 0.05
