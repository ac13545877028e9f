"""Sharded backbones (`--trainer.strategy fsdp`): the same prompts as one process, on a share of the weights each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
from conftest import ROOT
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from test_distributed_generation import ROWS, Keep, write
from test_prompt_tuning import make
from torch.distributed.tensor import DTensor
from torch.multiprocessing import ProcessExitedException

from prompt_transfer.backbones import sharding
from prompt_transfer.backbones.layer_files import FILES, layers_of
from prompt_transfer.callbacks.export import PromptExport
from prompt_transfer.cli import main
from prompt_transfer.commands import lightning as commands
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.modules.sharded import ShardedStrategy
from prompt_transfer.prompts.initializers import Normal
from prompt_transfer.prompts.prompt import Prompt

Tiny = Callable[[str], Path]
RATE = {"learning_rate": 0.01}


@pytest.fixture
def task(toy: Path) -> str:
    return str(toy)


class Forked(ShardedStrategy):
    """The strategy with forked processes, which need no second start of the program."""

    def __init__(self) -> None:
        super().__init__(start_method="fork")


class Report(Callback):
    """A callback that writes a file per process about its share of the weights."""

    def __init__(self, folder: Path, module: Any) -> None:
        self.folder, self.tensors = folder, getattr(module.backbone.model, FILES).tensors
        self.loaded = self.tensors.bytes_read

    def on_train_end(self, trainer: Any, module: Any) -> None:
        model = module.backbone.model
        shares = [p for layer in layers_of(model) for p in layer.parameters() if isinstance(p, DTensor)]
        found = {
            "share": sharding.local_bytes(model)[0],
            "read": self.tensors.bytes_read - self.loaded,
            "whole": sum(p.numel() * p.element_size() for p in shares),
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))


class Kill(Callback):
    """A callback that kills a process of the run in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class ForkedDDP(DDPStrategy):
    """DDP with forked processes."""

    def __init__(self) -> None:
        super().__init__(start_method="fork")


class Counts(Callback):
    """A callback that writes the numbers of micro-batches of each process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.counts = folder, list[int]()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.counts.append(len(batch["micro_batches"]))
        (self.folder / f"counts{trainer.global_rank}.json").write_text(json.dumps(self.counts))


def make_sharded(task: str, backbone: Path, tmp_path: Path, **options: Any) -> tuple[PromptTuning, TaskDataModule]:
    with sharding.deferred():
        return make(task, backbone, tmp_path, **options)


def fit(
    made: tuple[PromptTuning, TaskDataModule],
    folder: Path,
    strategy: Any,
    callbacks: Sequence[Callback] = (),
    resume: str | None = None,
    devices: int = 2,
) -> Prompt:
    """Train three steps with a checkpoint each and one validation; return the exported prompt."""
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_steps=3, max_epochs=-1, val_check_interval=3,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, use_distributed_sampler=False, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[
            ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}"),
            PromptExport(folder / "prompt.safetensors"),
            *callbacks,
        ],
    )  # fmt: skip
    trainer.fit(made[0], datamodule=made[1], ckpt_path=resume, weights_only=True)
    return Prompt.load(folder)


def same(one: Prompt, other: Prompt, atol: float = 1e-6) -> None:
    assert one.initial is not None
    assert other.initial is not None
    assert torch.equal(one.initial, other.initial)
    assert (one.values - one.initial).abs().max() > 1e-2
    torch.testing.assert_close(other.values, one.values, atol=atol, rtol=0)
    assert other.metadata["score"] == one.metadata["score"]


# Training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("roberta", {}),
        ("roberta", {"attention": "shared", "gradient_checkpointing": True}),
        ("t5", {}),
        ("gpt2", {"method": "deep_prompt", "init": None}),
    ],
)
def test_two_processes_equal_one(
    task: str, tiny: Tiny, tmp_path: Path, family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fit(make(task, tiny(family), tmp_path, **RATE, **options), tmp_path / "one", "auto", devices=1)
    made = make_sharded(task, tiny(family), tmp_path, **RATE, **options)
    weights = [p for layer in layers_of(made[0].backbone.model) for p in layer.parameters()]
    # Nothing but T5's tables of relative positions is loaded before the processes start.
    assert sum(not p.is_meta for p in weights) == (2 if family == "t5" else 0)
    log, save = tmp_path / "saved", Prompt.save

    def saving(self: Prompt, path: Any) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        save(self, path)

    monkeypatch.setattr(Prompt, "save", saving)
    same(expected, fit(made, tmp_path / "two", Forked(), [Report(tmp_path, made[0])]))
    assert len(log.read_text().splitlines()) == 1
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert sum(one["share"] for one in found) == found[0]["whole"]
    for one in found:
        assert 0.45 * one["whole"] < one["share"] < 0.55 * one["whole"]
        # float32 in file and memory: a process reads its share and nothing else, one weight's rows at a time.
        assert one["read"] == one["share"]
    state = torch.load(tmp_path / "two" / "step=3.ckpt", weights_only=True)
    assert not any("backbone" in name for name in state["state_dict"])
    assert (tmp_path / "two" / "step=3.ckpt").stat().st_size < 60_000


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_four_processes_equal_one(task: str, tiny: Tiny, tmp_path: Path, family: str) -> None:
    expected = fit(make(task, tiny(family), tmp_path, **RATE), tmp_path / "one", "auto", devices=1)
    made = make_sharded(task, tiny(family), tmp_path, **RATE)
    same(expected, fit(made, tmp_path / "four", Forked(), [Report(tmp_path, made[0])], devices=4))
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(4)]
    assert sum(one["share"] for one in found) == found[0]["whole"]
    assert max(one["read"] for one in found) < 0.3 * found[0]["whole"]


def test_processes_with_different_numbers_of_micro_batches(task: str, tiny: Tiny, tmp_path: Path) -> None:
    rows = [f"{'very ' * (2 * i)}{('bad', 'good')[i % 2]},{i % 2}" for i in range(24)]
    (tmp_path / "data" / "toy" / "train.csv").write_text("\n".join(["text,label", *rows]))
    expected = fit(make(task, tiny("gpt2"), tmp_path, **RATE), tmp_path / "one", "auto", devices=1)
    made = make_sharded(task, tiny("gpt2"), tmp_path, max_tokens=88, **RATE)
    counts = Counts(tmp_path)
    same(expected, fit(made, tmp_path / "two", Forked(), [counts]))
    first, second = (json.loads((tmp_path / f"counts{rank}.json").read_text()) for rank in range(2))
    assert first != second


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("strategy", ["sharded", "ddp"])
@pytest.mark.filterwarnings("ignore")
def test_a_killed_run_resumes_with_the_same_result(
    task: str, tiny: Tiny, tmp_path: Path, strategy: str, quantization: str | None
) -> None:
    if quantization is None and strategy == "ddp":
        pytest.skip("tests/test_prompt_tuning.py")
    if quantization is not None:
        pytest.importorskip("torchao", reason="the extra `quantization` is not installed")
    options = {**RATE, "quantization": quantization}
    build, make_strategy = (make_sharded, Forked) if strategy == "sharded" else (make, ForkedDDP)
    expected = fit(make(task, tiny("llama"), tmp_path, **options), tmp_path / "one", "auto", devices=1)
    whole = fit(build(task, tiny("llama"), tmp_path, **options), tmp_path / "whole", make_strategy())
    same(expected, whole)
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        fit(build(task, tiny("llama"), tmp_path, **options), tmp_path / "killed", make_strategy(), [Kill(2)])
    assert not (tmp_path / "killed" / "prompt.safetensors").exists()
    last = str(tmp_path / "killed" / "step=1.ckpt")
    torch.manual_seed(99)
    resumed = fit(build(task, tiny("llama"), tmp_path, **options), tmp_path / "killed", make_strategy(), resume=last)
    same(whole, resumed, atol=0)


@pytest.mark.filterwarnings("ignore:.*have texts that are in train too")
def test_two_processes_write_what_one_writes(tiny: Tiny, tmp_path: Path) -> None:
    task, found = write(tmp_path, ["nothing"] * ROWS), []
    for name, strategy, devices in (("one", "auto", 1), ("two", Forked(), 2)):
        L.seed_everything(3)
        with sharding.deferred() if devices > 1 else nullcontext():
            module = PromptTuning(str(tiny("t5")), prompt_length=3, init=Normal(0.5))
        module.keep_records = True
        trainer = L.Trainer(
            accelerator="cpu", devices=devices, strategy=strategy, logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False,
            callbacks=[Keep(tmp_path / name)], default_root_dir=tmp_path,
        )  # fmt: skip
        data = TaskDataModule(task, "local", eval_batch_size=2, cache_dir=str(tmp_path / "cache"))
        trainer.test(module, datamodule=data, verbose=False)
        kept = torch.load(tmp_path / name, weights_only=True)
        found.append((sorted(kept["records"]), float(kept["metrics"]["test/loss"])))
    assert found[1][0] == found[0][0]
    # The processes write texts of different lengths, and so need different numbers of steps.
    assert len({len(text) for _, text in found[0][0]}) > 1
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-5)


# Commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(task: str, tiny: Tiny, tmp_path: Path) -> list[str]:
    """Return a run of `fit` with the shipped options file."""
    return [
        "fit", "--trainer", "trainer/fsdp.yaml", "--data.task", task, "--data.source", "local", "--model.backbone",
        str(tiny("t5")), "--model.prompt_length", "3", "--data.batch_size", "8", "--trainer.max_steps", "2",
        "--output", str(tmp_path / "run"),
    ]  # fmt: skip


def test_the_shipped_options_run(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "ShardedStrategy", Forked)
    assert main(command) == 0
    assert Prompt.load(tmp_path / "run").metadata["steps"] == "2"
    assert "strategy: fsdp" in (tmp_path / "run" / "config.yaml").read_text()
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["processes"][0]["processes"] == 2


def test_strategies_that_would_shard_the_prompt(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("FSDPStrategy", "ModelParallelStrategy"):
        chosen = json.dumps({"class_path": f"lightning.pytorch.strategies.{name}"})
        assert main([*command, "--trainer.strategy", chosen]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"--trainer.strategy {name} would shard the prompt too: use --trainer.strategy fsdp" in line


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_of_their_own_evaluate_as_one(command: list[str], tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    options = ["--trainer", "trainer/fsdp.yaml"]
    for arguments in (
        command,
        ["test", "--prompt", run, "--output", str(tmp_path / "two"), *options],
        ["predict", "--prompt", run, "--output", str(tmp_path / "two"), *options],
    ):
        subprocess.run([sys.executable, "-m", "prompt_transfer", *arguments], check=True, cwd=ROOT, timeout=170)
    assert main(["test", "--prompt", run, "--output", str(tmp_path / "one")]) == 0
    assert main(["predict", "--prompt", run, "--output", str(tmp_path / "one")]) == 0
    one, two = (pd.read_csv(tmp_path / name / "results.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
    one, two = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
