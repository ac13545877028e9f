"""Several label words per class: averages of their scores, in task files and commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_cli import error_of, fit

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.tokenization import word_pieces
from prompt_transfer.cli import main
from prompt_transfer.modules.objectives import Classification, make_objective
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

Tiny = Callable[[str], Path]
SETS = (("terrible", "awful"), ("great", "good", "fine"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def batch_of(backbone: FrozenBackbone, texts: list[str], prompt_length: int = 3, cue: str = "") -> dict:
    encoder = backbone.encoder(prompt_length)
    rows = encoder.encode(texts, None, 30, cue=cue)
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [encoder.pad_token_id] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "task_ids": torch.zeros(len(rows), dtype=torch.long),
        "labels": torch.zeros(len(rows), dtype=torch.long),
        "ids": torch.arange(len(rows)),
    }


def test_a_nested_list_in_a_file_gives_several_words_per_class(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text("name: two\ncolumns: {text_a: t}\nlabel_words: [[terrible, awful], [great, no]]\n")
    task = get_task(path)
    assert task.class_words == (("terrible", "awful"), ("great", "no"))
    assert task.label_words == ("terrible", "great")
    assert task.num_classes == 2
    assert task.stored_words == [["terrible", "awful"], ["great", "no"]]
    path.write_text("name: two\ncolumns: {text_a: t}\nlabel_words: [bad, [great, good]]\n")
    assert get_task(path).stored_words == ["bad", ["great", "good"]]
    for words in ("[[bad, bad], good]", "[[bad, good], good]", "[[], good]", "[[bad]]", "[[[bad, worse]], good]"):
        path.write_text(f"name: two\ncolumns: {{text_a: t}}\nlabel_words: {words}\n")
        with pytest.raises(UserError, match="label_words") as caught:
            get_task(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(("family", "attention"), [("roberta", "full"), ("bert", "shared"), ("gpt2", "full"),
                                                   ("t5", "shared")])  # fmt: skip
def test_class_scores_are_means_over_words(tiny: Tiny, family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    task = Task(name="t", type="x", text_a="t", label_words=SETS)
    objective = make_objective(backbone, [task])
    assert isinstance(objective, Classification)
    prompt = torch.randn(3, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    batch = batch_of(backbone, ["the film", "the very long story was good"])
    logits = objective.logits(prompt, batch)
    vocabulary = backbone(prompt, batch, torch.arange(len(backbone.tokenizer)))
    for number, words in enumerate(SETS):
        ids = [word_pieces(backbone.tokenizer, word) for word in words]
        assert all(len(own) == 1 for own in ids)
        expected = torch.stack([vocabulary[:, own[0]] for own in ids]).mean(dim=0)
        torch.testing.assert_close(logits[:, number], expected, atol=1e-5, rtol=0)
    # The mean of log-probabilities gives the same class probabilities.
    logs = vocabulary.log_softmax(dim=1)
    means = [
        torch.stack([logs[:, word_pieces(backbone.tokenizer, word)[0]] for word in words]).mean(dim=0) for words in SETS
    ]
    expected = torch.stack(means, dim=1).softmax(dim=1)
    torch.testing.assert_close(objective.predict(prompt, batch)["probabilities"], expected, atol=1e-5, rtol=0)
    # Padding and batch composition change nothing.
    alone = objective.logits(prompt, batch_of(backbone, ["the film"]))
    torch.testing.assert_close(alone[0], logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_whole_labels_are_averaged_too(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    sets = (("very bad", "awful"), ("not at all bad",), ("good", "very good", "the best of all"))
    one = Task(name="a", type="x", text_a="t", label_words=sets, label_words_policy="sequence")
    two = Task(name="b", type="x", text_a="t", label_words=("yes", "no"), label_words_policy="sequence")
    objective = make_objective(backbone, [one, two])
    prompt = torch.randn(3, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    batch = batch_of(backbone, ["the film", "the very long story"])
    batch["task_ids"] = torch.tensor([0, 1])
    logits = objective.logits(prompt, batch)
    first = {name: batch[name][:1] for name in ("input_ids", "attention_mask")}
    for number, words in enumerate(sets):
        likelihoods = [
            backbone.target_log_probs(prompt, {**first, "target_ids": torch.tensor([ids])}).sum()
            for ids in backbone.encoder(1).answer_ids(list(words))
        ]
        torch.testing.assert_close(logits[0, number], torch.stack(likelihoods).mean(), atol=1e-5, rtol=0)
    assert logits[1].isfinite().tolist() == [True, True, False]


def test_one_word_per_class_gives_bit_equal_logits(tiny_roberta: Path) -> None:
    backbone = FrozenBackbone(str(tiny_roberta))
    batch = batch_of(backbone, ["the film", "a very boring story"])
    prompt = torch.randn(3, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    plain = Task(name="t", type="x", text_a="t", label_words=("bad", "good"))
    nested = Task(name="t", type="x", text_a="t", label_words=(["bad"], ["good"]))
    assert plain == nested
    ids = torch.tensor([backbone.encoder(1).tokenizer.encode(f" {word}", add_special_tokens=False)[0]
                        for word in ("bad", "good")])  # fmt: skip
    found = make_objective(backbone, [plain]).logits(prompt, batch)
    assert torch.equal(found, backbone(prompt, batch, ids))


def test_words_are_recorded_and_a_change_is_warned_about(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.write_text(toy.read_text().replace("[terrible, great]", "[[terrible, awful], [great, good]]"))
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    stored = json.loads(Prompt.load(output).metadata["label_words"])
    assert stored == {"toy": [["terrible", "awful"], ["great", "good"]]}
    capsys.readouterr()
    quick = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["predict", "--prompt", str(output), "--output", str(tmp_path / "p"), *quick]) == 0
    assert "label words" not in capsys.readouterr().err
    frame = pd.read_parquet(tmp_path / "p" / "predictions.parquet")
    assert {"p_terrible", "p_great"} <= set(frame)
    torch.testing.assert_close(
        torch.tensor((frame["p_terrible"] + frame["p_great"]).to_numpy()), torch.ones(10), atol=1e-6, rtol=0,
        check_dtype=False,
    )  # fmt: skip
    toy.write_text(toy.read_text().replace("[[terrible, awful], [great, good]]", "[terrible, [great, good]]"))
    assert main(["test", "--prompt", str(output), *quick]) == 0
    said = capsys.readouterr().err
    assert "label words terrible/awful, great/good, but is scored with terrible, great/good" in said
    toy.write_text(toy.read_text().replace("[terrible, [great, good]]", "[terrible, [great, terrible]]"))
    assert "label_words" in error_of(capsys, main(["test", "--prompt", str(output), *quick]))
