"""FrozenBackbone against straight-line computations from plain Hugging Face modules, implemented independently here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer

from prompt_transfer.backbones.config import BackboneConfig
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.utils.errors import UserError

P = 5
TEXTS = ["great good", "no yes maybe wrong right okay good bad terrible"]


@pytest.fixture(params=["tiny_roberta", "tiny_bert"])
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def ragged_batch(backbone: FrozenBackbone) -> dict[str, Tensor]:
    rows = backbone.encoder(P).encode(TEXTS, None, 32)
    longest = max(map(len, rows))
    assert len(rows[0]) < longest
    pad = backbone.tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def random_prompt(backbone: FrozenBackbone, seed: int = 0) -> Tensor:
    return torch.randn(P, backbone.hidden_size, generator=torch.Generator().manual_seed(seed)) * 0.5


def words(backbone: FrozenBackbone) -> Tensor:
    ids = [backbone.tokenizer.encode(f" {word}", add_special_tokens=False) for word in ("terrible", "great")]
    assert all(len(row) == 1 for row in ids)
    return torch.tensor([row[0] for row in ids])


def straight_line(folder: Path, layout: str, prompt: Tensor, ids: list[int], shared: bool) -> Tensor:
    """Compute logits [V] at the answer slot of one example by hand: embeddings, mask, layers, head."""
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bert = model.config.model_type == "bert"
    body = model.bert if bert else model.roberta
    table = body.embeddings
    answer = table.word_embeddings.weight[tokenizer.mask_token_id][None]
    text = table.word_embeddings(torch.tensor(ids))
    length = len(prompt)
    first = 0 if bert else model.config.pad_token_id + 1
    if layout == "mask_first":
        # Release 1.0: `<s>` is at the position after 1 + P slots.
        first += length + 1
        x = torch.cat([answer, prompt, text])
        answer_index, prompt_rows = 0, range(1, length + 1)
    else:
        x = torch.cat([prompt, answer, text])
        answer_index, prompt_rows = length, range(length)
    # Only the text has positions; in `prefix` they are counted from its first token.
    bare = length + 1
    positions = torch.zeros_like(x)
    positions[bare:] = table.position_embeddings.weight[first : first + len(x) - bare]
    types = table.token_type_embeddings.weight[0].expand_as(x).clone()
    if bert:
        types[:bare] = 0
    hidden = table.LayerNorm(x + positions + types)[None]
    total = hidden.shape[1]
    allowed = torch.ones(total, total, dtype=torch.bool)
    if shared:
        for row in prompt_rows:
            allowed[row] = False
            allowed[row, list(prompt_rows)] = True
    mask = torch.zeros(1, 1, total, total).masked_fill(~allowed, torch.finfo(torch.float32).min)
    for layer in body.encoder.layer:
        hidden = layer(hidden, mask)
    head = model.cls if bert else model.lm_head
    return head(hidden)[0, answer_index]


@pytest.mark.parametrize("layout", ["mask_first", "prefix"])
@pytest.mark.parametrize("attention", ["full", "shared"])
def test_logits_equal_a_straight_line_computation(folder: Path, layout: str, attention: str) -> None:
    backbone = FrozenBackbone(str(folder), layout=layout, attention=attention)
    batch, prompt, token_ids = ragged_batch(backbone), random_prompt(backbone), words(backbone)
    logits = backbone(prompt, batch, token_ids)
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        expected = straight_line(folder, layout, prompt, ids[mask.bool()].tolist(), attention == "shared")
        torch.testing.assert_close(logits[row], expected[token_ids], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["mask_first", "prefix"])
@pytest.mark.parametrize("attention", ["full", "shared"])
def test_gradients_equal_a_straight_line_computation(folder: Path, layout: str, attention: str) -> None:
    backbone = FrozenBackbone(str(folder), layout=layout, attention=attention)
    batch, token_ids = ragged_batch(backbone), words(backbone)
    prompt = random_prompt(backbone).requires_grad_()
    weights = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    (backbone(prompt, batch, token_ids) * weights).sum().backward()
    by_hand = prompt.detach().clone().requires_grad_()
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        logits = straight_line(folder, layout, by_hand, ids[mask.bool()].tolist(), attention == "shared")
        (logits[token_ids] * weights[row]).sum().backward()
    assert by_hand.grad is not None
    assert prompt.grad is not None
    torch.testing.assert_close(prompt.grad, by_hand.grad, atol=1e-5, rtol=1e-5)


def test_full_and_shared_are_different_functions(folder: Path) -> None:
    full, shared = (FrozenBackbone(str(folder), attention=mode) for mode in ("full", "shared"))
    batch, prompt, token_ids = ragged_batch(full), random_prompt(full), words(full)
    assert (full(prompt, batch, token_ids) - shared(prompt, batch, token_ids)).abs().max() > 1e-4


@pytest.mark.parametrize("attention", ["full", "shared"])
def test_several_prompts_in_a_batch_equal_one_after_the_other(folder: Path, attention: str) -> None:
    backbone = FrozenBackbone(str(folder), attention=attention)
    batch, token_ids = ragged_batch(backbone), words(backbone)
    prompts = torch.stack([random_prompt(backbone, seed) for seed in range(3)])
    together = backbone(prompts, {**batch, "prompt_ids": torch.tensor([2, 0])}, token_ids)
    alone = [backbone(prompts[index], batch, token_ids)[row] for row, index in enumerate((2, 0))]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-6, rtol=0)


def test_prompt_length_does_not_change_which_token_is_scored(folder: Path) -> None:
    # The answer slot holds the mask embedding for any P: with a dead encoder its state is the mask's.
    for layout in ("prefix", "mask_first"):
        backbone = FrozenBackbone(str(folder), layout=layout)
        seen: list[Tensor] = []
        body = backbone.model.get_submodule(backbone.family.body)
        handle = body.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        mask = backbone.embedding_weight[backbone.tokenizer.mask_token_id]
        for length in (1, 4, 9):
            backbone(torch.zeros(length, backbone.hidden_size), ragged_batch(backbone), words(backbone))
            index = backbone.layout.answer_index(length)
            assert torch.equal(seen[-1][:, index], mask.expand(2, -1))
        handle.remove()


def test_weights_have_no_gradient_and_stay_in_eval(folder: Path) -> None:
    backbone = FrozenBackbone(str(folder))
    backbone.train()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    assert any(module.training for module in FrozenBackbone(str(folder), dropout=True).train().modules())


def test_head_embedding_scores_with_word_embeddings(folder: Path) -> None:
    backbone = FrozenBackbone(str(folder), head="embedding")
    batch, prompt, token_ids = ragged_batch(backbone), random_prompt(backbone), words(backbone)
    states = backbone.answer_states(prompt, batch)
    torch.testing.assert_close(backbone(prompt, batch, token_ids), states @ backbone.embedding_weight[token_ids].T)


def test_checkpoint_without_lm_head_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "headless")
    tensors = load_file(tmp_path / "headless" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("lm_head", "cls"))}
    save_file(kept, tmp_path / "headless" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"(lm_head|cls)\..*--model.head embedding"):
        FrozenBackbone(str(tmp_path / "headless"))
    assert FrozenBackbone(str(tmp_path / "headless"), head="embedding").hidden_size > 0


def test_fingerprint_follows_weights_and_vocabulary_not_folder_or_dtype(folder: Path, tmp_path: Path) -> None:
    original = FrozenBackbone(str(folder)).fingerprint
    assert FrozenBackbone(str(folder), dtype="bfloat16").fingerprint == original
    shutil.copytree(folder, tmp_path / "copy")
    assert FrozenBackbone(str(tmp_path / "copy")).fingerprint == original
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name] = tensors[name] + 0.5
    save_file(tensors, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    assert FrozenBackbone(str(tmp_path / "copy")).fingerprint != original


def test_unknown_things_are_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown layout 'suffix': choose one of mask_first, prefix"):
        FrozenBackbone(str(folder), layout="suffix")
    with pytest.raises(UserError, match="unknown attention mode"):
        FrozenBackbone(str(folder), attention="sparse")
    with pytest.raises(UserError, match=r"no config\.json"):
        FrozenBackbone(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        FrozenBackbone("./nowhere")
    with pytest.raises(
        UserError, match=r"unknown backbone 'nobody/nothing'.*hub is unreachable .* Use --model.backbone DIR"
    ):
        FrozenBackbone("nobody/nothing")
    shutil.copytree(folder, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    other = json.dumps({**config, "model_type": "vit", "architectures": ["ViTModel"]})
    (tmp_path / "other" / "config.json").write_text(other)
    with pytest.raises(
        UserError, match="has the model type 'vit', for which transformers has no class with an LM head"
    ):
        FrozenBackbone(str(tmp_path / "other"))


def test_damaged_weights_are_a_user_error(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load the backbone"):
        FrozenBackbone(str(tmp_path / "cut"))


def test_prompt_too_long_names_the_numbers(folder: Path) -> None:
    encoder = FrozenBackbone(str(folder)).encoder(1000)
    with pytest.raises(
        UserError, match=r"prompt of 1000 tokens is too long: .* take 1001 of the backbone's \d+ positions"
    ):
        encoder.text_budget()


def test_text_features_are_the_mean_of_the_models_own_states(folder: Path) -> None:
    backbone = FrozenBackbone(str(folder), layout="mask_first")
    batch = ragged_batch(backbone)
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    body = model.bert if model.config.model_type == "bert" else model.roberta
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        states = body(ids[mask.bool()][None]).last_hidden_state[0]
        torch.testing.assert_close(backbone.text_features(batch)[row], states.mean(dim=0), atol=1e-5, rtol=0)


def test_a_configuration_object_equals_keyword_arguments(folder: Path) -> None:
    options = {"layout": "mask_first", "attention": "shared", "dtype": "bfloat16", "head": "embedding", "dropout": True}
    config = BackboneConfig(str(folder), **options)  # type: ignore[arg-type]
    one, other = FrozenBackbone(config), FrozenBackbone(str(folder), **options)
    changed = FrozenBackbone(config, attention="full")
    for backbone in (one, other, changed):
        assert (backbone.id, backbone.layout.name, backbone.dtype_name) == (str(folder), "mask_first", "bfloat16")
        assert (backbone.head, backbone.dropout, backbone.training) == ("embedding", True, True)
        assert backbone.attention == ("full" if backbone is changed else "shared")
    with pytest.raises(TypeError, match="atention"):
        FrozenBackbone(str(folder), atention="shared")
