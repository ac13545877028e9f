"""Prompt inspection: nearest words, confusion matrix, starts; checked by hand or against other functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import prompt_facts

from prompt_transfer import Prompt, UserError
from prompt_transfer.analysis import plots
from prompt_transfer.api import runs
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.studies.inputs import PromptSet
from prompt_transfer.studies.inspection import confusion, nearest_words
from prompt_transfer.studies.neurons.comparison import short_names, start_table
from prompt_transfer.studies.targets import EvaluationData
from prompt_transfer.studies.transfer.study import TransferStudy, transfer
from prompt_transfer.utils.progress import is_watched


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def backbone(tiny_roberta: Path) -> FrozenBackbone:
    return FrozenBackbone(str(tiny_roberta))


def word(backbone: FrozenBackbone, number: int) -> str:
    return backbone.tokenizer.decode([number]).strip()


def test_rows_are_near_the_words_that_they_are_made_of(backbone: FrozenBackbone) -> None:
    table = backbone.embedding_weight
    # Doubling an embedding keeps its direction; the second token moved from one word to another.
    rows, initial = torch.stack([2 * table[10], table[11]]), torch.stack([table[10], table[12]])
    found = nearest_words(Prompt(rows, prompt_facts(backbone), initial), count=2)
    assert list(found["row"]) == [0, 1]
    assert list(found["start"]) == [word(backbone, 10), word(backbone, 12)]
    assert [names.split(", ")[0] for names in found["nearest"]] == [word(backbone, 10), word(backbone, 11)]
    assert [len(names.split(", ")) for names in found["nearest"]] == [2, 2]
    assert list(found["cosine"]) == pytest.approx([1, 1])
    assert list(found["moved"]) == pytest.approx([1, float((table[11] - table[12]).norm() / table[12].norm())])
    bare = nearest_words(Prompt(rows, prompt_facts(backbone)))
    assert bare["start"].isna().all()
    assert bare["moved"].isna().all()


def test_special_tokens_are_no_words(backbone: FrozenBackbone) -> None:
    rows = backbone.embedding_weight[backbone.tokenizer.mask_token_id].unsqueeze(0)
    assert "mask" not in nearest_words(Prompt(rows.clone(), prompt_facts(backbone)), count=5)["nearest"].iloc[0]


def test_a_confusion_adds_up_to_the_scores_of_the_matrix(backbone: FrozenBackbone, toy: Path, tmp_path: Path) -> None:
    rows = 3 * torch.randn(4, backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    path = Prompt(rows, prompt_facts(backbone, task="toy", seed="0")).save(tmp_path / "prompts" / "toy-0.safetensors")
    data = EvaluationData("local", max_tokens=200)
    found = confusion(path, str(toy), data, random_prompts=2, accelerator="cpu")
    assert list(found["prompt"].unique()) == ["this prompt", "random prompt 1", "random prompt 2"]
    assert list(found["label"][:4]) == ["terrible", "terrible", "great", "great"]
    assert list(found["answer"][:4]) == ["terrible", "great", "terrible", "great"]
    # Ten rows, five per label.
    assert (found.groupby(["prompt", "label"])["rows"].sum() == 5).all()
    assert list(found["share"]) == pytest.approx(list(found["rows"] / 5))
    right = found[found["label"] == found["answer"]].groupby("prompt")["rows"].sum() / 10
    study = TransferStudy(
        backbone.id, str(path.parent), [str(toy)], str(tmp_path / "out"), data, random_prompts=2, accelerator="cpu"
    )
    scores = transfer(study).set_index("prompt")["value"]
    assert right["this prompt"] == pytest.approx(scores["toy-0"])
    drawn = scores[[name for name in scores.index if name.startswith("random vocabulary")]]
    assert list(drawn) == pytest.approx([right["random prompt 1"], right["random prompt 2"]])


def test_what_cannot_be_looked_at_is_refused(backbone: FrozenBackbone) -> None:
    prompt = Prompt(torch.zeros(2, backbone.hidden_size), prompt_facts(backbone, task="builtin_movies"))
    with pytest.raises(UserError, match="0 words per prompt token"):
        nearest_words(prompt, count=0)
    with pytest.raises(UserError, match="does not name its backbone"):
        nearest_words(Prompt(torch.zeros(2, 4), {}))
    with pytest.raises(UserError, match="has no classes"):
        confusion(prompt, "builtin_questions")
    with pytest.raises(UserError, match="split is 'train'"):
        confusion(prompt, split="train")
    with pytest.raises(UserError, match="unknown model 'MLP'"):
        runs.fit("out", {}, model="MLP")


def test_the_figure_has_labels_in_rows_in_the_order_of_the_task() -> None:
    cells = [("terrible", "terrible", 3, 0.6), ("terrible", "great", 2, 0.4), ("great", "terrible", 0, 0.0)]
    lines = [("this prompt", *cell) for cell in [*cells, ("great", "great", 5, 1.0)]]
    ax = plots.confusion(pd.DataFrame(lines, columns=["prompt", "label", "answer", "rows", "share"]))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["terrible", "great"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["terrible", "great"]
    assert [text.get_text() for text in ax.texts] == ["3", "2", "0", "5"]
    plots.plt.close("all")


def test_prompts_that_start_alike_are_told_apart() -> None:
    one, two = torch.ones(1, 2), torch.zeros(1, 2)
    made = [("sst2", one), ("sst2", two), ("imdb", one), ("mnli", two)]
    prompts = [Prompt(torch.full((1, 2), 3.0), {"task": task}, start) for task, start in made]
    found = PromptSet(prompts, list("abcd"), [task for task, _ in made], ["sentiment"] * 3 + ["nli"])
    whole = np.array([[1, 0.1, 0.2, 0.3], [0.1, 1, 0.4, 0.5], [0.2, 0.4, 1, 0.7], [0.3, 0.5, 0.7, 1]])
    table = start_table(whole, found)
    assert table.values.tolist() == [
        ["same task", "separate", 0.1, 1],
        ["same type", "shared", 0.2, 1],
        ["same type", "separate", 0.4, 1],
        ["different type", "shared", 0.5, 1],
        ["different type", "separate", 0.5, 2],
    ]
    prompts[0].initial = None
    assert start_table(whole, found).empty


def test_names_lose_what_they_share() -> None:
    assert short_names(["s0/prompts/a/prompt", "s1/prompts/a/prompt"]) == ["s0", "s1"]
    assert short_names(["s0/x/a", "s1/x/b"]) == ["s0/a", "s1/b"]
    assert short_names(["a", "b/c"]) == ["a", "b/c"]
    assert short_names(["x/a"]) == ["x/a"]


def test_a_run_from_python_is_done_once(toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: Any) -> None:
    config = {
        "model": {"backbone": str(tiny_roberta), "prompt_length": 4, "seeds": [0, 1]},
        "data": {"task": str(toy), "source": "local", "batch_size": 4},
        "trainer": {"max_steps": 2, "val_check_interval": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    done = runs.fit(tmp_path / "run", config)
    assert {path.name for path in (tmp_path / "run").glob("prompt*")} == {
        *("prompt.safetensors", "prompt-seed0.safetensors", "prompt-seed1.safetensors"),
    }
    assert list(done.table["seed"]) == [0, 1]
    assert done.value == pytest.approx(done.table["value"].mean())
    capsys.readouterr()
    assert runs.fit(tmp_path / "run", config).path == done.path
    assert "exists with these options" in capsys.readouterr().out
    config["trainer"]["max_steps"] = 3
    with pytest.raises(UserError, match=r"trainer\.max_steps 2, not 3"):
        runs.fit(tmp_path / "run", config)


def test_a_notebook_without_widgets_gets_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    import prompt_transfer.utils.progress as module

    console = Console(force_jupyter=True)
    for installed in (None, object()):
        monkeypatch.setattr(module, "find_spec", lambda name, found=installed: found)
        assert is_watched(console) == (installed is not None)


def test_inspect_shows_the_nearest_words(backbone: FrozenBackbone, tmp_path: Path, capsys: Any) -> None:
    path = Prompt(backbone.embedding_weight[10:12].clone(), prompt_facts(backbone)).save(tmp_path / "p.safetensors")
    assert main(["prompts", "inspect", str(path), "--nearest", "1"]) == 0
    shown = capsys.readouterr().out
    assert "nearest words of each prompt token" in shown
    assert "moved" not in shown
    assert word(backbone, 11) in shown.partition("nearest words")[2]
