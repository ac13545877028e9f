"""Families without an entry in the table: the library's logits and gradients, or an error naming the failed check."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_families import P, collated, plain_model, random_prompt, text_rows, words
from tiny_models import byte_level_tokenizer, unigram_tokenizer
from torch import Tensor, nn

from prompt_transfer.backbones.families import FAMILIES
from prompt_transfer.backbones.family import AUTO_CLASSES
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.generic import find_ffn, kind_of
from prompt_transfer.neurons.capture import NeuronCapture
from prompt_transfer.prompts.initializers import embedding_rows
from prompt_transfer.utils.errors import UserError

_LLAMA = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48, "initializer_range": 0.2}
_BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 66, "initializer_range": 0.2, "type_vocab_size": 2,
}  # fmt: skip
_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "init_std": 0.2,
    "decoder_start_token_id": 1, "scale_embedding": True,
}  # fmt: skip
_XGLM = {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "init_std": 0.2}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}

CAUSAL: dict[str, dict[str, Any]] = {
    "biogpt": {**_BERT},
    "codegen": {**_GPT, "rotary_dim": 4},
    "cohere": {**_LLAMA, "logit_scale": 0.3},
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "dff": 48, "initializer_range": 0.2},
    "exaone4": {**_LLAMA, "sliding_window": 4, "sliding_window_pattern": 2},
    "glm": {**_LLAMA, "head_dim": 8, "pad_token_id": 0},
    "gpt_bigcode": _GPT,
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.2},
    "mixtral": {**_LLAMA, "num_local_experts": 4},
    "nemotron": _LLAMA,
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48},
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA,
    "xglm": {**_XGLM, "max_position_embeddings": 64},
}
MASKED: dict[str, dict[str, Any]] = {
    "big_bird": {**_BERT, "attention_type": "original_full"},
    "ernie": _BERT,
    "longformer": {**_BERT, "attention_window": [4, 4]},
    "rembert": {**_BERT, "input_embedding_size": 24, "output_embedding_size": 40},
    "roformer": _BERT,
    "squeezebert": {**_BERT, "embedding_size": 32},
}
SEQ2SEQ: dict[str, dict[str, Any]] = {
    "bart": _BART,
    "bigbird_pegasus": {**_BART, "attention_type": "original_full"},
    "mbart": _BART,
    "pegasus": _BART,
    "umt5": _T5,
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    # Its Fourier transform mixes texts with their padding.
    "fnet": ("masked_lm", _BERT, "padding and batch composition do not change logits"),
    # So do the convolutions of its heads.
    "convbert": (
        "masked_lm",
        {**_BERT, "embedding_size": 24, "conv_kernel_size": 3, "head_ratio": 2},
        "padding and batch composition do not change logits",
    ),
    # It scales by the share of mask tokens, counted in the token ids.
    "esm": ("masked_lm", {**_BERT, "mask_token_id": 4}, "logits from embeddings equal those from token ids"),
    # Without a permutation every token sees all others.
    "xlnet": (
        "causal_lm",
        {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "initializer_range": 0.2},
        "no token sees later tokens",
    ),
}
KINDS = {
    **dict.fromkeys(CAUSAL, "causal_lm"),
    **dict.fromkeys(MASKED, "masked_lm"),
    **dict.fromkeys(SEQ2SEQ, "seq2seq_lm"),
}
Saved = Callable[..., Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Save a tiny random model of a family and return its folder."""

    @functools.lru_cache
    def save(family: str) -> Path:
        every = {**CAUSAL, **MASKED, **SEQ2SEQ}
        kind, facts = REFUSED[family][:2] if family in REFUSED else (KINDS[family], every[family])
        if kind == "seq2seq_lm":
            tokenizer, ends = unigram_tokenizer(), {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 0}
        elif kind == "masked_lm":
            tokenizer, ends = byte_level_tokenizer("roberta"), {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
        else:
            tokenizer, ends = byte_level_tokenizer("gpt2"), {"bos_token_id": 0, "eos_token_id": 0}
        config = transformers.AutoConfig.for_model(family, **{"vocab_size": len(tokenizer), **ends, **facts})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, AUTO_CLASSES[kind]).from_config(config)
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.data += 0.1 * torch.randn_like(parameter)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def by_library(model: Any, backbone: FrozenBackbone, prompt: Tensor, row: list[int]) -> Tensor:
    """Compute the logits [V] at the answer slot of one example with the library's forward on embeddings."""
    kind = backbone.family.kind
    ids = [backbone.tokenizer.mask_token_id, *row] if kind == "masked_lm" else row
    scale = 32**0.5 if backbone.family.name == "pegasus" else 1
    x = torch.cat([prompt, model.get_input_embeddings()(torch.tensor(ids)) * scale])[None]
    if kind == "seq2seq_lm":
        start = torch.tensor([[model.config.decoder_start_token_id]])
        return model(inputs_embeds=x, decoder_input_ids=start).logits[0, 0]
    if kind == "masked_lm":
        return model(inputs_embeds=x).logits[0, P]
    return model(inputs_embeds=x, use_cache=False).logits[0, -1]


@pytest.mark.parametrize("family", sorted(KINDS))
def test_logits_and_gradients_are_the_librarys_own(saved: Saved, family: str) -> None:
    assert family not in FAMILIES
    backbone = FrozenBackbone(str(saved(family)))
    assert (backbone.family.kind, backbone.family.has_row) == (KINDS[family], False)
    model = plain_model(saved(family), KINDS[family])
    rows, token_ids = text_rows(backbone), words(backbone)
    prompt = random_prompt(backbone).requires_grad_()
    logits = backbone(prompt, collated(backbone, rows), token_ids)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * weights).sum().backward()
    slow = prompt.detach().clone().requires_grad_()
    for index, row in enumerate(rows):
        expected = by_library(model, backbone, slow, row)[token_ids]
        torch.testing.assert_close(logits[index], expected, atol=1e-5, rtol=1e-5)
        (expected * weights[index]).sum().backward()
    assert prompt.grad is not None
    assert slow.grad is not None
    torch.testing.assert_close(prompt.grad, slow.grad, atol=1e-5, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("family", ["biogpt", "pegasus", "rembert"])
def test_a_prompt_of_words_is_the_words(saved: Saved, family: str) -> None:
    """Also for models that scale embeddings in the embedding module (BioGPT) or at lookup (Pegasus)."""
    backbone = FrozenBackbone(str(saved(family)))
    model, row = plain_model(saved(family), KINDS[family]), text_rows(backbone)[1]
    chosen = words(backbone).tolist()
    found = backbone(embedding_rows(backbone, chosen), collated(backbone, [row]), words(backbone))[0]
    if KINDS[family] == "seq2seq_lm":
        logits = model(input_ids=torch.tensor([chosen + row]), decoder_input_ids=torch.tensor([[1]])).logits[0, 0]
    elif KINDS[family] == "causal_lm":
        logits = model(torch.tensor([chosen + row])).logits[0, -1]
    else:
        logits = model(torch.tensor([[*chosen, backbone.tokenizer.mask_token_id, *row]])).logits[0, len(chosen)]
    torch.testing.assert_close(found, logits[words(backbone)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["stablelm", "mamba", "bart", "pegasus", "mbart"])
def test_texts_are_scored_and_written_as_step_by_step(saved: Saved, family: str) -> None:
    backbone = FrozenBackbone(str(saved(family)))
    model = plain_model(saved(family), KINDS[family])
    rows, prompts = text_rows(backbone), torch.stack([random_prompt(backbone, seed) for seed in range(2)])
    batch = {**collated(backbone, rows), "prompt_ids": torch.tensor([1, 0, 1])}
    # Remove forced first and last tokens (BART).
    for settings in (backbone.model.generation_config, model.generation_config):
        settings.forced_bos_token_id = settings.forced_eos_token_id = None
    written = backbone.generate(prompts, batch, max_new_tokens=3)
    targets = written.masked_fill(written == backbone.encoder(P).pad_token_id, -100)
    found = backbone.target_log_probs(prompts, {**batch, "target_ids": targets})
    for index, row in enumerate(rows):
        prompt, ids, total = prompts[[1, 0, 1][index]], [], []
        for token in targets[index][targets[index] >= 0].tolist():
            x = torch.cat([prompt, backbone._answers.embed(torch.tensor(row)).detach()])[None]
            if KINDS[family] == "causal_lm":
                x = torch.cat([x, model.get_input_embeddings()(torch.tensor([ids], dtype=torch.long))], dim=1)
                logits = model(inputs_embeds=x).logits[0, -1]
            else:
                start = [model.config.decoder_start_token_id, *ids]
                logits = model(inputs_embeds=x, decoder_input_ids=torch.tensor([start])).logits[0, -1]
            assert int(logits.argmax()) == token
            ids.append(token)
            total.append(logits.log_softmax(dim=0)[token])
        torch.testing.assert_close(found[index, : len(total)], torch.stack(total), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_what_prompts_cannot_use_is_refused_by_the_check_that_fails(saved: Saved, family: str) -> None:
    with pytest.raises(UserError, match=f"of the family {family}, which has no row.*{REFUSED[family][2]}"):
        FrozenBackbone(str(saved(family)))


@pytest.mark.parametrize("family", ["big_bird", "bigbird_pegasus"])
def test_attention_that_switches_with_a_texts_length_is_refused(saved: Saved, tmp_path: Path, family: str) -> None:
    shutil.copytree(saved(family), tmp_path, dirs_exist_ok=True)
    facts = json.loads((tmp_path / "config.json").read_text())
    assert FrozenBackbone(str(tmp_path)).family.name == family
    # Blocks of 64 switch during the proof; blocks of 1 would only switch for shorter texts.
    for changed in ({}, {"attention_type": "block_sparse"}, {"attention_type": "block_sparse", "block_size": 1}):
        facts.pop("attention_type", None)
        (tmp_path / "config.json").write_text(json.dumps({**facts, **changed}))
        with pytest.raises(
            UserError, match=r'switches its attention type .* "attention_type": "original_full"'
        ) as caught:
            FrozenBackbone(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_modes_that_need_a_row_are_refused(saved: Saved) -> None:
    with pytest.raises(UserError, match=r"does not support the attention mode 'shared': use --model\.attention full"):
        FrozenBackbone(str(saved("ernie")), attention="shared")
    with pytest.raises(UserError, match="choose one of prefix"):
        FrozenBackbone(str(saved("ernie")), layout="mask_first")
    shared, full = (FrozenBackbone(str(saved("stablelm")), attention=mode) for mode in ("shared", "full"))
    batch, prompt = collated(full, text_rows(full)), random_prompt(full)
    assert torch.equal(shared(prompt, batch, words(full)), full(prompt, batch, words(full)))
    mute = FrozenBackbone(str(saved("ctrl")))
    with pytest.raises(UserError, match="cannot generate from embeddings with a ctrl model"):
        mute.generate(random_prompt(mute), collated(mute, text_rows(mute)))


def test_kinds_follow_the_checkpoints_class() -> None:
    assert kind_of({"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}, "x") == "seq2seq_lm"
    assert kind_of({"model_type": "bart", "architectures": ["BartForCausalLM"]}, "x") == "causal_lm"
    assert kind_of({"model_type": "ernie"}, "x") == "masked_lm"
    assert kind_of({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Model"}}, "x") == "causal_lm"
    with pytest.raises(
        UserError, match="has the model type 'vit', for which transformers has no class with an LM head"
    ):
        kind_of({"model_type": "vit", "architectures": ["ViTModel"]}, "x")


# Neurons -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "site", "gated"),
    [
        ("stablelm", "model.layers.{i}.mlp.down_proj", True),
        ("glm", "model.layers.{i}.mlp.down_proj", True),
        ("gpt_bigcode", "transformer.h.{i}.mlp.c_proj", False),
        ("xglm", "model.layers.{i}.fc2", False),
        ("ernie", "ernie.encoder.layer.{i}.output.dense", False),
        ("bart", "model.decoder.layers.{i}.fc2", False),
        ("umt5", "decoder.block.{i}.layer.2.DenseReluDense.wo", True),
    ],
)
def test_neurons_are_found_by_structure(saved: Saved, family: str, site: str, gated: bool) -> None:
    backbone = FrozenBackbone(str(saved(family)))
    assert (backbone.family.ffn_site, backbone.is_gated, len(backbone.ffn_sites())) == (site, gated, 2)
    seen: list[Tensor] = []
    for module in backbone.ffn_sites():
        module.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    batch = collated(backbone, text_rows(backbone))
    with NeuronCapture(backbone) as capture:
        backbone(random_prompt(backbone), batch, words(backbone))
    places = {
        "causal_lm": P + batch["attention_mask"].sum(dim=1) - 1,
        "masked_lm": torch.full((3,), P),
        "seq2seq_lm": torch.zeros(3, dtype=torch.long),
    }[backbone.family.kind]
    rows = [values.view(3, -1, 48)[torch.arange(3), places].mean(dim=0) for values in seen]
    found = capture.means()
    torch.testing.assert_close(found["activations"][0], torch.stack(rows), atol=1e-5, rtol=1e-4)
    assert set(found) == {"activations", "active", "before", *(["gate"] if gated else [])}


@pytest.mark.parametrize("family", ["mixtral", "mamba", "squeezebert"])
def test_ambiguous_neurons_ask_for_the_module(saved: Saved, family: str) -> None:
    backbone = FrozenBackbone(str(saved(family)))
    with pytest.raises(
        UserError,
        match=r"cannot locate the FFN neurons of .*: pass the module of layer \{i\} "
        r".*ffn_site='model.layers.\{i\}.mlp.down_proj'",
    ):
        backbone.ffn_sites()


def test_neurons_where_the_user_says(saved: Saved) -> None:
    backbone = FrozenBackbone(str(saved("mamba")), ffn_site="backbone.layers.{i}.mixer.out_proj")
    with NeuronCapture(backbone) as capture:
        backbone(random_prompt(backbone), collated(backbone, text_rows(backbone)), words(backbone))
    assert set(capture.means()) == {"activations", "active"}
    assert capture.means()["activations"].shape == (1, 2, 64)
    for site in ("backbone.layers.{i}.mlp", "backbone.layers.0.mixer.out_proj"):
        with pytest.raises(UserError, match="is not a module of layer"):
            FrozenBackbone(str(saved("mamba")), ffn_site=site)


def test_a_bottleneck_round_a_network_is_not_its_neurons() -> None:
    layer = nn.ModuleDict({
        "intermediate": nn.Linear(16, 48), "output": nn.Linear(48, 16),
        "narrow": nn.Linear(32, 16), "wide": nn.Linear(16, 32),
    })  # fmt: skip
    assert find_ffn(nn.ModuleDict({"layers": nn.ModuleList([layer])}), 32)[0] == ""
    del layer["narrow"], layer["wide"]
    assert find_ffn(nn.ModuleDict({"layers": nn.ModuleList([layer])}), 16) == ("layers.{i}.output", None, False, 1)
