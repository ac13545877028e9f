"""`compare`: methods in one harness, equal to plain loops, resumed after interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from comparisons import H, P, cell, options, study
from safetensors.torch import load_file
from test_cli import error_of
from torch import nn
from transformers import AutoModelForCausalLM

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.modules.trained import TrainedModule
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.compare import score
from prompt_transfer.studies.compare.plan import Cell
from prompt_transfer.studies.compare.study import CompareData, CompareStudy, compare
from prompt_transfer.tasks.verbalizers import Verbalizer
from prompt_transfer.utils.errors import SettingsChangedError, UserError
from prompt_transfer.utils.memory import peak_memory

ROOT = Path(__file__).resolve().parent.parent
METHODS = ["prompt", "deep_prompt", "lora", "fine_tuning", "linear_probe"]


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "250")


def test_all_methods_end_to_end(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_roberta.iterdir()}
    output = tmp_path / "out"
    assert main(options(toy, tiny_roberta, output)) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(output)
    assert all(name in printed for name in ("LoRA", "fine-tuning", "linear probe", "random prompt", "majority"))
    assert {path.name: path.read_bytes() for path in tiny_roberta.iterdir()} == files

    frame = pd.read_parquet(output / "results.parquet")
    pd.testing.assert_frame_equal(frame, pd.read_csv(output / "results.csv"), check_dtype=False)
    assert frame.groupby("method").size().to_dict() == {**dict.fromkeys([*METHODS, "random_prompt"], 2), "majority": 1}
    assert set(frame["n"]) == {10}
    assert set(frame["split"]) == {"test (official)"}
    whole = sum(value.numel() for value in FrozenBackbone(str(tiny_roberta)).model.parameters())
    parameters = frame.groupby("method")["trained_parameters"].first()
    assert parameters[METHODS].tolist() == [P * H, 2 * 2 * P * H, 2 * 2 * 2 * 8 * H, whole, H + 1]
    stored = frame.groupby("method")["stored_bytes"].first()
    assert stored[METHODS].tolist() == [
        4 * P * H,
        16 * P * H,
        4 * 2 * 2 * 2 * 8 * H,
        4 * whole,
        4 * (2 * H + 2 * H + 2),
    ]
    assert (
        frame[frame["method"].isin(METHODS)]["seconds"] >= frame[frame["method"].isin(METHODS)]["seconds_to_best"]
    ).all()

    # The tables are those of the answers, on the same examples for all.
    for row in frame[frame["method"] != "majority"].to_dict("records"):
        answers = pd.read_parquet(cell(output, f"{row['method']}-seed{row['seed']}") / "predictions.parquet")
        assert answers["id"].tolist() == list(range(10))
        assert answers["label"].tolist() == [0, 1] * 5
        assert (answers["label"] == answers["answer"]).mean() == pytest.approx(row["value"])
    summary = pd.read_csv(output / "summary.csv").set_index("method")
    means = frame.groupby("method")["value"].mean()
    assert summary["value"].to_dict() == pytest.approx(means.to_dict())
    assert ((summary["low"] <= summary["value"]) & (summary["value"] <= summary["high"])).all()
    differences = pd.read_csv(output / "differences.csv").set_index("method")
    assert set(differences["reference"]) == {"prompt"}
    for name, row in differences.iterrows():
        assert row["difference"] == pytest.approx(means[name] - means["prompt"])
        assert row["low"] <= row["difference"] <= row["high"]
    for figure in ("compare.png", "curves.png"):
        assert (output / figure).read_bytes().startswith(b"\x89PNG")
        assert (output / figure).with_suffix(".txt").is_file()
    assert {"method", "seed", "step", "value", "majority"} <= set(pd.read_csv(output / "curves.csv"))
    assert not list(output.rglob("*.ckpt"))
    assert not list(output.glob("cells/fine_tuning*/model"))

    # The kept prompt is that of the table.
    prompt = cell(output, "prompt-seed1") / "prompt.safetensors"
    assert Prompt.load(prompt).embeddings.shape == (P, H)
    assert main(["test", "--prompt", str(prompt), "--random_prompts", "0", "--output", str(tmp_path / "test")]) == 0
    tested = pd.read_csv(tmp_path / "test" / "results.csv").iloc[0]
    expected = frame[(frame["method"] == "prompt") & (frame["seed"] == 1)]["value"].item()
    assert tested["value"] == pytest.approx(expected)


def test_a_second_call_adds_only_what_is_new(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(options(toy, tiny_roberta, output, "--methods", "prompt", "--seeds", "0")) == 0
    before = {path: path.stat().st_mtime_ns for path in output.glob("cells/*/cell.json")}
    capsys.readouterr()
    assert main(options(toy, tiny_roberta, output, "--methods", "prompt,linear_probe", "--seeds", "0")) == 0
    told = capsys.readouterr().out
    assert "2 of 3 runs are already done" in told
    assert "[1/1] linear_probe-seed0" in told
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # The settings of all methods so far count.
    with pytest.raises(SettingsChangedError, match=r"learning_rates of prompt 0\.003, now 0\.1"):
        compare(study(toy, tiny_roberta, output, methods="linear_probe,prompt", learning_rates="prompt=0.1"))
    with pytest.raises(SettingsChangedError, match="max_steps 4, now 5"):
        compare(study(toy, tiny_roberta, output, max_steps=5))
    with pytest.raises(SettingsChangedError, match="features of linear_probe mean, now answer"):
        compare(study(toy, tiny_roberta, output, methods="linear_probe", features="answer"))


@pytest.mark.parametrize("method", ["lora", "fine_tuning"])
def test_an_interrupted_run_resumes_with_the_same_result(
    method: str, toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"methods": method, "seeds": "1", "max_steps": 6}
    compare(study(toy, tiny_roberta, tmp_path / "whole", **given))
    original, steps = TrainedModule.training_step, list[int]()

    def training_step(self: TrainedModule, batch: dict[str, Any], batch_idx: int) -> Any:
        steps.append(self.trainer.global_step)
        if steps == [0, 1, 2, 3]:
            raise UserError("stopped")
        return original(self, batch, batch_idx)

    def broken(*_: Any) -> None:
        raise UserError("stopped late")

    output = tmp_path / "out"
    monkeypatch.setattr(TrainedModule, "training_step", training_step)
    with pytest.raises(UserError, match=f"^{method}-seed1.*: stopped$"):
        compare(study(toy, tiny_roberta, output, **given))
    assert not (cell(output, method) / "cell.json").exists()
    # The last checkpoint is that of step 2. Stopped again after training, before the test.
    with monkeypatch.context() as patch:
        patch.setattr("prompt_transfer.studies.compare.cell._test", broken)
        with pytest.raises(UserError, match=r"stopped late$"):
            compare(study(toy, tiny_roberta, output, **given))
    compare(study(toy, tiny_roberta, output, **given))
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5]
    for name in ("predictions.parquet", "convergence.csv"):
        read = pd.read_parquet if name.endswith("parquet") else pd.read_csv
        tables = [read(cell(tmp_path / run, method) / name) for run in ("whole", "out")]
        pd.testing.assert_frame_equal(*(table.drop(columns="seconds", errors="ignore") for table in tables))
    if method == "lora":
        file = "adapter/adapter_model.safetensors"
        one, other = (load_file(cell(tmp_path / run, method) / file) for run in ("whole", "out"))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_method_sees_the_same_batches(
    toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = TrainedModule.training_step, dict[tuple[str, int], list[Any]]()

    def training_step(self: TrainedModule, batch: dict[str, Any], batch_idx: int) -> Any:
        (part,) = batch["micro_batches"]
        key = (type(self).__name__, int(torch.initial_seed()))
        seen.setdefault(key, []).append((part["ids"].tolist(), part["input_ids"].tolist()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainedModule, "training_step", training_step)
    compare(study(toy, tiny_roberta, tmp_path / "out", methods="prompt,lora,fine_tuning", seeds="0,1"))
    for seed in (0, 1):
        assert seen["PromptTuning", seed] == seen["LoraTuning", seed] == seen["FineTuning", seed]
        assert len(seen["PromptTuning", seed]) == 4
    assert seen["FineTuning", 0] != seen["FineTuning", 1]


def test_lora_through_the_harness_equals_a_plain_loop(toy: Path, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    toy.write_text(toy.read_text().replace("[terrible, great]", "[this, dog]"))
    folder, output = tiny("gpt2"), tmp_path / "out"
    own = study(toy, folder, output, methods="lora", seeds="3", val_check_interval=4, learning_rates="lora=0.01")
    compare(own)
    found = load_file(cell(output, "lora") / "adapter" / "adapter_model.safetensors")

    frozen = FrozenBackbone(str(folder))
    data = own.data.module(own.task, 3).connect(frozen.encoder(P))
    data.setup("fit")
    words = Verbalizer.for_task(data.tasks[0], frozen.tokenizer, frozen.family.name).token_ids
    torch.manual_seed(3)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder).eval(), config)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], 0.01, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
    for batch in [*data.train_dataloader()][:4]:
        (part,) = batch["micro_batches"]
        mask = part["attention_mask"]
        logits = model(input_ids=part["input_ids"], attention_mask=mask).logits
        scored = logits[torch.arange(len(mask)), mask.sum(dim=1) - 1][:, words.flatten()]
        nn.functional.cross_entropy(scored, part["labels"]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    expected = peft.get_peft_model_state_dict(model)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.allclose(found[name], value.detach(), atol=1e-5), name


def test_a_method_that_fails_leaves_the_others(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--methods", "fine_tuning,linear_probe", "--seeds", "0", "--learning_rates", "fine_tuning=1e30"]
    told = error_of(capsys, main(options(toy, tiny_roberta, tmp_path / "out", *more)))
    assert told.startswith("error: fine_tuning-seed0-lr1e+30: step 2: the ")
    assert "lower --learning_rates" in told
    assert (cell(tmp_path / "out", "linear_probe") / "cell.json").is_file()


def test_kept_weights_are_a_backbone(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    compare(study(toy, tiny_roberta, output, methods="fine_tuning", keep_weights=True))
    place = cell(output, "fine_tuning")
    tuned = FrozenBackbone(str(place / "model"))
    own = study(toy, tiny_roberta, output)
    data = own.data.module(own.task, 0).connect(tuned.encoder(P))
    data.setup("test")
    words = Verbalizer.for_task(data.tasks[0], tuned.tokenizer, tuned.family.name)
    answers = {}
    for batch in data.test_dataloader():
        logits = words.class_logits(tuned(torch.empty(0, H), batch, words.token_ids))
        answers |= dict(zip(batch["ids"].tolist(), logits.argmax(dim=1).tolist(), strict=True))
    kept = pd.read_parquet(place / "predictions.parquet")
    assert [answers[number] for number in kept["id"]] == kept["answer"].tolist()


def test_the_probe_sees_the_trained_examples_only(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    """Two steps of 8 are 16 of 40 examples, and the saved tensors give the saved answers."""
    output = tmp_path / "out"
    compare(study(toy, tiny_roberta, output, methods="linear_probe", max_steps=2, features="answer"))
    place = cell(output, "linear_probe")
    backbone = FrozenBackbone(str(tiny_roberta))
    own = study(toy, tiny_roberta, output)
    data = own.data.module(own.task, 0).connect(backbone.encoder(P))
    data.setup()
    batches = [batch["micro_batches"][0] for batch in data.train_dataloader()][:2]
    states = torch.cat([backbone.answer_states(torch.empty(0, H), batch) for batch in batches]).numpy()
    assert len(states) == 16
    probe = load_file(place / "probe.safetensors")
    assert np.allclose(probe["mean"], states.mean(axis=0), atol=1e-6)
    kept = pd.read_parquet(place / "predictions.parquet").set_index("id")["answer"]
    for batch in data.test_dataloader():
        x = (backbone.answer_states(torch.empty(0, H), batch) - probe["mean"]) / probe["scale"]
        scores = x @ probe["weight"].T + probe["bias"]
        assert scores.argmax(dim=1).tolist() == kept.loc[batch["ids"].numpy()].tolist()


def test_a_generation_task(tmp_path: Path) -> None:
    """Generation is scored on texts; the lead baseline takes the place of the majority class."""
    data = CompareData(batch_size=2, limit_train=8, limit_eval=2, max_length=32)
    given = {"seeds": "0", "max_steps": 1, "val_check_interval": 1, "prompt_length": P, "data": data}
    own = CompareStudy("builtin_summaries", "gpt2-nano", str(tmp_path / "out"), "lora", same_process=True, **given)
    summary = compare(own)
    assert set(summary["metric"]) == {"rougeL"}
    answers = pd.read_parquet(cell(tmp_path / "out", "lora") / "predictions.parquet")
    assert {"text", "answer"} <= set(answers)
    assert answers["answer"].mean() == pytest.approx(summary.set_index("method")["value"]["lora"], abs=1e-6)
    own.methods = "linear_probe"
    with pytest.raises(UserError, match="has no classes for a linear probe"):
        compare(own)


def test_peak_memory_is_that_of_the_process_alone() -> None:
    """This process has torch loaded and is far larger than its child."""
    script = (
        "from prompt_transfer.utils.memory import peak_memory\n"
        "before = peak_memory(); held = b'x' * (64 * 2**20); during = peak_memory(); del held\n"
        "print(before, during, peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    before, during, after = map(float, done.stdout.split())
    assert before < 60
    assert during - before == pytest.approx(64, abs=3)
    assert after == pytest.approx(during, abs=1)
    assert peak_memory() > 150


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_of_its_own_measures_memory(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    own = study(toy, tiny_roberta, tmp_path / "out", methods="linear_probe")
    own.same_process = False
    inputs_cells = [Cell("linear_probe", 0)]
    assert score.score(own, None, inputs_cells, None) == {}  # type: ignore[arg-type]
    facts = inputs_cells[0].read(own.output)
    assert facts is not None
    assert 50 < facts["loaded_memory_mib"] <= facts["peak_memory_mib"] < 5000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_study_takes_its_process_along_and_resumes(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [word for word in options(toy, tiny_roberta, output, "--methods", "prompt") if word != "--same_process"]
    command = [sys.executable, "-m", "prompt_transfer", *command]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 400
        while not [*output.glob("cells/*/cell.json")]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task").glob("*/children")
        running = [int(pid) for tasks in children for pid in tasks.read_text().split()]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in running):
        assert time.monotonic() < deadline, "a run goes on without its study"
        time.sleep(0.05)
    done = {path: path.stat().st_mtime_ns for path in output.glob("cells/*/cell.json")}
    assert not (output / "summary.csv").exists()
    subprocess.run([*command, "--same_process"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(pd.read_csv(output / "results.csv")) == 5


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
