"""Bundled backbones: complete, small, better than word frequencies, and usable for every task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prompt_transfer.backbones.builtin import builtin_backbones, find_shipped, shipped
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.modules.objectives import make_objective
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.registry import get_task, task_names

SHIPPED = builtin_backbones()


def test_all_together_are_small() -> None:
    sizes = {name: sum(file.stat().st_size for file in folder.iterdir()) / 1e6 for name, folder in SHIPPED.items()}
    assert set(sizes) == {"roberta-nano", "bert-nano", "gpt2-nano", "t5-nano", "minilm-mlm"}
    assert max(size for name, size in sizes.items() if name not in ("t5-nano", "minilm-mlm")) < 25
    assert sizes["t5-nano"] < 27
    assert sizes["minilm-mlm"] < 47
    # Including the prompts.
    assert sum(file.stat().st_size for file in shipped("checkpoints").rglob("*.*") if file.is_file()) / 1e6 < 115


def test_what_ships_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = shipped("checkpoints") / "backbones" / "bert-nano"
    assert find_shipped("checkpoints/backbones/bert-nano") == str(own)
    assert find_shipped("--model.backbone=checkpoints/backbones/bert-nano") == f"--model.backbone={own}"
    assert find_shipped("checkpoints/none") == "checkpoints/none"
    (tmp_path / "checkpoints/backbones/bert-nano").mkdir(parents=True)
    assert find_shipped("checkpoints/backbones/bert-nano") == "checkpoints/backbones/bert-nano"


@pytest.mark.parametrize("folder", SHIPPED.values(), ids=SHIPPED.keys())
def test_cards_tell_of_a_loss_better_than_both_baselines(folder: Path) -> None:
    facts = json.loads((folder / "facts.json").read_text())
    loss = facts.get("held_out_loss", facts.get("held_out_masked_loss"))
    assert loss < facts["unigram_loss"] < facts["random_weights_loss"]
    assert f"| this model | {loss:.2f} |" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_every_task_has_an_answer_on_every_backbone(name: str) -> None:
    backbone = FrozenBackbone(name)
    texts = backbone.encoder(4).encode(["the film was great ."], None, 32, cue="it was")
    batch = {"input_ids": torch.tensor(texts), "attention_mask": torch.ones(1, len(texts[0]), dtype=torch.long)}
    for task in (get_task(task) for task in task_names()):
        if task.has_example_scores:
            continue
        objective = make_objective(backbone, [task])
        prompt = backbone.embedding_weight[10:14].float()
        logits = objective.logits(prompt, {**batch, "task_ids": torch.zeros(1, dtype=torch.long)})
        assert logits.shape == (1, task.num_classes)
        assert torch.isfinite(logits).all()


def test_a_good_film_is_not_a_bad_one() -> None:
    # The purpose of pretraining: after "it was" the masked models expect a word of the text's kind.
    for name in ("roberta-nano", "minilm-mlm", "bert-nano"):
        backbone = FrozenBackbone(name)
        tokenizer = backbone.tokenizer
        words = [tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in ("great", "terrible")]
        model = backbone.model
        margins = []
        for text in ("this is a wonderful film , i loved it .", "this is an awful film , i hated it ."):
            ids = tokenizer.encode(f"{text} it was {tokenizer.mask_token} .")
            logits = model(input_ids=torch.tensor([ids])).logits[0, ids.index(tokenizer.mask_token_id)]
            margins.append(float(logits[words[0]] - logits[words[1]]))
        assert margins[0] > margins[1], name


def test_spaces_at_the_ends_are_no_tokens_of_t5() -> None:
    tokenizer = FrozenBackbone("t5-nano").tokenizer
    assert tokenizer("  a  film ").input_ids == tokenizer("a film").input_ids


@pytest.mark.parametrize("name", ["roberta-nano", "minilm-mlm", "smollm2-135m"])
def test_prompts_that_ship_fit_their_backbone_and_name_no_place_of_ours(name: str) -> None:
    folder = shipped("checkpoints") / "prompts" / name
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 13
    prompts = [Prompt.load(path) for path in files]
    # SmolLM2 does not ship: `make test-real` compares its fingerprint.
    known = FrozenBackbone(name).fingerprint if name in SHIPPED else prompts[0].metadata["fingerprint"]
    card = (folder / "README.md").read_text()
    for path, prompt in zip(files, prompts, strict=True):
        assert prompt.metadata["fingerprint"] == known
        assert prompt.metadata["task"] == path.stem
        assert not {"data_root", "data_source"} & set(prompt.metadata)
        assert f"| `{path.name}` | {float(prompt.metadata['score']):.3f} " in card
