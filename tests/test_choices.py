"""Multiple choice: options scored by their log-likelihoods on every kind of backbone, SuperGLUE's rows and metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_cli import error_of, fit
from tiny_models import prompt_facts

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.data.batches import collate, cross_prompts
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.sources import load_task
from prompt_transfer.modules.choices import ChoiceScoring
from prompt_transfer.modules.objectives import make_objective
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.targets import EvaluationData
from prompt_transfer.studies.transfer.study import TransferStudy, transfer
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError

Tiny = Callable[[str], Path]
P = 3
QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
ROWS: list[dict[str, Any]] = [
    {"premise": "the man was sad", "question": "cause", "choice1": "his dog went up", "choice2": "he saw a film"},
    {"premise": "the food was great", "question": "effect", "choice1": "we had a good day and night", "choice2": "no"},
    {"premise": "the city is big", "question": "cause", "choice1": "people come", "choice2": "the long water and road"},
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def write(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def labelled(count: int) -> list[dict[str, Any]]:
    return [{**ROWS[i % 3], "premise": f"{ROWS[i % 3]['premise']} {'very ' * (i // 3)}", "label": i % 2}
            for i in range(count)]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write rows of COPA, MultiRC and ReCoRD in the columns of the hub."""
    data = tmp_path / "data"
    write(data / "copa", {"train": labelled(12), "validation": labelled(4), "test": labelled(6)})
    multirc = [
        {"paragraph": "the film is long", "question": question, "answer": answer,
         "idx": {"paragraph": 0, "question": number, "answer": place}, "label": int(place == 0)}
        for number, question in enumerate(("who is it", "what is it", "how was it"))
        for place, answer in enumerate(("a man", "a dog", "the story")[: 3 - number % 2])
    ]  # fmt: skip
    write(data / "multirc", dict.fromkeys(("train", "validation", "test"), multirc))
    record = [
        {"passage": "the man saw the dog in the city", "query": "the @placeholder was big",
         "entities": ["dog", "city", "man", "dog"], "answers": ["the city", "city"]},
        {"passage": "the woman and the man", "query": "@placeholder was great",
         "entities": ["woman", "man"], "answers": ["woman"]},
        {"passage": "a cat and the house", "query": "@placeholder was old",
         "entities": ["cat", "house", "old cat"], "answers": ["the old house"]},
    ]  # fmt: skip
    write(data / "record", {"train": record * 3, "validation": record, "test": record})
    return data


def tables_of(root: Path, name: str, backbone: FrozenBackbone, tmp: Path, **options: Any) -> TaskDataModule:
    data = TaskDataModule(name, "local", str(root), cache_dir=str(tmp), **options)
    return data.connect(backbone.encoder(P))


def plain_model(folder: Path, kind: str) -> Any:
    import transformers

    classes = {"masked_lm": "AutoModelForMaskedLM", "causal_lm": "AutoModelForCausalLM"}
    return getattr(transformers, classes.get(kind, "AutoModelForSeq2SeqLM")).from_pretrained(folder).eval()


def plain_score(model: Any, backbone: FrozenBackbone, prompt: torch.Tensor, row: list[int], option: list[int]) -> Any:
    """Return the log-probabilities of an option's tokens, computed by transformers alone."""
    embed, kind = model.get_input_embeddings(), backbone.family.kind
    if kind == "masked_lm":
        ids = [*row[:-1], *[backbone.tokenizer.mask_token_id] * len(option), row[-1]]
        x = torch.cat([prompt, embed(torch.tensor(ids))])[None]
        start = len(prompt) + len(row) - 1
        logits = model(inputs_embeds=x).logits[0, start : start + len(option)]
    elif kind == "causal_lm":
        x = torch.cat([prompt, embed(torch.tensor([*row, *option]))])[None]
        start = len(prompt) + len(row) - 1
        logits = model(inputs_embeds=x).logits[0, start : start + len(option)]
    else:
        x = torch.cat([prompt, embed(torch.tensor(row))])[None]
        before = [model.config.decoder_start_token_id, *option[:-1]]
        logits = model(inputs_embeds=x, decoder_input_ids=torch.tensor([before])).logits[0]
    return logits.log_softmax(dim=-1)[torch.arange(len(option)), torch.tensor(option)]


@pytest.mark.parametrize("score", ["sum", "mean"])
@pytest.mark.parametrize(
    ("family", "attention"), [("gpt2", "full"), ("llama", "shared"), ("t5", "full"), ("modernbert", "full"),
                              ("roberta", "full"), ("bert", "full")],
)  # fmt: skip
def test_scores_are_those_of_transformers(
    tiny: Tiny, family: str, attention: str, score: str, root: Path, tmp_path: Path
) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    # Prompts of BERT and RoBERTa have no positions, which transformers cannot express: no prompt there.
    length = 0 if family in ("roberta", "bert") else P
    prompt = torch.randn(length, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    data = tables_of(root, "copa", backbone, tmp_path)
    table, task = data.tokens("test"), replace(data.tasks[0], choice_score=score)
    batch = collate(table, np.arange(len(table)), backbone.encoder(P).pad_token_id)
    objective = make_objective(backbone, [task])
    assert isinstance(objective, ChoiceScoring)
    logits = objective.logits(prompt, batch)
    assert logits.shape == (6, 2)
    model = plain_model(tiny(family), backbone.family.kind)
    rows = data.selection.rows("test")
    for index in range(len(table)):
        ids = table.values[table.offsets[index] : table.offsets[index + 1]].tolist()
        for number, text in enumerate(rows["choices"][index]):
            option = backbone.encoder(P).answer_ids([text])[0]
            logs = plain_score(model, backbone, prompt, ids, option)
            expected = logs.sum() if score == "sum" else logs.mean()
            torch.testing.assert_close(logits[index, number], expected.detach(), atol=2e-5, rtol=0)
    # A hand-made cross-entropy over the options.
    right = batch["option_right"].long().argmax(dim=1)
    expected = torch.nn.functional.cross_entropy(logits, right, reduction="none")
    torch.testing.assert_close(objective.losses(prompt, batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "attention"), [("gpt2", "full"), ("t5", "shared"), ("roberta", "full"),
                                                   ("roberta", "shared"), ("bert", "shared")])  # fmt: skip
def test_neither_batch_nor_prompts_nor_padding_matter(
    tiny: Tiny, family: str, attention: str, root: Path, tmp_path: Path
) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    data = tables_of(root, "record", backbone, tmp_path, max_length=36)
    table, pad = data.tokens("test"), backbone.encoder(P).pad_token_id
    assert table.copies.tolist() == [3, 2, 3]
    objective = make_objective(backbone, data.tasks)
    prompts = torch.randn(2, P, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    alone = [
        [objective.logits(prompt, collate(table, np.array([row]), pad))[0] for row in range(3)] for prompt in prompts
    ]
    batch = collate(table, np.arange(3), pad, pad_multiple=8)
    both = objective.logits(backbone.record(prompts), cross_prompts(batch, torch.arange(2)))
    for number in range(2):
        one = objective.logits(prompts[number], batch)
        assert one[1, 2] == both[number * 3 + 1, 2] == float("-inf")
        for row, count in enumerate((3, 2, 3)):
            expected = alone[number][row][:count]
            torch.testing.assert_close(one[row, :count], expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(both[number * 3 + row, :count], expected, atol=1e-5, rtol=0)
    prompt = prompts[0].clone().requires_grad_()
    objective.losses(prompt, batch)[:2].sum().backward()
    assert prompt.grad is not None
    assert bool((prompt.grad != 0).any(dim=1).all())


def test_rows_of_record(root: Path) -> None:
    with pytest.warns(UserWarning, match="in 1 validation rows no option is a right answer"):
        data = load_task(get_task("record"), "local", root)
    train, test = data.splits["train"], data.splits["test"]
    assert train["choices"][0] == ["dog", "city", "man"]
    assert train["right"][0] == [False, True, False]
    # Rows without a right option are not trained on, but count in the metrics.
    assert len(train) == 6
    assert len(test) == 3
    assert test["answers"][2] == ["the old house"]


def test_metrics_of_record_and_multirc(root: Path, tmp_path: Path, tiny_roberta: Path) -> None:
    backbone = FrozenBackbone(str(tiny_roberta))
    data = tables_of(root, "record", backbone, tmp_path, max_length=36)
    table = data.tokens("test")
    # squad_f1 and exact match; articles do not count: "city" = "the city", "house" has F1 2/3 with "old house".
    expected = [[0, 0], [1, 1], [0, 0], [1, 1], [0, 0], [0, 0], [2 / 3, 0], [0.5, 0]]
    assert table.options is not None
    np.testing.assert_allclose(table.options.scores, np.array(expected), atol=1e-6)
    objective = make_objective(backbone, data.tasks)
    batch = collate(table, np.arange(3), 1)
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, float("-inf")], [0.0, 2.0, 1.0]])
    objective.count({"logits": logits}, batch, "test", lambda *_: [])
    (found,) = objective.compute("test")
    assert found["squad_f1"].item() == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert found["exact_match"].item() == pytest.approx(1 / 3)
    multirc = tables_of(root, "multirc", backbone, tmp_path, max_length=36)
    table = multirc.tokens("test")
    assert table.groups is not None
    assert table.groups.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert table.labels.tolist() == [1, 0, 0, 1, 0, 1, 0, 0]
    objective = make_objective(backbone, multirc.tasks)
    predicted = torch.tensor([1, 0, 0, 0, 0, 1, 1, 0])
    outputs = {"logits": torch.nn.functional.one_hot(predicted, 2).float()}
    objective.count(outputs, collate(table, np.arange(8), 1), "test", lambda *_: [])
    (found,) = objective.compute("test")
    # F1a: 2 right of 3 predicted and 3 true. EM: the first of three questions.
    assert found["f1"].item() == pytest.approx(2 / 3)
    assert found["group_exact_match"].item() == pytest.approx(1 / 3)


def test_superglue_rows_are_unverified_and_have_the_columns_of_the_hub() -> None:
    from prompt_transfer.data.readers import used_columns

    columns = {
        "wic": ["word", "sentence1", "sentence2", "label"],
        "wsc": ["text", "span2_text", "span1_text", "label"],
        "copa": ["premise", "question", "choice1", "choice2", "label"],
        "multirc": ["paragraph", "question", "answer", "label", "idx"],
        "record": ["passage", "query", "entities", "answers"],
    }
    for name, wanted in columns.items():
        task = get_task(name)
        assert used_columns(task) == wanted
        assert task.hub is not None
        assert (task.hub.id, task.hub.verified) == ("aps/super_glue", False)


def test_texts_of_several_columns(tmp_path: Path) -> None:
    rows = [{"word": "film", "sentence1": f"a film {i}", "sentence2": "the film", "label": i % 2} for i in range(9)]
    write(tmp_path / "wic", {"train": rows})
    data = load_task(get_task("wic"), "local", tmp_path)
    assert data.splits["train"]["text_a"][0].startswith("film: a film ")
    task = get_task("wsc")
    rows = [{"text": "the dog saw a cat and it was big", "span1_text": "the dog", "span2_text": "it", "label": i % 2}
            for i in range(9)]  # fmt: skip
    write(tmp_path / "wsc", {"train": rows})
    assert set(load_task(task, "local", tmp_path).splits["train"]["text_b"]) == {"it is the dog"}


def test_a_choice_task_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    base = "name: mine\ncolumns: {text_a: q}\nlocal: mine\n"
    path.write_text(base + "choices: [a, b, c]\nlabels: [A, B, C]\nlabel_column: key\nchoice_score: mean\n")
    task = get_task(path)
    assert (task.choices, task.choice_score, task.metric, task.num_classes) == (("a", "b", "c"), "mean", "accuracy", 0)
    rows = [{"q": f"which {i}", "a": "dog", "b": "cat", "c": "man", "key": "ABC"[i % 3]} for i in range(9)]
    write(tmp_path / "mine", {"train": rows, "validation": rows, "test": rows})
    right = load_task(task, "local").splits["test"]["right"][:3]
    assert right == [[True, False, False], [False, True, False], [False, False, True]]
    for lines, message in (
        ("choices: [a]\n", "choices must be two or more columns"),
        ("choices: [a, a]\n", "choices must be two or more columns"),
        ("choices: [a, b]\nlabel_words: [no, yes]\n", "a task with choices has no label_words"),
        ("choices: [a, b]\nchoice_score: max\n", "choice_score must be one of sum, mean"),
        ("choices: [a, b]\nmetric: f1\n", "metric must be one of accuracy, exact_match, squad_f1"),
        ("label_words: [no, yes]\nchoice_score: sum\n", "choice_score is for tasks with choices"),
        ("label_words: [no, yes]\nmetric: group_exact_match\n", "needs the column of the groups"),
        ("label_words: [no, yes]\nvalues: 3\n", "values must be a mapping"),
    ):
        path.write_text(base + lines)
        with pytest.raises(UserError) as caught:
            get_task(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_text(base + "choices: [a, b, c]\nlabel_column: key\n")
    with pytest.raises(UserError, match=r"label 'A' in row 0 .* is neither an option nor the number of one"):
        load_task(get_task(path), "local")
    rows[4]["b"] = "dog"
    write(tmp_path / "mine", {"train": rows})
    path.write_text(base + "choices: [a, b, c]\nlabels: [A, B, C]\nlabel_column: key\n")
    with pytest.raises(UserError, match=r"row 4 .* give two or more different texts"):
        load_task(get_task(path), "local")


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_commands(tiny: Tiny, family: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, backbone = tmp_path / "run", tiny(family)
    options = ["--data.root", str(root), "--data.batch_size", "4"]
    assert fit("copa", backbone, output, *options, "--model.learning_rate", "0.3") == 0  # type: ignore[arg-type]
    prompt = Prompt.load(output)
    assert prompt.metadata["task"] == "copa"
    assert main(["test", "--prompt", str(output), *QUICK, "--output", str(tmp_path / "test")]) == 0
    table = pd.read_csv(tmp_path / "test" / "results.csv").set_index("what")
    assert table.loc["best position", "value"] == 0.5
    assert table.loc["this prompt", "n"] == 6
    assert main(["predict", "--prompt", str(output), *QUICK, "--output", str(tmp_path / "p")]) == 0
    frame = pd.read_parquet(tmp_path / "p" / "predictions.parquet")
    right = (frame["label"] == [i % 2 for i in range(6)]).mean()
    assert right == pytest.approx(table.loc["this prompt", "value"])
    assert all(row["answer"] == labelled(6)[row["id"]][f"choice{row['label'] + 1}"] for _, row in frame.iterrows())
    assert frame["p"].between(0.5, 1).all()
    study = TransferStudy(
        str(backbone), str(output), ["copa"], str(tmp_path / "study"), EvaluationData("local", str(root)),
        random_prompts=1, accelerator="cpu",
    )  # fmt: skip
    rows = transfer(study)
    own = rows[rows["kind"] == "trained"].iloc[0]
    assert own["value"] == pytest.approx(table.loc["this prompt", "value"])
    text = tmp_path / "texts.csv"
    text.write_text("premise,question,choice1,choice2\nthe man was sad,cause,he saw a film,no dog\n")
    given = ["--input", str(text), "--output", str(tmp_path / "q")]
    assert main(["predict", "--prompt", str(output), *QUICK, *given]) == 0
    assert len(pd.read_parquet(tmp_path / "q" / "predictions.parquet")) == 1
    (tmp_path / "lines.txt").write_text("the man was sad\n")
    given[1] = str(tmp_path / "lines.txt")
    capsys.readouterr()
    assert "the columns" in error_of(capsys, main(["predict", "--prompt", str(output), *QUICK, *given]))


def test_two_prompts_at_once_and_small_budgets(tiny: Tiny, root: Path, tmp_path: Path) -> None:
    backbone = tiny("gpt2")
    options = ["--data.root", str(root), "--data.batch_size", "4", "--model.learning_rate", "0.3"]
    assert fit("copa", backbone, tmp_path / "both", *options, "--model.seeds", "[0, 1]") == 0  # type: ignore[arg-type]
    for seed in (0, 1):
        run = tmp_path / f"one{seed}"
        budget = ["--data.max_tokens", "130"] if seed else []
        assert fit("copa", backbone, run, *options, *budget, "--seed_everything", str(seed)) == 0  # type: ignore[arg-type]
        one = Prompt.load(run)
        both = Prompt.load(tmp_path / "both" / f"prompt-seed{seed}.safetensors")
        if one.metadata["steps"] == both.metadata["steps"]:
            torch.testing.assert_close(one.embeddings, both.embeddings, atol=1e-4, rtol=0)
        assert float(one.metadata["score"]) == pytest.approx(float(both.metadata["score"]))


def test_what_choices_cannot_do(tiny_roberta: Path, root: Path, tmp_path: Path) -> None:
    backbone = FrozenBackbone(str(tiny_roberta))
    with pytest.raises(UserError, match="cannot be mixed"):
        make_objective(backbone, [get_task("copa"), get_task("rte")])
    facts = prompt_facts(backbone, task="copa")
    assert facts["task"] == "copa"
    with pytest.raises(UserError, match="does not hold one example, whose options take"):
        tables_of(root, "copa", backbone, tmp_path, max_tokens=40).tokens("test")
