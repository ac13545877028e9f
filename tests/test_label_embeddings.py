"""Trained label embeddings: start at the label words, are trained and stored, and apply to their label set only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_cli import error_of, fit
from test_words import batch_of

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.modules.label_embeddings import flat_rows, initial_rows
from prompt_transfer.modules.objectives import Classification, make_objective
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.targets import EvaluationData
from prompt_transfer.studies.transfer.study import TransferStudy, transfer
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

Tiny = Callable[[str], Path]
P = 3
QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
LABELS = ["--model.label_embeddings", "true", "--model.learning_rate", "0.3"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize(
    ("family", "attention"),
    [("roberta", "full"), ("bert", "shared"), ("albert", "full"), ("gpt2", "full"), ("t5", "shared")],
)  # fmt: skip
def test_untrained_rows_score_as_the_label_words(tiny: Tiny, family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    tasks = [
        Task(name="a", type="x", text_a="t", label_words=(("bad", "awful"), ("good", "great"))),
        Task(name="b", type="x", text_a="t", label_words=("no", "maybe", "yes")),
    ]
    objective = make_objective(backbone, tasks)
    assert isinstance(objective, Classification)
    prompts = torch.randn(2, P, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    batch = batch_of(backbone, ["the film", "a very boring story", "the end of the day"])
    batch["task_ids"], batch["prompt_ids"] = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    before = objective.logits(prompts, batch)
    rows = initial_rows(objective, backbone)
    assert flat_rows(rows, tasks).shape == (5, rows.shape[2])
    objective.use_label_rows(rows.expand(2, -1, -1, -1))
    torch.testing.assert_close(objective.logits(prompts, batch), before, atol=1e-5, rtol=0)
    # Only where they apply.
    objective.use_label_rows(torch.zeros(2, *rows.shape), torch.tensor([[True, False], [False, True]]))
    found = objective.logits(prompts, batch)
    torch.testing.assert_close(found[1], before[1], atol=1e-5, rtol=0)
    assert (found[0] != before[0]).any()
    # A row of zeros scores the bias of its words, 0 without one.
    if family in ("gpt2", "t5"):
        assert found[0, :2].tolist() == [0, 0]
    objective.use_label_rows(None)
    assert torch.equal(objective.logits(prompts, batch), before)


def test_rows_are_those_of_plain_transformers(tiny: Tiny) -> None:
    import transformers

    backbone = FrozenBackbone(str(tiny("gpt2")))
    task = Task(name="a", type="x", text_a="t", label_words=("bad", "good"))
    objective = make_objective(backbone, [task])
    assert isinstance(objective, Classification)
    generator = torch.Generator().manual_seed(0)
    prompt, rows = (torch.randn(n, backbone.hidden_size, generator=generator) for n in (P, 2))
    batch = batch_of(backbone, ["the film", "a very boring story"])
    objective.use_label_rows(rows[None, None])
    found = objective.logits(prompt, batch)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("gpt2")).eval()
    for index, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        x = torch.cat([prompt, model.get_input_embeddings()(ids[mask > 0])])[None]
        state = model.transformer(inputs_embeds=x).last_hidden_state[0, -1]
        torch.testing.assert_close(found[index], rows @ state, atol=1e-5, rtol=0)


def test_training_and_evaluation(tiny: Tiny, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt2, output = tiny("gpt2"), tmp_path / "run"
    assert fit(toy, gpt2, output, *LABELS) == 0
    prompt = Prompt.load(output)
    assert prompt.label_embeddings is not None
    assert prompt.label_embeddings.shape == (2, 32)
    backbone = FrozenBackbone(str(gpt2))
    ids = [backbone.tokenizer(f" {word}")["input_ids"][0] for word in ("terrible", "great")]
    start = backbone.model.get_output_embeddings().weight[ids]
    assert (prompt.label_embeddings - start).abs().max() > 0.1
    assert prompt.labels_for("toy", ["terrible", "great"]) is not None
    assert prompt.labels_for("other", ["terrible", "great"]) is not None
    assert prompt.labels_for("toy", ["terrible", "good"]) is None
    # The stored score is that of the stored label embeddings.
    assert main(["validate", "--prompt", str(output), *QUICK, "--output", str(tmp_path / "v")]) == 0
    table = pd.read_csv(tmp_path / "v" / "results.csv").set_index("what")["value"]
    assert table["this prompt"] == pytest.approx(float(prompt.metadata["score"]))
    assert main(["predict", "--prompt", str(output), *QUICK, "--output", str(tmp_path / "p")]) == 0
    frame = pd.read_parquet(tmp_path / "p" / "predictions.parquet")
    objective = make_objective(backbone, [Task(name="t", type="x", text_a="t", label_words=("terrible", "great"))])
    assert isinstance(objective, Classification)
    objective.use_label_rows(prompt.label_embeddings[None, None])
    batch = batch_of(backbone, frame["text_a"].tolist(), cue="Answer:")
    expected = objective.predict(prompt.embeddings, batch)["probabilities"]
    found = torch.tensor(frame[["p_terrible", "p_great"]].to_numpy())
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=0, check_dtype=False)
    # A study uses them too; the prompt alone, without them, has answers of its own.
    bare = tmp_path / "bare" / "bare.safetensors"
    Prompt(prompt.embeddings, prompt.metadata).save(bare)
    study = TransferStudy(str(gpt2), [str(output), str(bare.parent)], [str(toy)], str(tmp_path / "study"),
                          EvaluationData("local"), random_prompts=1, accelerator="cpu")  # fmt: skip
    rows = transfer(study).set_index("prompt")["value"]
    right = (frame["label"] == [i % 2 for i in range(10)]).mean()
    assert rows["run"] == pytest.approx(right)
    without = make_objective(backbone, [objective.tasks[0]]).predict(prompt.embeddings, batch)["probabilities"]
    assert rows["bare"] == pytest.approx((without.argmax(1) == torch.arange(10) % 2).float().mean().item())
    # Other label words: said, and scored by the LM head's rows.
    toy.write_text(toy.read_text().replace("great", "good"))
    capsys.readouterr()
    assert main(["test", "--prompt", str(output), *QUICK]) == 0
    assert "trained for other label words than those of toy: they are not used there" in capsys.readouterr().err


def test_each_of_several_prompts_uses_its_own(tiny: Tiny, toy: Path, tmp_path: Path) -> None:
    for seed, options in enumerate((LABELS, LABELS, [])):
        assert fit(toy, tiny("gpt2"), tmp_path / f"run{seed}", *options, "--seed_everything", str(seed)) == 0
    # Rows that reverse every answer: they would be noticed anywhere else.
    prompt = Prompt.load(tmp_path / "run0")
    assert prompt.label_embeddings is not None
    prompt.label_embeddings = 100 * prompt.label_embeddings.flip(0)
    prompt.save(tmp_path / "run0" / "prompt.safetensors")
    paths = [str(tmp_path / f"run{number}") for number in range(3)]

    def confidences(*prompts: str) -> list[float]:
        given = [word for path in prompts for word in ("--prompt", path)]
        output = tmp_path / "-".join(path[-1] for path in prompts)
        more = ["--metrics", "calibration", "--random_prompts", "0", "--output", str(output)]
        assert main(["test", *given, *QUICK, *more]) == 0
        frame = pd.read_csv(output / "calibration.csv")
        return frame.loc[frame["metric"] == "calibration_error", "confidence"].tolist()

    alone = [confidences(path)[0] for path in paths]
    assert len({round(value, 6) for value in alone}) == 3
    assert confidences(*paths) == pytest.approx(alone, abs=1e-6)


def test_a_run_resumes_with_them(tiny: Tiny, toy: Path, tmp_path: Path) -> None:
    gpt2 = tiny("gpt2")
    long = ["--trainer.max_steps", "8", "--model.schedule", "constant"]
    assert fit(toy, gpt2, tmp_path / "whole", *LABELS, *long) == 0
    assert fit(toy, gpt2, tmp_path / "parts", *LABELS, "--model.schedule", "constant") == 0
    assert main(["fit", "--output", str(tmp_path / "parts"), "--resume", "--trainer.max_steps", "8"]) == 0
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    assert {"initial_prompt", "label_rows"} <= set(whole)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert set(whole) == set(parts)


@pytest.mark.parametrize(("name", "form"), [("copa", "is multiple choice"), ("squad", "generates text")])
def test_tasks_without_label_words_are_refused_with_their_reason(tiny: Tiny, name: str, form: str) -> None:
    backbone = FrozenBackbone(str(tiny("gpt2")))
    objective = make_objective(backbone, [get_task(name)])
    with pytest.raises(UserError, match=rf"needs classes with label words, but {name} {form}: leave it out$"):
        initial_rows(objective, backbone)


def test_what_is_refused(tiny: Tiny, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt2 = tiny("gpt2")
    several = fit(toy, gpt2, tmp_path / "a", *LABELS[:2], "--model.seeds", "[0, 1]")
    assert "trains one prompt at a time" in error_of(capsys, several)
    sequence = fit(toy, gpt2, tmp_path / "b", *LABELS, "--model.label_words_policy", "sequence")
    assert "needs classes with label words at one answer slot: use another --model.label_words" in error_of(
        capsys, sequence
    )
    plain = fit(toy, tiny("deberta-v2"), tmp_path / "c", *LABELS)
    assert "cannot replace rows" in error_of(capsys, plain)
    damaged = Prompt(torch.ones(2, 4), {"label_words": '{"a": ["x", "y", "z"]}'}, label_embeddings=torch.ones(2, 4))
    with pytest.raises(UserError, match="damaged"):
        damaged.labels_for("a", ["x", "y", "z"])
