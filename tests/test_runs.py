"""Run folders: overwriting, kills, Ctrl-C and resuming."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from start_models import byte_level_with_start, save_llama
from test_cli import FIT, error_of, fit, without

from prompt_transfer.callbacks.checkpoints import AtomicCheckpointIO
from prompt_transfer.cli import main
from prompt_transfer.commands.parsing import program
from prompt_transfer.prompts.prompt import Prompt

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def evaluations(output: Path) -> list[int]:
    """Return the optimizer steps of each of the run's evaluations."""
    frame = pd.read_csv(output / "logs" / "metrics.csv")
    return (frame.dropna(subset=["validation/score"])["step"] + 1).astype(int).tolist()


def test_overwrite_takes_no_folder_of_other_files(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Simulate a checkout of this project: `--output . --overwrite` must keep its `checkpoints`.
    precious = tmp_path / "project" / "checkpoints" / "model.safetensors"
    precious.parent.mkdir(parents=True)
    precious.write_text("weights")
    assert "has files but no run to overwrite" in error_of(
        capsys, fit(toy, tiny_roberta, tmp_path / "project", "--overwrite")
    )
    assert precious.read_text() == "weights"


def test_overwrite_removes_the_run_and_nothing_else(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    for name in ("notes.txt", "checkpoints/mine.ckpt"):
        (output / name).write_text("mine")
    assert fit(toy, tiny_roberta, output, "--overwrite") == 0
    assert [(output / name).read_text() for name in ("notes.txt", "checkpoints/mine.ckpt")] == ["mine", "mine"]


def test_quick_start_does_not_replace_another_run(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    before = (output / "prompt.safetensors").read_bytes()
    assert "give another --output" in error_of(capsys, main(["quickstart", "--steps", "2", "--output", str(output)]))
    assert (output / "prompt.safetensors").read_bytes() == before


def test_scores_of_a_test_do_not_replace_those_of_the_run(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    before = (output / "results.csv").read_bytes()
    assert "would be overwritten" in error_of(capsys, main(["test", "--prompt", str(output), "--output", str(output)]))
    assert (output / "results.csv").read_bytes() == before


def test_a_run_goes_on_and_its_prompt_works_from_another_folder(
    toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths on the command line: backbone, task, root, prompt to start from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "backbone").symlink_to(tiny_roberta)
    toy.write_text(toy.read_text().replace("local: data/toy\n", ""))
    root = ["--data.root", "data"]
    assert fit(Path("toy.yaml"), Path("backbone"), Path("first"), *root) == 0
    start = ["--model.init", "FromPrompt", "--model.init.prompt", "first/prompt.safetensors"]
    assert fit(Path("toy.yaml"), Path("backbone"), Path("run"), *root, *start) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["fit", "--output", "../run", "--resume", "--trainer.max_steps", "6"]) == 0
    assert evaluations(tmp_path / "run") == [2, 4, 6]
    assert main(["test", "--prompt", "../run", "--random_prompts", "0"]) == 0


def test_data_of_the_environment_are_found_without_it(
    toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.write_text(toy.read_text().replace("local: data/toy\n", ""))
    monkeypatch.setenv("PROMPT_TRANSFER_DATA", str(tmp_path / "data"))
    assert fit(toy, tiny_roberta, tmp_path / "run") == 0
    monkeypatch.delenv("PROMPT_TRANSFER_DATA")
    assert main(["fit", "--output", str(tmp_path / "run"), "--resume", "--trainer.max_steps", "6"]) == 0
    assert main(["validate", "--prompt", str(tmp_path / "run"), "--random_prompts", "0"]) == 0


def test_the_last_steps_are_scored_and_kept(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    uneven = ["--trainer.max_steps", "5", "--trainer.val_check_interval", "2"]
    assert fit(toy, tiny_roberta, tmp_path / "steps", *uneven) == 0
    assert evaluations(tmp_path / "steps") == [2, 4, 5]
    checkpoint = torch.load(tmp_path / "steps" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 5
    # 40 rows make 5 batches of 8 an epoch.
    epochs = ["--trainer.max_steps", "-1", "--trainer.max_epochs", "2", "--data.batch_size", "8"]
    assert fit(toy, tiny_roberta, tmp_path / "epochs", *epochs, "--trainer.val_check_interval", "4") == 0
    assert evaluations(tmp_path / "epochs") == [4, 8, 10]
    assert evaluations_after_more(tmp_path / "steps") == [2, 4, 5, 6, 7]


def evaluations_after_more(output: Path) -> list[int]:
    assert main(["fit", "--output", str(output), "--resume", "--trainer.max_steps", "7"]) == 0
    return evaluations(output)


def test_options_win_over_the_checkpoint(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    constant = ["--model.schedule", "constant", "--model.learning_rate"]
    assert fit(toy, tiny_roberta, output, *constant, "0.01") == 0
    again = ["fit", "--output", str(output), "--resume", "--trainer.max_steps", "6"]
    assert main([*again, "--model.learning_rate", "0.02"]) == 0
    checkpoint = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["initial_lr"]) == (0.02, 0.02)
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == [0.02]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.init", "Normal"], "--model.init was Vocabulary"),
        (["--model.layout", "mask_first"], "--model.layout was prefix, not mask_first"),
        (["--model.attention", "shared"], "--model.attention was full, not shared"),
        (["--seed_everything", "7"], "--seed_everything was 0, not 7"),
        (["--trainer.max_steps", "2"], "already has 4 steps"),
    ],
)
def test_what_a_run_began_with_stays(
    options: list[str],
    expected: str,
    toy: Path,
    tiny_roberta: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert expected in error_of(capsys, main(["fit", "--output", str(output), "--resume", *options]))
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_run_of_another_release_keeps_its_frame(toy: Path, tmp_path: Path) -> None:
    """Before the layout with a start token existed, a configuration without a layout meant the one without it."""
    output, llama = tmp_path / "run", save_llama(byte_level_with_start(), tmp_path / "llama")
    assert fit(toy, llama, output, "--model.layout", "answer_last") == 0
    config = yaml.safe_load((output / "config.yaml").read_text())
    config["model"].get("init_args", config["model"])["layout"] = None
    (output / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--output", str(output), "--resume", "--trainer.max_steps", "6"]) == 0
    prompt = Prompt.load(output)
    assert (prompt.metadata["layout"], prompt.metadata["steps"] <= "6") == ("answer_last", True)
    again = ["--prompt", str(output), "--random_prompts", "0"]
    assert main(["test", *again, "--output", str(tmp_path / "test")]) == 0
    assert set(pd.read_csv(tmp_path / "test" / "results.csv")["layout"]) == {"answer_last"}
    # An empty text without cue or start token is answered too.
    (tmp_path / "texts.csv").write_text('text\n""\nthe film is good\n')
    assert (
        main(
            [
                "predict",
                "--prompt",
                str(output),
                "--input",
                str(tmp_path / "texts.csv"),
                "--output",
                str(tmp_path / "said"),
            ]
        )
        == 0
    )
    assert len(pd.read_parquet(tmp_path / "said" / "predictions.parquet")) == 2
    # A new run has the start token.
    assert fit(toy, llama, tmp_path / "new") == 0
    assert Prompt.load(tmp_path / "new").metadata["layout"] == "start_answer_last"


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    files = AtomicCheckpointIO()
    files.save_checkpoint({"step": 1}, path)

    def half(value: object, target: Path) -> None:
        target.write_bytes(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        files.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]


def start(toy: Path, backbone: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "prompt_transfer",
        "fit",
        "--model.backbone",
        str(backbone),
        "--data.task",
        str(toy),
    ]
    command += ["--data.task", str(toy), "--data.source", "local", *without(FIT, more), "--output", str(output), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background ignores Ctrl-C; the command must not inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300  # a few seconds on an idle machine
    while not path.is_file():
        assert process.poll() is None, process.stderr and process.stderr.read()
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"{path} never came")
        time.sleep(0.05)


LONG = ["--trainer.max_steps", "100000", "--trainer.val_check_interval", "20"]


@pytest.mark.timeout(600)
def test_ctrl_c_says_how_to_go_on(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start(toy, tiny_roberta, output, *LONG)
    wait_for(output / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130
    assert errors.splitlines()[-2:] == [f"resume with: {program()} fit --output {output} --resume", "interrupted"]
    assert "Traceback" not in errors


@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_to_the_same_prompt(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # A constant learning rate: the killed run's schedule would be longer than the other's.
    constant = ["--model.schedule", "constant", "--data.batch_size", "8"]
    process = start(toy, tiny_roberta, killed, *LONG, *constant)
    wait_for(killed / "checkpoints" / "last.ckpt", process)
    process.kill()
    process.communicate()
    done = torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    steps = ["--trainer.max_steps", str(done + 20)]
    assert main(["fit", "--output", str(killed), "--resume", *steps]) == 0
    assert fit(toy, tiny_roberta, whole, *without(LONG, tuple(steps)), *constant, *steps) == 0
    one, other = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["reparameterization.prompt"]
        for folder in (whole, killed)
    )
    assert torch.equal(one, other)
    assert torch.equal(*(Prompt.load(folder / "prompt.safetensors").embeddings for folder in (whole, killed)))
    assert yaml.safe_load((killed / "config.yaml").read_text())["trainer"]["max_steps"] == done + 20
    # Steps between checkpoint and kill are not logged twice.
    assert evaluations(killed) == evaluations(whole)
