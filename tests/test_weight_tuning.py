"""LoRA and fine-tuning: equal to PEFT and plain transformers, and no effect on other copies of the backbone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from prompt_transfer.backbones.families import FAMILIES
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.lora import LoraAdapter, LoraOptions, target_modules
from prompt_transfer.backbones.trainable import save_model, unfreeze_copy
from prompt_transfer.modules.weight_tuning import LoraTuning
from prompt_transfer.utils.errors import UserError

peft = pytest.importorskip("peft")

AUTO = {"roberta": AutoModelForMaskedLM, "gpt2": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}
WORDS = torch.tensor([7, 11])
LABELS = torch.tensor([0, 1, 1])


def batch() -> dict[str, Tensor]:
    """Return three texts of 6, 4 and 5 tokens, padded on the right."""
    ids = torch.tensor([[5, 9, 8, 12, 6, 2], [5, 7, 2, 2, 1, 1], [5, 10, 9, 6, 2, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
    return {"input_ids": ids, "attention_mask": mask}


def plain_logits(family: str, model: Any) -> Tensor:
    """Compute the label-word logits with transformers alone, in the layout without a prompt."""
    ids, mask = batch()["input_ids"], batch()["attention_mask"]
    if family == "gpt2":
        last = mask.sum(dim=1) - 1
        return model(input_ids=ids, attention_mask=mask).logits[torch.arange(len(ids)), last][:, WORDS]
    if family == "t5":
        start = torch.zeros(len(ids), 1, dtype=torch.long)
        return model(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits[:, 0][:, WORDS]
    # The answer slot before the text has no position: take away what the model adds.
    embeddings = model.get_input_embeddings()
    table = next(module for name, module in model.named_modules() if name.endswith("embeddings.position_embeddings"))
    slot = embeddings(torch.full((len(ids), 1), 4)) - table(torch.full((len(ids), 1), 2))
    positions = torch.cat([torch.full((len(ids), 1), 2), torch.arange(2, 2 + ids.shape[1]).expand_as(ids)], dim=1)
    whole = torch.cat([slot, embeddings(ids)], dim=1)
    seen = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
    return model(inputs_embeds=whole, attention_mask=seen, position_ids=positions).logits[:, 0][:, WORDS]


def steps(logits: Callable[[], Tensor], parameters: list[Tensor], count: int = 4) -> list[float]:
    """Train with AdamW and return the losses."""
    optimizer, losses = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0), []
    for _ in range(count):
        loss = nn.functional.cross_entropy(logits(), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("family", ["roberta", "gpt2", "t5"])
def test_lora_equals_a_plain_loop_of_peft(family: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny(family)
    backbone = FrozenBackbone(str(folder))
    adapter = LoraAdapter(backbone, LoraOptions(rank=4, alpha=8), seed=3)
    empty = torch.empty(0, backbone.hidden_size)

    plain = AUTO[family].from_pretrained(folder, attn_implementation="eager").eval()
    targets = {"roberta": ["query", "value"], "gpt2": ["c_attn"], "t5": ["q", "v"]}[family]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, fan_in_fan_out=family == "gpt2")
    torch.manual_seed(3)
    reference = peft.get_peft_model(plain, config)
    names = {name.replace(".whole.", ".") for name, value in adapter.model.named_parameters() if value.requires_grad}
    assert names == {name for name, value in reference.named_parameters() if value.requires_grad}

    ours = steps(lambda: backbone(empty, batch(), WORDS), trained(backbone.model))
    theirs = steps(lambda: plain_logits(family, reference), trained(reference))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[0] != pytest.approx(ours[-1], abs=1e-3)

    adapter.save(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(
        AUTO[family].from_pretrained(folder, attn_implementation="eager"), tmp_path / "adapter"
    ).eval()
    with torch.no_grad():
        assert torch.allclose(plain_logits(family, loaded), backbone(empty, batch(), WORDS), atol=1e-5)


@pytest.mark.parametrize("family", ["roberta", "gpt2", "t5"])
def test_fine_tuning_equals_plain_transformers(family: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny(family)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    frozen, backbone = FrozenBackbone(str(folder)), FrozenBackbone(str(folder))
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    empty = torch.empty(0, backbone.hidden_size)
    unfreeze_copy(backbone)
    plain = AUTO[family].from_pretrained(folder, attn_implementation="eager").eval()

    ours = steps(lambda: backbone(empty, batch(), WORDS), trained(backbone.model))
    theirs = steps(lambda: plain_logits(family, plain), trained(plain))
    assert ours == pytest.approx(theirs, abs=1e-5)

    after = frozen.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files

    save_model(backbone, tmp_path / "model")
    again = FrozenBackbone(str(tmp_path / "model"))
    assert torch.allclose(again(empty, batch(), WORDS), backbone(empty, batch(), WORDS), atol=1e-6)


def test_wrong_layers_are_one_line(tiny: Callable[[str], Path]) -> None:
    backbone = FrozenBackbone(str(tiny("roberta")))
    with pytest.raises(UserError, match=r"^--lora.targets do not fit .*not_there") as error:
        LoraAdapter(backbone, LoraOptions(targets="not_there"), seed=0)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"--lora\.rank must be 1 or more"):
        LoraOptions(rank=0)


def test_a_deprecation_inside_peft_is_not_shown(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    original = peft.get_peft_model

    def noisy(*arguments: Any) -> Any:
        warnings.warn("another deprecation", FutureWarning, stacklevel=1)
        return original(*arguments)

    monkeypatch.setattr(peft, "get_peft_model", noisy)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LoraAdapter(FrozenBackbone(str(tiny("roberta"))), LoraOptions(rank=1), seed=0)
    said = [str(one.message) for one in caught]
    assert "another deprecation" in said
    assert not any("is_gradient_checkpointing" in text for text in said)


def test_every_family_has_layers_for_lora(tiny: Callable[[str], Path]) -> None:
    """An architecture without a row, and without a default of PEFT, needs `--lora.targets`."""
    assert all(target_modules(family, LoraOptions()) for family in FAMILIES.values())
    unknown = replace(FAMILIES["llama"], name="marian-like")
    with pytest.raises(UserError, match=r"name its linear layers with --lora\.targets"):
        target_modules(unknown, LoraOptions())
    assert target_modules(unknown, LoraOptions(targets="all-linear")) == "all-linear"
    backbone = FrozenBackbone(str(tiny("roberta")))
    LoraAdapter(backbone, LoraOptions(rank=1, targets="all-linear"), seed=0)
    # Six linear layers in each of two layers, and the dense layer of the head.
    adapted = {name for name, value in backbone.model.named_parameters() if name.endswith("lora_A.default.weight")}
    assert len(adapted) == 2 * 6 + 1


def test_a_module_holds_and_saves_only_what_it_trains(tiny: Callable[[str], Path]) -> None:
    module = LoraTuning(str(tiny("roberta")), prompt_length=5, lora=LoraOptions(rank=2))
    assert module.encoder.extra_positions == 6
    assert module.current_prompt().shape == (0, 32)
    module.begin(0)
    # Two layers, query and value, A [2, 32] and B [32, 2].
    assert sum(value.numel() for value in module.trained()) == 2 * 2 * 2 * 2 * 32
    assert all("lora_" in name for name in module.state_dict())
    assert len(module.state_dict()) == 8
    assert not module.backbone.model.get_submodule("roberta.encoder.layer.0").training
