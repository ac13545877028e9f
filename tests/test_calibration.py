"""Contextual calibration: class probabilities divided by those on content-free texts, alone and in studies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_cli import error_of, fit
from test_words import batch_of

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.commands import class_report
from prompt_transfer.commands.comparison import show_differences
from prompt_transfer.commands.transfer import show as show_matrix
from prompt_transfer.data.batches import collate, cross_prompts
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.objectives import Classification, make_objective
from prompt_transfer.prompts.methods import DeepPromptMethod
from prompt_transfer.studies.targets import EvaluationData
from prompt_transfer.studies.transfer.study import TransferStudy, transfer
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

Tiny = Callable[[str], Path]
P = 3
QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize(("family", "attention"), [("roberta", "full"), ("bert", "shared"), ("gpt2", "full"),
                                                   ("t5", "shared")])  # fmt: skip
@pytest.mark.parametrize("policy", ["error", "sequence"])
def test_probabilities_are_divided(tiny: Tiny, family: str, attention: str, policy: str) -> None:
    if policy == "sequence" and family in ("roberta", "bert"):
        pytest.skip("encoders score no whole labels")
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    two = Task(name="a", type="x", text_a="t", label_words=("bad", "good"), label_words_policy=policy)
    three = Task(name="b", type="x", text_a="t", label_words=("no", "maybe", "yes"), label_words_policy=policy)
    objective = make_objective(backbone, [two, three])
    assert isinstance(objective, Classification)
    prompts = torch.randn(2, P, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    free = batch_of(backbone, ["N/A", "the", "N/A", "the"])
    free["task_ids"] = torch.tensor([0, 0, 1, 1])
    batch = batch_of(backbone, ["the film", "a very boring story"])
    batch["task_ids"] = torch.tensor([0, 1])
    crossed = cross_prompts(batch, torch.arange(2))
    plain = objective.predict(prompts, crossed)["probabilities"].view(2, 2, 3)
    of_free = [objective.predict(prompt, free)["probabilities"] for prompt in prompts]
    objective.prior = objective.prior_of(backbone.record(prompts), free)
    assert objective.prior.shape == (2, 2, 3)
    found = objective.predict(prompts, crossed)["probabilities"].view(2, 2, 3)
    for number in range(2):
        for task, count in ((0, 2), (1, 3)):
            prior = of_free[number][2 * task : 2 * task + 2, :count].mean(dim=0)
            expected = plain[number, task, :count] / prior
            torch.testing.assert_close(found[number, task, :count], expected / expected.sum(), atol=1e-5, rtol=0)
    assert found[:, 0, 2].tolist() == [0, 0]
    (other,) = objective.logits_of_tasks(prompts[0], batch, [0])
    torch.testing.assert_close(other[0].softmax(dim=0)[:2], found[0, 0, :2], atol=1e-5, rtol=0)


def test_every_deep_prompt_has_a_prior(tiny: Tiny) -> None:
    backbone = FrozenBackbone(str(tiny("gpt2")), attention="shared")
    objective = make_objective(backbone, [Task(name="a", type="x", text_a="t", label_words=("bad", "good"))])
    assert isinstance(objective, Classification)
    prompts = torch.stack([DeepPromptMethod().random(backbone, P, seed) for seed in range(2)])
    free = batch_of(backbone, ["N/A", "the"])
    alone = [objective.prior_of(prompt, free) for prompt in prompts]
    assert not torch.allclose(alone[0], alone[1])
    torch.testing.assert_close(objective.prior_of(backbone.record(prompts), free), torch.cat(alone))


def test_content_free_texts(tiny_roberta: Path, toy: Path, tmp_path: Path) -> None:
    backbone = FrozenBackbone(str(tiny_roberta))
    data = TaskDataModule(str(toy), "local", cache_dir=str(tmp_path), special_tokens="split")
    batch = data.connect(backbone.encoder(P)).content_free()
    mask = backbone.tokenizer.mask_token_id
    rows = [row[kept > 0].tolist() for row, kept in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert rows == [backbone.tokenizer("N/A")["input_ids"], [0, 2], [0, mask, 2]]


def test_titles_of_further_tables_say_that_scores_are_calibrated(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "task": "toy",
        "metric": "accuracy",
        "prompt": "a",
        "other": "b",
        "value": 0.1,
        "low": 0.0,
        "high": 0.2,
        "n": 5,
    }
    task = Task(name="toy", type="x", text_a="t", label_words=("bad", "good"))
    show_differences([row], {"a": "a", "b": "b"}, [task], "calibrated")
    whole = {"class": "bad", "precision": 1.0, "recall": 1.0, "f1": 1.0, "n": 5, "predicted": 5}
    class_report.show({"per_class": [{"task": "toy", "prompt": "a", "name": "a", **whole}]}, "calibrated")
    frame = pd.DataFrame({"task": "toy", "kind": ["trained", "majority"], "source": "toy", "value": [0.7, 0.5]})
    show_matrix(frame.assign(learned=True, calibrated=True))
    said = capsys.readouterr().out
    assert "\ncalibrated scores; vocabulary, uniform" in said
    assert "differences on the same examples, calibrated" in said
    assert "toy, calibrated: each class" in said


def test_commands_calibrate_and_say_so(
    tiny: Tiny, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpt2, output = tiny("gpt2"), tmp_path / "run"
    assert fit(toy, gpt2, output) == 0
    tables, frames, titles = {}, {}, {}
    for name, options in (("plain", []), ("calibrated", ["--calibrate"])):
        assert main(["test", "--prompt", str(output), *QUICK, *options, "--output", str(tmp_path / name)]) == 0
        tables[name] = pd.read_csv(tmp_path / name / "results.csv")
        titles[name] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("toy, ")][-1]
        folder = tmp_path / f"{name}-p"
        assert main(["predict", "--prompt", str(output), *QUICK, *options, "--output", str(folder)]) == 0
        frames[name] = pd.read_parquet(folder / "predictions.parquet")
        assert ("calibrated probabilities" in capsys.readouterr().out) == (name == "calibrated")
    assert "calibrated" not in frames["plain"]
    assert frames["calibrated"]["calibrated"].all()
    assert titles["calibrated"] == f"{titles['plain']}, calibrated"
    assert "calibrated" not in tables["plain"]
    assert tables["calibrated"]["calibrated"].all()
    plain, calibrated = (frames[name][["p_terrible", "p_great"]].to_numpy() for name in ("plain", "calibrated"))
    # All examples are divided by one prior: the log odds shift by one constant.
    shift = np.log(calibrated[:, 0] / calibrated[:, 1]) - np.log(plain[:, 0] / plain[:, 1])
    np.testing.assert_allclose(shift, shift[0], atol=1e-4)
    assert abs(shift[0]) > 1e-3
    right = (frames["calibrated"]["label"] == [i % 2 for i in range(10)]).mean()
    study = {"random_prompts": 1, "accelerator": "cpu"}
    data = EvaluationData("local")
    for calibrate in (False, True):
        rows = transfer(
            TransferStudy(str(gpt2), str(output), [str(toy)], str(tmp_path / f"s{calibrate}"), data,
                          calibrate=calibrate, **study)
        )  # fmt: skip
        name = "calibrated" if calibrate else "plain"
        assert ("calibrated" in rows) == calibrate
        own = rows[rows["kind"] == "trained"].iloc[0]
        test = tables[name].loc[tables[name]["what"] == "this prompt", "value"].item()
        assert own["value"] == pytest.approx(test)
    assert own["value"] == pytest.approx(right)
    with pytest.raises(UserError, match="calibrated"):
        transfer(TransferStudy(str(gpt2), str(output), [str(toy)], str(tmp_path / "sTrue"), data, **study))
    assert main(["validate", "--prompt", str(output), *QUICK, "--calibrate", "--output", str(tmp_path / "v")]) == 0
    assert pd.read_csv(tmp_path / "v" / "results.csv")["calibrated"].all()
    writes = ["--data.task", "builtin_questions", "--data.source", "builtin", "--data.limit_eval", "4"]
    capsys.readouterr()
    code = main(["test", "--prompt", str(output), *QUICK, "--calibrate", *writes, "--data.max_length", "30"])
    assert "no label words to calibrate" in error_of(capsys, code)


def test_a_prior_is_that_of_the_tasks_table(tiny_roberta: Path, toy: Path, tmp_path: Path) -> None:
    backbone = FrozenBackbone(str(tiny_roberta))
    data = TaskDataModule(str(toy), "local", cache_dir=str(tmp_path)).connect(backbone.encoder(P))
    objective = make_objective(backbone, data.tasks)
    assert isinstance(objective, Classification)
    prompt = torch.randn(P, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    free = data.content_free()
    each = objective.predict(prompt, free)["probabilities"]
    prior = objective.prior_of(prompt, free)
    torch.testing.assert_close(prior[0, 0], each.mean(dim=0).log(), atol=1e-5, rtol=0)
    table = data.tokens("test")
    batch = collate(table, np.arange(len(table)), 1)
    before = objective.logits(prompt, batch)
    objective.prior = prior
    torch.testing.assert_close(objective.logits(prompt, batch), before - prior[0], atol=1e-6, rtol=0)
