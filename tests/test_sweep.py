"""Sweeps: the meaning of a plan file, and the runs that are repeated or skipped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from prompt_transfer.cli import main
from prompt_transfer.commands.sweep import split_options
from prompt_transfer.studies.sweep.executor import Outcome, read_outcome, state_file
from prompt_transfer.studies.sweep.local_executor import LocalExecutor, cores
from prompt_transfer.studies.sweep.plan import Run, State, read_plan
from prompt_transfer.utils.errors import UserError

PLAN = {
    "fit": {"model": {"prompt_length": 5, "seeds": [0, "100{run}"]}, "data": {"source": "builtin"}},
    "grid": {"data.task": ["a", "b"], "model.attention": ["full", "shared"]},
    "cases": [{"when": {"data.task": "b"}, "data.max_length": 99, "model": {"init": {"class_path": "X"}}}],
    "name": "{data.task}-{model.attention}",
    "then": [
        {"transfer": {"tasks": "{data.task}", "prompts": "{runs}", "data.source": "{data.source}"}},
        {"analyze matrix": {"arguments": "{output}/matrix.csv"}},
    ],
}


def write(folder: Path, content: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_every_combination_is_a_run(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, PLAN), Path("OUT"), {})
    assert [run.name for run in plan.runs] == ["a-full", "a-shared", "b-full", "b-shared"]
    assert plan.runs[0].options == {
        "model.prompt_length": 5, "model.seeds": [0, 1001], "data.source": "builtin", "data.task": "a",
        "model.attention": "full",
    }  # fmt: skip
    assert plan.runs[3].options["model.seeds"] == [0, 1004]
    assert plan.runs[3].options["data.max_length"] == 99
    assert yaml.safe_load(plan.runs[3].config())["model"]["init"] == {"class_path": "X"}
    assert plan.then[0] == ["transfer", "--tasks", "a,b", "--prompts", "OUT/runs", "--data.source", "builtin"]
    assert plan.then[1] == ["analyze", "matrix", "OUT/matrix.csv"]


def test_options_of_the_command_line_win(tmp_path: Path) -> None:
    given = {"data.max_length": 7, "data.task": ["b"], "model.attention": "full"}
    plan = read_plan(write(tmp_path, PLAN), Path("OUT"), given)
    assert [run.name for run in plan.runs] == ["b-full"]
    assert plan.runs[0].options["data.max_length"] == 7


def test_a_seed_in_braces_waits_for_the_run(tmp_path: Path) -> None:
    path = write(tmp_path, {"fit": {"model.init.path": "{output}/p-seed{seed}"}, "grid": {"data.task": ["a"]}})
    assert read_plan(path, Path("OUT"), {}).runs[0].options["model.init.path"] == "OUT/p-seed{seed}"


def test_a_class_is_named_without_its_options(tmp_path: Path) -> None:
    made = {"class_path": "a.b.FromPrompt", "init_args": {"prompt": "{data.task}.safetensors"}}
    content = {
        "grid": {"data.task": ["x"], "model.init": ["Vocabulary", "FromPrompt"]},
        "cases": [{"when": {"model.init": "FromPrompt"}, "model.init": made}],
    }
    plan = read_plan(write(tmp_path, content), Path("OUT"), {})
    assert [run.name for run in plan.runs] == ["x-Vocabulary", "x-FromPrompt"]
    assert plan.runs[1].values["model.init"] == "FromPrompt"
    assert plan.runs[1].options["model.init"]["init_args"] == {"prompt": "x.safetensors"}


def test_a_class_is_named_by_the_word_of_the_grid(tmp_path: Path) -> None:
    made = {"class_path": "FromPrompt", "init_args": {"prompt": "p.safetensors"}}
    content = {
        "grid": {"model.init": ["Vocabulary", "Same", {**made, "init_args": {"prompt": "other.safetensors"}}]},
        "cases": [{"when": {"model.init": "Same"}, "model.init": made}],
    }
    runs = read_plan(write(tmp_path, content), Path("OUT"), {}).runs
    assert [run.name for run in runs] == ["Vocabulary", "Same", "FromPrompt"]
    assert runs[1].options["model.init"] == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "same"}, "two runs have the name same"),
        ({"gird": {}}, "unknown key 'gird'"),
        ({"name": "{data.tusk}"}, r"unknown placeholder \{data.tusk\}"),
        ({"cases": [{"when": {"data.tusk": "a"}}]}, "data.tusk, which is not an option of the grid"),
        ({"grid": {"data.task": "a"}}, "needs a list of values"),
        ({"then": ["transfer"]}, "each step of `then` is one command"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_plan(write(tmp_path, PLAN | change), Path("OUT"), {})


def test_options_of_fit_among_those_of_the_sweep() -> None:
    own, given = split_options(["--config", "x", "--model.seeds", "[0, 1]", "--data.root=d", "--dry_run"])
    assert own == ["--config", "x", "--dry_run"]
    assert given == {"model.seeds": [0, 1], "data.root": "d"}
    with pytest.raises(UserError, match=r"--data\.root needs a value"):
        split_options(["--data.root"])


RUNS = [Run(name, {"data.task": name}, {"data.task": name}) for name in ("a", "b", "c")]


class Scripted(LocalExecutor):
    """An executor whose runs end with scripted exit codes instead of starting processes."""

    def __init__(self, folder: Path, codes: dict[str, list[int]], retries: int = 1) -> None:
        super().__init__(folder, 1, retries)
        self.codes, self.started = codes, list[str]()
        for name in ("runs", "configs", "logs", "state"):
            (folder / name).mkdir()

    def _attempt(self, run: Run, slot: int) -> Outcome:
        self.started.append(run.name)
        (self.folder / "logs" / f"{run.name}.log").write_text(f"x\nerror: {run.name} broke\n")
        return read_outcome(self.folder, run.name, self.codes[run.name].pop(0), 1.5)


def test_failures_are_tried_again_and_listed(tmp_path: Path) -> None:
    executor = Scripted(tmp_path, {"a": [1, 0], "b": [2], "c": [-9, -9]})
    states = [State(run.digest) for run in RUNS]
    executor.execute(RUNS, states, lambda run, state: None)
    # An error in the options is not retried.
    assert executor.started == ["a", "a", "b", "c", "c"]
    assert [state.status for state in states] == ["done", "failed", "failed"]
    assert [state.error for state in states] == ["", "error: b broke", "killed by SIGKILL"]
    assert [state.seconds for state in states] == [3.0, 1.5, 3.0]
    again = [State.read(state_file(tmp_path, run), run) for run in RUNS]
    assert again == states
    executor.codes = {"b": [0], "c": [0]}
    executor.execute(RUNS, again, lambda run, state: None)
    assert executor.started[5:] == ["b", "c"]
    assert {state.status for state in again} == {"done"}


@pytest.mark.parametrize(
    ("at_once", "devices", "given", "expected"),
    [
        # Four runs share two GPUs in turn, among those visible to the user.
        (4, 2, {}, {"CUDA_VISIBLE_DEVICES": ["0", "1", "0", "1"]}),
        (3, 2, {"CUDA_VISIBLE_DEVICES": "5, 7"}, {"CUDA_VISIBLE_DEVICES": ["5", "7", "5"]}),
        (1, 1, {"OMP_NUM_THREADS": "3"}, {"CUDA_VISIBLE_DEVICES": ["0"], "OMP_NUM_THREADS": ["3"]}),
        # On a CPU runs share the cores equally unless the user chose otherwise; a single run gets all.
        (2, 0, {}, {"OMP_NUM_THREADS": [str(max(1, cores() // 2))] * 2}),
        (2, 0, {"OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": ["3", "3"]}),
        (1, 0, {}, {}),
    ],
)
def test_each_slot_has_a_device_or_a_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, at_once: int, devices: int, given: dict[str, str], expected: dict[str, list[str]]
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
        if name in given:
            monkeypatch.setenv(name, given[name])
    executor = LocalExecutor(Path("sweep"), at_once, 0, devices)
    made = [executor.environment(slot) for slot in range(at_once)]
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        assert [one[name] for one in made if name in one] == expected.get(name, [])


def test_runs_of_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for options, devices in (
        ({}, 1), ({"trainer.devices": 4}, 4), ({"trainer.devices": "2"}, 2), ({"trainer.devices": [3, 5]}, 2),
        ({"trainer.devices": "auto"}, 1), ({"trainer.devices": -1}, 1),
    ):  # fmt: skip
        assert Run("a", options, {}).devices == devices
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    executor = LocalExecutor(Path("sweep"), 2, 0, 4)
    assert [executor.environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["4,5", "6,7"]
    assert executor.environment(1, 8)["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert LocalExecutor(Path("sweep"), 2, 0).environment(0, 2)["OMP_NUM_THREADS"] == str(max(1, cores() // 4))


def test_a_run_of_other_options_is_not_taken_for_done(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    State(RUNS[0].digest, "done", 1).write(path)
    with pytest.raises(UserError, match="was made with other options"):
        State.read(path, Run("a", {"data.task": "z"}, {}))
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        State.read(path, RUNS[0])


@pytest.fixture
def small(tmp_path: Path, toy: Path, tiny_roberta: Path) -> Path:
    """Run a sweep of two seeds on the toy task, and its matrix."""
    return write(
        tmp_path,
        {
            "fit": {
                "model": {"backbone": str(tiny_roberta), "prompt_length": 3},
                "data": {"task": str(toy), "batch_size": 4, "source": "local", "root": str(toy.parent)},
                "trainer": {"max_steps": 2, "val_check_interval": 1, "accelerator": "cpu"},
            },
            "grid": {"seed_everything": [0, 1]},
            "name": "seed{seed_everything}",
            "then": [
                {
                    "transfer": {
                        "backbone": str(tiny_roberta), "prompts": "{runs}", "tasks": str(toy), "random_prompts": 1,
                        "data.source": "local", "data.root": str(toy.parent), "output": "{output}/transfer",
                    }
                }
            ],
        },
    )  # fmt: skip


def test_runs_matrix_and_nothing_twice(tmp_path: Path, small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "--config", str(small), "--output", str(tmp_path / "out")]
    assert main(command) == 0, capfd.readouterr().err
    table = pd.read_csv(tmp_path / "out" / "sweep.csv")
    assert list(table["run"]) == ["seed0", "seed1"]
    assert list(table["status"]) == ["done", "done"]
    scores = pd.read_parquet(tmp_path / "out" / "results.parquet")
    assert list(scores["seed_everything"]) == [0, 1]
    assert (tmp_path / "out" / "transfer" / "matrix.csv").is_file()
    found = pd.read_parquet(tmp_path / "out" / "transfer" / "results.parquet")
    # Both seeds have the same task, so tasks share no start.
    assert set(found.loc[found["kind"] == "trained", "start"]) == {"separate"}
    written = (tmp_path / "out" / "runs" / "seed0" / "prompt.safetensors").stat().st_mtime_ns
    capfd.readouterr()
    assert main(command) == 0
    assert "2 of 2 runs are already done" in capfd.readouterr().out
    assert (tmp_path / "out" / "runs" / "seed0" / "prompt.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("{fit: {modle: {prompt_length: 3}}, grid: {data.task: [builtin_movies]}}", "--modle.prompt_length"),
        ("grid: {data.taks: [builtin_movies]}", "--data.taks: did you mean --data.task"),
        (
            "grid: {data.task: [builtin_movies], model.learning_rate: [0.1, much]}",
            "run builtin_movies-much: option --model.learning_rate: expected float or null, not much",
        ),
        ("{fit: {data: {source: builtin}}, grid: {model.prompt_length: [3]}}", "run 3: fit needs --data.task VALUE"),
    ],
)
def test_every_run_is_parsed_before_the_first_one(
    tmp_path: Path, plan: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.yaml").write_text(plan)
    command = ["sweep", "--config", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out")]
    for more in ([], ["--dry_run"], ["--dry_run", "true"]):
        assert main([*command, *more]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_misspelt_task_is_told_before_the_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.yaml").write_text("grid: {data.task: [builtin_movies, '[builtin_books, builtin_filns]']}")
    command = ["sweep", "--config", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out"), "--dry_run"]
    assert main(command) == 2
    assert "unknown task 'builtin_filns'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failed_run_is_told_and_stops_what_follows(
    tmp_path: Path, small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "--config", str(small), "--output", str(tmp_path / "out"), "--model.prompt_length", "9999"]
    assert main(command) == 2
    assert "2 of 2 runs failed: seed0, seed1" in capfd.readouterr().err
    assert "9999" in pd.read_csv(tmp_path / "out" / "sweep.csv")["error"][0]
    assert not (tmp_path / "out" / "transfer").exists()


def test_a_killed_sweep_takes_its_run_along_and_goes_on(tmp_path: Path, small: Path) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "prompt_transfer", "sweep", "--config", str(small), "--output", str(folder)]
    sweep = subprocess.Popen([*command, "--trainer.max_steps", "3"], stdout=subprocess.DEVNULL)
    try:
        state = folder / "state" / "seed0.json"
        deadline = time.monotonic() + 300
        while not state.is_file():
            assert time.monotonic() < deadline
            assert sweep.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        children = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children")
        running = [int(pid) for task in children.parent.parent.glob("*/children") for pid in task.read_text().split()]
    finally:
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in running):
        assert time.monotonic() < deadline, "a run goes on without its sweep"
        time.sleep(0.05)
    assert json.loads(state.read_text())["attempts"] == 1
    subprocess.run([*command, "--trainer.max_steps", "3"], check=True, stdout=subprocess.DEVNULL)
    assert json.loads(state.read_text())["attempts"] == 1
    assert list(pd.read_csv(folder / "sweep.csv")["status"]) == ["done", "done"]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_sweeps_in_one_folder(
    tmp_path: Path, small: Path, occupied: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with occupied(tmp_path / "out", ".sweep.lock"):
        assert main(["sweep", "--config", str(small), "--output", str(tmp_path / "out")]) == 2
    assert "is at work in" in capsys.readouterr().err
    assert not (tmp_path / "out" / "configs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cpus", "2"], "--address, --cpus and --gpus belong to --executor ray"),
        (["--at_once", "0"], "--at_once must be 1 or more"),
        (["--executor", "slurm"], "option --executor: expected local, ray, not slurm"),
        (["--executor", "ray", "--cpus", "0"], "--cpus must be above 0"),
    ],
)
def test_options_that_do_not_fit_change_nothing(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["sweep", "--config", str(small), "--output", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", "--config", str(small), "--output", str(tmp_path / "out"), "--executor", "ray"]) == 2
    assert "pip install 'prompt_transfer[ray]'" in capsys.readouterr().err


def test_seeds_that_change_nothing_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = Path(__file__).parent.parent / "checkpoints/prompts/roberta-nano/sst2.safetensors"
    fit = {
        "model": {
            "backbone": "roberta-nano",
            "init": {"class_path": "FromPrompt", "init_args": {"prompt": str(prompt)}},
        },
        "data": {"task": "builtin_movies", "seed": 0},
    }
    for seed, told in ((0, True), ("{seed_everything}", False)):
        fit["data"]["seed"] = seed
        path = write(tmp_path, {"fit": fit, "grid": {"seed_everything": [0, 1]}})
        assert main(["sweep", "--config", str(path), "--output", str(tmp_path / "out"), "--dry_run"]) == 0
        assert ("the runs 0 and 1 start from the same prompt" in capsys.readouterr().err) == told
