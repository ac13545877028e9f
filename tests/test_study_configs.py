"""The study configurations run from prompts to the last figure: two tasks, a few steps, `roberta-nano`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from prompt_transfer.cli import main
from prompt_transfer.commands import sweep
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.studies.sweep.executor import OnFinish, Outcome, record_outcome
from prompt_transfer.studies.sweep.local_executor import LocalExecutor
from prompt_transfer.studies.sweep.plan import Run, State

STUDIES = Path(__file__).resolve().parent.parent / "configs" / "study"
TASKS = ["sst2", "imdb"]
# Correlations need three tasks.
MORE = [*TASKS, "rotten_tomatoes"]
SHORT = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--data.batch_size", "4"]
SMALL = ["--data.limit_eval", "8", "--data.max_length", "16"]


def command(text: str, *more: str) -> None:
    assert main([*text.split(), *more]) == 0, text


def table(path: str) -> pd.DataFrame:
    read = pd.read_parquet if path.endswith("parquet") else pd.read_csv
    found: pd.DataFrame = read(path)
    assert len(found), path
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data folder with three tasks, whose rows are the built-in film reviews."""
    root = tmp_path_factory.mktemp("data")
    reviews = TaskDataModule("builtin_movies").data[0].split("train").to_pandas()
    for task, column in (("sst2", "sentence"), ("imdb", "text"), ("rotten_tomatoes", "text")):
        (root / task).mkdir()
        for number, split in enumerate(("train", "validation", "test")):
            rows = reviews[number * 60 : number * 60 + 60].rename(columns={"text_a": column})[[column, "label"]]
            rows.to_csv(root / task / f"{split}.csv", index=False)
    return root


def execute(self: LocalExecutor, runs: Sequence[Run], states: Sequence[State], on_finish: OnFinish) -> None:
    """Run each `fit` in this process, where a process of its own takes longer to import torch than to train."""
    for run, state in zip(runs, states, strict=True):
        config, output = self.folder / "configs" / f"{run.name}.yaml", self.folder / "runs" / run.name
        code = main(["fit", "--config", str(config), "--output", str(output)])
        record_outcome(self.folder, run, state, Outcome(code, "", 0.0))
        on_finish(run, state)


def follow(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    """Run a command of a sweep's `then` in this process."""
    start = command.index("prompt_transfer") + 1
    return subprocess.CompletedProcess(command, main(command[start:]))


@pytest.fixture(autouse=True, scope="module")
def _in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalExecutor, "execute", execute)
        patch.setattr(sweep, "subprocess", SimpleNamespace(run=follow))
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Run study/cross_task.yaml in a working folder of its own."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command(
            f"sweep --config study/cross_task.yaml --data.root {data} --output runs/cross_task",
            *SHORT,
            *SMALL,
            *names(MORE),
        )
    return folder


@pytest.fixture
def local(data: Path) -> list[str]:
    return ["--data.source", "local", "--data.root", str(data), *SMALL]


@pytest.fixture
def here(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)


def names(tasks: list[str] = TASKS) -> list[str]:
    return ["--data.task", "[" + ",".join(tasks) + "]"]


@pytest.mark.usefixtures("here")
def test_cross_task_and_transfer_init(data: Path) -> None:
    matrix = pd.read_csv("runs/cross_task/transfer/matrix.csv", index_col=0)
    assert set(TASKS) <= set(matrix.index)
    options = [*SHORT, *SMALL, *names(["sst2"])]
    command(f"sweep --config study/transfer_init.yaml --data.root {data} --output runs/transfer_init", *options)
    pairs = table("runs/transfer_init/convergence/pairs.csv")
    assert set(pairs["task"]) == {"sst2"}
    assert set(pairs["source"]) == {"imdb"}


@pytest.mark.usefixtures("here")
def test_neurons_and_indicators(local: list[str]) -> None:
    study = "--backbone roberta-nano --prompts runs/cross_task/runs"
    command(f"neurons capture {study} --tasks sst2,imdb --output runs/neurons", *local)
    command(f"neurons skill {study} --output runs/neurons", *local)
    command(f"neurons probe {study} --output runs/neurons", *local)
    command("neurons compare --prompts runs/cross_task/runs --neurons runs/neurons --output runs/neurons_compare")
    command(
        "analyze indicators --prompts runs/cross_task/runs --matrix runs/cross_task/transfer/matrix.csv "
        "--neurons runs/neurons --resamples 20 --output runs/indicators"
    )
    assert {"neuron_overlap", "gradient_cosine"} <= set(table("runs/indicators/indicators.parquet")["indicator"])
    command(f"neurons mask {study} --tasks sst2 --ratios [0.1] --random_seeds 1 --output runs/masks", *local)
    assert {"own", "random"} <= set(table("runs/masks/results.parquet")["mask"])


@pytest.mark.usefixtures("here")
def test_projectors_and_projected_init(data: Path, local: list[str]) -> None:
    short = [*SHORT, *SMALL]
    for backbone in ("bert-nano", "roberta-nano"):
        prompts = f"--model.backbone {backbone} --model.dtype bfloat16 --output runs/{backbone}"
        command(f"sweep --config study/prompts.yaml --data.root {data} {prompts}", *short, *names())
    command(
        f"sweep --config study/projectors.yaml --model.backbone roberta-nano --model.prompts runs/bert-nano/runs "
        f"--data.root {data} --seed_everything [0] --data.held_out [imdb] --output runs/projectors",
        *short,
        *names(),
    )
    command(
        "analyze projection runs/projectors/runs/task_tuning-seed0 runs/projectors/runs/distill-seed0 "
        "--sources runs/bert-nano/runs --own runs/roberta-nano/runs --tasks sst2,imdb --random_prompts 1 --shuffles 1 "
        "--output runs/projection",
        *local,
    )
    assert set(table("runs/projection/projection.parquet")["task"]) >= set(TASKS)
    # Two steps leave the projections of all prompts by one projector equal, so each seed has a projector of its own.
    for seed, objective in enumerate(("distill", "task_tuning")):
        projector = f"--projector runs/projectors/runs/{objective}-seed0"
        output = f"--output runs/projected/sst2-{seed}.safetensors"
        command(f"prompts project runs/bert-nano/runs/sst2/prompt.safetensors {projector} {output}")
    options = [*short, *names(["sst2"]), "--model.seeds", "[0,1]"]
    command(f"sweep --config study/projected_init.yaml --data.root {data} --output runs/projected_init", *options)
    assert set(table("runs/projected_init/convergence/pairs.csv")["task"]) == {"sst2"}


@pytest.mark.parametrize("name", ["separate_starts", "attention", "prompts_smollm2"])
@pytest.mark.usefixtures("here")
def test_other_sweeps(data: Path, name: str) -> None:
    options = ["--model.backbone", "roberta-nano" if name == "prompts_smollm2" else "[roberta-nano]", *names(["sst2"])]
    if name == "separate_starts":
        options = names()
    command(f"sweep --config study/{name}.yaml --data.root {data} --output runs/{name}", *SHORT, *SMALL, *options)
    assert set(table(f"runs/{name}/sweep.csv")["status"]) == {"done"}


@pytest.mark.usefixtures("here")
def test_transfer_init_of_smollm2(data: Path) -> None:
    folder = Path("checkpoints/prompts/smollm2-135m")
    folder.mkdir(parents=True)
    (prompt,) = Path("runs/cross_task/runs").glob("imdb*/prompt-seed0.safetensors")
    for source in ("laptop", "restaurant", "snli"):
        shutil.copy(prompt, folder / f"{source}.safetensors")
    options = ["--model.backbone", "roberta-nano", "--seed_everything", "[0]", *SHORT, *SMALL, *names(["sst2"])]
    command(f"sweep --config study/transfer_init_smollm2.yaml --data.root {data} --output runs/starts", *options)
    pairs = table("runs/starts/convergence/pairs.csv")
    assert set(zip(pairs["task"], pairs["source"], pairs["kind"], strict=True)) == {("sst2", "imdb", "same type")}


def test_every_sweep_has_a_test() -> None:
    found = {path.stem for path in STUDIES.glob("*.yaml") if "grid" in yaml.safe_load(path.read_text())}
    text = Path(__file__).read_text()
    assert [name for name in sorted(found) if f"study/{name}.yaml" not in text and f'"{name}"' not in text] == []
