"""`neurons capture` and `neurons mask` from files to files, and the callbacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_transfer import ROOT, ROWS, backbone_of, save_prompt, score_alone
from test_transfer import _cache as _cache
from test_transfer import prompts as prompts
from test_transfer import tasks as tasks

from prompt_transfer.analysis.masking import OVER_RANDOM, summarize
from prompt_transfer.callbacks.neurons import CaptureNeurons, MaskNeurons
from prompt_transfer.cli import main
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.neurons.capture import NeuronCapture, capture_prompts
from prompt_transfer.neurons.mask import NeuronMask, most_activated
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies import scoring
from prompt_transfer.studies.neurons.capture import CaptureStudy, capture
from prompt_transfer.studies.neurons.masking import MaskStudy, mask
from prompt_transfer.studies.targets import EvaluationData
from prompt_transfer.utils.errors import UserError

LOCAL = EvaluationData("local", max_tokens=600)


def capture_study(backbone: Path, prompts: Path, output: Path, tasks: list[str], **options: Any) -> CaptureStudy:
    return CaptureStudy(str(backbone), str(prompts), str(output), tasks, LOCAL, accelerator="cpu", **options)


def test_files_lie_as_the_prompts_do(prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path) -> None:
    backbone, output = backbone_of(tiny_roberta), tmp_path / "neurons"
    command = [
        "neurons",
        "capture",
        "--backbone",
        str(tiny_roberta),
        "--prompts",
        str(prompts),
        "--output",
        str(output),
    ]
    assert main(command) == 0
    below = sorted(path.relative_to(prompts) for path in prompts.rglob("*.safetensors"))
    assert sorted(path.relative_to(output) for path in output.rglob("*.safetensors")) == below
    for path in below:
        tensors = load_file(output / path)
        assert {name: values.shape for name, values in tensors.items()} == {"activations": (2, 64), "before": (2, 64)}
        alone = capture_prompts(backbone, [Prompt.load(prompts / path).embeddings])
        torch.testing.assert_close(tensors["activations"], alone["activations"][0], atol=1e-6, rtol=1e-5)
    # Capturing over inputs into the same files keeps their contents.
    two = [*command, "--tasks", ",".join(tasks[:2]), "--data.source", "local", "--data.limit_eval", "20"]
    assert main(two) == 0
    tensors = load_file(output / below[0])
    names = {"activations", "before", "mean", "active", "mean/films", "active/films", "mean/rooms", "active/rooms"}
    assert set(tensors) == names
    torch.testing.assert_close(tensors["mean"], (tensors["mean/films"] + tensors["mean/rooms"]) / 2)
    assert set((tensors["active/films"] * 20).round(decimals=3).unique().tolist()) <= set(map(float, range(21)))
    assert main(["neurons", "capture", *command[2:], "--dtype", "bfloat16"]) == 2


@pytest.mark.parametrize("attention", ["full", "shared"])
def test_over_inputs_equals_one_prompt_after_the_other(
    attention: str, tiny_roberta: Path, tasks: list[str], tmp_path: Path
) -> None:
    backbone = backbone_of(tiny_roberta, attention)
    for name, length in (("a", 3), ("b", 4), ("c", 3)):
        save_prompt(tmp_path / "prompts" / f"{name}.safetensors", backbone, name, 0, length)
    capture(capture_study(tiny_roberta, tmp_path / "prompts", tmp_path / "out", tasks[:1], split="test"))
    for name in "abc":
        prompt = Prompt.load(tmp_path / "prompts" / f"{name}.safetensors").embeddings
        with NeuronCapture(backbone) as seen:
            score_alone(backbone, prompt, tasks[0])
        assert seen.counts.tolist() == [ROWS]
        tensors = load_file(tmp_path / "out" / f"{name}.safetensors")
        torch.testing.assert_close(tensors["mean"], seen.means()["activations"][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tensors["active/films"], seen.means()["active"][0])


def test_neurons_of_other_prompts_are_not_mixed_in(
    prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path
) -> None:
    capture(capture_study(tiny_roberta, prompts, tmp_path / "out", []))
    save_prompt(prompts / "films-0.safetensors", backbone_of(tiny_roberta), "films", 9)
    with pytest.raises(UserError, match="neurons of another prompt"):
        capture(capture_study(tiny_roberta, prompts, tmp_path / "out", []))
    with pytest.raises(UserError, match="neurons of another prompt"):
        mask(mask_study(tiny_roberta, prompts, tasks[:1], tmp_path / "mask", neurons=str(tmp_path / "out")))


@pytest.mark.slow
def test_two_processes_capture_what_one_does(
    prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path
) -> None:
    capture(capture_study(tiny_roberta, prompts, tmp_path / "one", tasks, split="test"))
    command = ["neurons", "capture", "--backbone", str(tiny_roberta), "--prompts", str(prompts), "--tasks"]
    command += [",".join(tasks), "--data.source", "local", "--data.max_tokens", "600", "--split", "test"]
    command += ["--output", str(tmp_path / "two"), "--accelerator", "cpu"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "prompt_transfer"]
    subprocess.run([sys.executable, *launch, *command], check=True, cwd=ROOT, timeout=170)
    for path in (tmp_path / "one").rglob("*.safetensors"):
        one, two = load_file(path), load_file(tmp_path / "two" / path.relative_to(tmp_path / "one"))
        assert set(one) == set(two)
        for name, values in one.items():
            torch.testing.assert_close(two[name], values, atol=1e-5, rtol=1e-4)


# Masking -------------------------------------------------------------------------------------------------------------


def mask_study(backbone: Path, prompts: Path, tasks: list[str], output: Path, **options: Any) -> MaskStudy:
    options = {"data": LOCAL, "ratios": (0.25, 0.5), "random_seeds": 2, "accelerator": "cpu"} | options
    return MaskStudy(str(backbone), str(prompts), tasks, str(output), **options)


def test_masked_scores_are_those_of_the_prompt_under_the_mask(
    prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path
) -> None:
    frame = mask(mask_study(tiny_roberta, prompts, tasks, tmp_path / "out", methods=("zero", "mean", "noise")))
    # Two own prompts per task; two of the three tasks share a type.
    counts = frame[(frame["task"] == "films") & (frame["prompt"] == "films-0")]["mask"].value_counts()
    each = 3 * 2  # methods and ratios
    assert counts.to_dict() == {"none": 1, **dict.fromkeys(("own", "same_type", "different_type"), each), "random": 12}
    assert set(frame.loc[(frame["task"] == "pairs") & (frame["mask"] == "same_type"), "mask_source"]) == set()
    films = frame[(frame["task"] == "films") & (frame["prompt"] == "films-1")]
    assert set(films.loc[films["mask"] == "same_type", "mask_source"]) == {"rooms-1"}
    assert set(films.loc[films["mask"] == "different_type", "mask_source"]) == {"pairs-1/prompt"}
    backbone = backbone_of(tiny_roberta)
    prompt = Prompt.load(prompts / "films-1.safetensors").embeddings
    unmasked = score_alone(backbone, prompt, tasks[0])
    assert films["unmasked"].tolist() == pytest.approx([unmasked] * len(films), abs=1e-6)
    own = most_activated(capture_prompts(backbone, [prompt])["activations"][0], 0.5)
    with NeuronMask(backbone, own):
        expected = score_alone(backbone, prompt, tasks[0])
    row = films[(films["mask"] == "own") & (films["ratio"] == 0.5) & (films["method"] == "zero")].iloc[0]
    assert row["value"] == pytest.approx(expected, abs=1e-6)
    assert row["drop"] == pytest.approx(unmasked - expected, abs=1e-6)
    assert set(films.loc[films["ratio"] == 0.5, "masked"]) == {64}
    assert set(films.loc[films["ratio"] == 0.25, "masked"]) == {32}
    assert films["drop"].nunique() > 3
    for name in ("masking.png", "summary.csv", "results.parquet", "config.yaml"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_interrupted_and_resumed_equals_undisturbed(
    prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"methods": ("zero", "noise"), "scope": "all"}
    whole = mask(mask_study(tiny_roberta, prompts, tasks[:2], tmp_path / "whole", **options))
    original, calls = scoring.Scorer.answers, []

    def answers(self: Any, *arguments: Any) -> Any:
        for item in original(self, *arguments):
            calls.append(1)
            if len(calls) == 30:
                raise KeyboardInterrupt
            yield item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring.Scorer, "answers", answers)
        with pytest.raises(KeyboardInterrupt):
            mask(mask_study(tiny_roberta, prompts, tasks[:2], tmp_path / "out", **options))
        patch.setattr(scoring.Scorer, "answers", original)
        resumed = mask(mask_study(tiny_roberta, prompts, tasks[:2], tmp_path / "out", **options))
        patch.setattr(scoring.Scorer, "__init__", None)
        known = mask(mask_study(tiny_roberta, prompts, tasks[:2], tmp_path / "out", **options))
    pd.testing.assert_frame_equal(resumed, whole)
    pd.testing.assert_frame_equal(known, whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratios": (0.0,)}, "above 0"),
        ({"methods": ("half",)}, "--methods"),
        ({"masks": ("own", "mine")}, "--masks"),
        ({"scope": "some"}, "--scope"),
        ({"by": "predictivity"}, "--neurons"),
        ({"tasks": ["builtin_movies"]}, "built in"),
        ({"random_seeds": 0}, "1 or more"),
    ],
)
def test_mistakes_in_one_line(
    options: dict[str, Any], words: str, prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path
) -> None:
    options = {"tasks": tasks[:1]} | options
    with pytest.raises(UserError, match=words) as caught:
        mask(mask_study(tiny_roberta, prompts, output=tmp_path / "out", **options))
    assert "\n" not in str(caught.value)


def test_the_command_prints_what_masking_costs(
    prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["neurons", "mask", "--backbone", str(tiny_roberta), "--prompts", str(prompts), "--tasks", tasks[0]]
    command += ["--output", str(tmp_path / "out"), "--data.source", "local", "--ratios", "[0.5]", "--random_seeds", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert OVER_RANDOM in printed
    assert printed.splitlines()[-1] == f"table and figure in {tmp_path / 'out'}"


def test_the_mean_is_over_tasks_and_own_is_paired_with_random() -> None:
    rows = [("a", "none", 0.0), ("a", "own", 0.5), ("a", "random", 0.1), ("a", "random", 0.3), ("b", "own", 0.1),
            ("b", "random", 0.0), ("c", "own", 0.3), ("c", "random", 0.1)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["task", "mask", "drop"]).assign(method="zero", ratio=0.2)
    table = summarize(frame).set_index("mask")
    assert table["drop"].to_dict() == pytest.approx({"own": 0.3, "random": 0.1, OVER_RANDOM: 0.2})
    assert table.loc[OVER_RANDOM, ["low", "high"]].tolist() == pytest.approx([0.1, 0.3])
    assert set(table["tasks"]) == {3}
    # With two tasks an interval would just be the two values.
    two = summarize(frame[frame["task"] != "c"]).set_index("mask")
    assert two.loc[OVER_RANDOM, ["low", "high"]].isna().all()


# Callbacks -----------------------------------------------------------------------------------------------------------


def evaluate(toy: Path, backbone: Path, callback: Any, **options: Any) -> tuple[PromptTuning, dict[str, float]]:
    L.seed_everything(0)
    module = PromptTuning(str(backbone), prompt_length=3)
    trainer = L.Trainer(
        max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, callbacks=[callback], use_distributed_sampler=False, val_check_interval=2,
        check_val_every_n_epoch=None, **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=TaskDataModule(str(toy), "local", batch_size=4, eval_batch_size=4))
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_a_run_leaves_the_neurons_of_its_evaluations(
    toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    module, _ = evaluate(toy, tiny_roberta, CaptureNeurons(tmp_path / "one"))
    evaluate(toy, tiny_roberta, CaptureNeurons(tmp_path / "two"), devices=2, strategy="ddp_fork")
    one, two = (load_file(tmp_path / name / "00000002.safetensors") for name in ("one", "two"))
    assert set(one) == set(two) == {"mean", "active", "before"}
    backbone, data = backbone_of(tiny_roberta), TaskDataModule(str(toy), "local", eval_batch_size=10)
    data.connect(backbone.encoder(3)).setup("validate")
    with NeuronCapture(backbone) as seen, torch.no_grad():
        for batch in data.val_dataloader():
            backbone.answer_states(module.current_prompt(), batch)
    assert seen.counts.tolist() == [10]
    torch.testing.assert_close(one["mean"], seen.means()["activations"][0], atol=1e-4, rtol=1e-3)
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, atol=1e-4, rtol=1e-3)


def test_a_run_is_masked_while_it_is_evaluated_and_hooks_come_off(
    toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    everything = torch.ones(2, 64, dtype=torch.bool)
    plain, scores = evaluate(toy, tiny_roberta, MaskNeurons(torch.zeros(2, 64, dtype=torch.bool)))
    masked, other = evaluate(toy, tiny_roberta, MaskNeurons(everything))
    assert scores["validation/loss"] != pytest.approx(other["validation/loss"], abs=1e-4)
    # Masks do not apply in training.
    torch.testing.assert_close(masked.prompt().embeddings, plain.prompt().embeddings)

    class Stops(MaskNeurons):
        def on_validation_batch_end(self, *arguments: Any) -> None:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        evaluate(toy, tiny_roberta, Stops(everything))
