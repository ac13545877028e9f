"""Generation tasks and whole-label answers: training, scores and predictions through the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.modules.objectives import Classification, Generation, make_objective
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

Tiny = Callable[[str], Path]
CHOICE = Task(name="choice", type="nli", text_a="text", label_words=("acceptable", "not acceptable"))
WRITE = Task(
    name="write", type="qa", text_a="text", label_column=None, target_column="answer", metric="squad_f1",
    metrics=("squad_f1", "exact_match"), max_target_length=4,
)  # fmt: skip


@pytest.fixture
def writing(tmp_path: Path) -> str:
    """Write a task whose answer is always `very good`, learnable by a prompt alone."""
    folder = tmp_path / "writing"
    folder.mkdir()
    for split, count in (("train", 40), ("validation", 8), ("test", 9)):
        rows = [f"the {word} was long,very good" for word in ("film", "story", "music", "food")] * count
        (folder / f"{split}.csv").write_text("\n".join(["text,answer", *rows[:count]]) + "\n")
    (tmp_path / "writing.yaml").write_text(
        "name: writing\ntype: qa\ncolumns: {text_a: text, text_b: null}\ntarget_column: answer\nmax_target_length: 4\n"
        "metric: squad_f1\nmetrics: [exact_match]\nlocal: writing\n"
    )
    return str(tmp_path / "writing.yaml")


@pytest.mark.parametrize("family", ["gpt2", "t5_v1_1"])
def test_a_prompt_learns_to_write(tiny: Tiny, family: str, writing: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    cache = ["--data.cache_dir", str(tmp_path / "cache")]
    fit = [
        "fit", "--model.backbone", str(tiny(family)), "--data.task", writing, "--data.source", "local",
        "--model.prompt_length", "8", "--model.learning_rate", "0.3", "--trainer.max_steps", "150",
        "--trainer.val_check_interval", "50", "--data.batch_size", "8", "--output", str(run), *cache, *quick,
    ]  # fmt: skip
    assert main(fit) == 0
    prompt = Prompt.load(run)
    assert prompt.metadata["layout"] == ("answer_last" if family == "gpt2" else "encoder")
    assert float(prompt.metadata["score"]) == 1.0
    assert main(["test", "--prompt", str(run), "--output", str(tmp_path / "test"), *cache, *quick]) == 0
    table = pd.read_parquet(tmp_path / "test" / "results.parquet")
    scores = table.set_index(["what", "metric"])["value"]
    assert scores["this prompt", "squad_f1"] == scores["this prompt", "exact_match"] == 1.0
    assert scores["random prompt", "squad_f1"] < 1.0
    # The lead of "the film was long" has two words, as a target has; an article does not count.
    assert scores["lead of the text", "squad_f1"] == 0.0
    assert (table.loc[table["what"] == "this prompt", "n"] == 9).all()
    output = tmp_path / "predictions"
    assert main(["predict", "--prompt", str(run), "--output", str(output), *cache, *quick]) == 0
    written = pd.read_parquet(output / "predictions.parquet")
    assert written["text"].tolist() == ["very good"] * 9
    assert written["id"].tolist() == list(range(9))


def test_sequence_scores_are_log_probabilities_of_whole_labels(tiny: Tiny) -> None:
    for family in ("gpt2", "t5"):
        backbone = FrozenBackbone(str(tiny(family)))
        words = ("very good", "boring", "not very good")
        task = Task(name="three", type="x", text_a="t", label_words=words, label_words_policy="sequence")
        two = Task(name="two", type="x", text_a="t", label_words=words[:2], label_words_policy="sequence")
        objective = make_objective(backbone, [task, two])
        assert isinstance(objective, Classification)
        encoder, prompt = backbone.encoder(3), torch.randn(3, backbone.hidden_size)
        rows = encoder.encode(["the film", "the very long story"], None, 20, cue="it was")
        width = max(map(len, rows))
        batch = {
            "input_ids": torch.tensor([row + [encoder.pad_token_id] * (width - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
            "task_ids": torch.tensor([0, 1]),
        }
        logits = objective.logits(prompt, batch)
        for index, row in enumerate(rows):
            alone = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row)).long()}
            for number, word in enumerate(words[: 3 - index]):
                target = torch.tensor([encoder.encode_targets([word], 20)[0][:-1]])
                expected = backbone.target_log_probs(prompt, {**alone, "target_ids": target}).sum()
                torch.testing.assert_close(logits[index, number], expected, atol=1e-5, rtol=0)
        assert logits[1, 2] == float("-inf")


def test_tasks_that_a_backbone_cannot_answer_are_refused(tiny: Tiny) -> None:
    gpt, bert = FrozenBackbone(str(tiny("gpt2"))), FrozenBackbone(str(tiny("bert")))
    assert isinstance(make_objective(gpt, [WRITE]), Generation)
    with pytest.raises(
        UserError,
        match=r"needs generated text, but .* predicts one word: use a causal or sequence-to-sequence backbone",
    ):
        make_objective(bert, [WRITE])
    with pytest.raises(UserError, match="cannot be mixed in one run"):
        make_objective(gpt, [WRITE, CHOICE])
    with pytest.raises(UserError, match=r"'not acceptable' is 2 tokens.*sequence"):
        make_objective(gpt, [CHOICE])
    sequence = Task(name="x", type="x", text_a="t", label_words=("bad", "good"), label_words_policy="sequence")
    with pytest.raises(UserError, match="needs a backbone that generates text"):
        make_objective(bert, [sequence])
    prefix = Task(name="x", type="x", text_a="t", label_words=("not", "not bad"), label_words_policy="sequence")
    with pytest.raises(UserError, match="'not bad' begins with all of 'not'"):
        make_objective(gpt, [prefix])


def test_labels_with_one_first_piece_suggest_the_sequence_policy(tiny: Tiny) -> None:
    backbone = FrozenBackbone(str(tiny("t5")))
    task = Task(name="x", type="x", text_a="t", label_words=("zzz", "zqq"), label_words_policy="first")
    with pytest.raises(UserError, match=r"are both the token '▁'.*label_words_policy sequence"):
        make_objective(backbone, [task])
    whole = Task(name="x", type="x", text_a="t", label_words=("zzz", "zqq"), label_words_policy="sequence")
    assert isinstance(make_objective(backbone, [whole]), Classification)
