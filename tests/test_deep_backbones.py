"""Deep prompts on all families: against PEFT's prefix tuning, and plain forwards with replaced keys and values."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_families import P, Tiny, collated, plain_model, random_prompt, text_rows, words
from tiny_models import CAUSAL, MASKED, PLAIN, SEQ2SEQ
from torch import Tensor

from prompt_transfer.backbones.deep import from_vectors, to_vectors
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.utils.errors import UserError

RECORDED = [family for family in CAUSAL if family not in PLAIN]
ENCODERS = [family for family in MASKED if family not in PLAIN]
# The families whose keys and values are the outputs of linear layers, for `by_hand`.
LINEAR = [family for family in ENCODERS if family != "modernbert"]


def random_deep(backbone: FrozenBackbone, seed: int = 0, length: int = P) -> Tensor:
    shape = backbone.keys_values_shape(length)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prefix_tuning(folder: Path, prompt: Tensor) -> Any:
    """Return PEFT's prefix tuning with the numbers of a deep prompt [L, 2, P, K, D]."""
    peft = pytest.importorskip("peft")
    layers, _, length, heads, width = prompt.shape
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    made = peft.get_peft_model(model, config).eval()
    assert (config.num_layers, config.num_attention_heads, config.token_dim) == (layers, heads, heads * width)
    made.prompt_encoder["default"].embedding.weight.data.copy_(to_vectors(prompt))
    return made


@pytest.mark.parametrize("family", RECORDED)
def test_logits_and_gradient_equal_prefix_tuning_of_peft(tiny: Tiny, family: str) -> None:
    """For rotary positions, norms of keys, sliding windows and grouped heads too; our batch is padded."""
    backbone = FrozenBackbone(str(tiny(family)))
    rows, token_ids = text_rows(backbone), words(backbone)
    prompt = random_deep(backbone).requires_grad_()
    found = backbone(prompt, collated(backbone, rows), token_ids)
    found.square().sum().backward()
    assert prompt.grad is not None

    peft_model = prefix_tuning(tiny(family), prompt.detach())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.stack(
            [peft_model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row))).logits[0, -1, token_ids]
             for row in rows]
        )  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    expected.square().sum().backward()
    gradient = from_vectors(peft_model.prompt_encoder["default"].embedding.weight.grad, prompt.shape)
    torch.testing.assert_close(prompt.grad, gradient, atol=1e-5 * gradient.abs().max().item(), rtol=1e-4)
    reached = gradient.abs().amax(dim=(1, 2, 3, 4)) > 0
    # In the last layer the answer slot is beyond the window of these models.
    assert reached.all() or family in ("qwen2", "mistral", "phi3", "gemma3_text")
    assert reached.any()


def by_hand(folder: Path, backbone: FrozenBackbone, prompt: Tensor, row: list[int]) -> Tensor:
    """Compute the logits [V] of one example: P unused tokens in front, whose keys and values are replaced."""
    kind = backbone.family.kind
    model = plain_model(folder, kind)
    embed, config = model.get_input_embeddings(), model.config
    ids = row if kind == "seq2seq_lm" else [backbone.tokenizer.mask_token_id, *row]
    x = torch.cat([torch.zeros(P, embed.weight.shape[1]), embed(torch.tensor(ids))])[None]
    names = {"seq2seq_lm": ("SelfAttention.k", "SelfAttention.v")}.get(kind, ("key", "value"))
    names = ("k_lin", "v_lin") if config.model_type == "distilbert" else names
    body = model.encoder if kind == "seq2seq_lm" else model
    handles = []
    for which, name in enumerate(names):
        values, calls = to_replace(prompt[:, which]), []

        def replace(module: Any, args: Any, output: Tensor, values: Any = values, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return torch.cat([values[len(calls) - 1][None], output[:, P:]], dim=1)

        for path, module in body.named_modules():
            if path.endswith(f".{name}"):
                handles.append(module.register_forward_hook(replace))
    try:
        if kind == "seq2seq_lm":
            encoded = model.encoder(inputs_embeds=x).last_hidden_state[:, P:]
            start = torch.tensor([[config.decoder_start_token_id]])
            return model(encoder_outputs=(encoded,), decoder_input_ids=start).logits[0, 0]
        table = model.base_model.embeddings
        fairseq = config.model_type in ("roberta", "xlm-roberta", "camembert")
        first = config.pad_token_id + 1 if fairseq else 0
        # The answer slot has no position and token type.
        added = table.position_embeddings.weight[first]
        if hasattr(table, "token_type_embeddings") and not fairseq:
            added = added + table.token_type_embeddings.weight[0]
        x[0, P] -= added
        positions = torch.cat([torch.full((P + 1,), first), torch.arange(first, first + len(row))])[None]
        return model(inputs_embeds=x, position_ids=positions).logits[0, P]
    finally:
        for handle in handles:
            handle.remove()


def to_replace(states: Tensor) -> Tensor:
    """Return keys or values [L, P, K, D] as outputs of linear layers, [L, P, K * D]."""
    return states.flatten(2)


@pytest.mark.parametrize("family", [*LINEAR, *SEQ2SEQ])
def test_encoders_equal_a_plain_forward_with_replaced_keys_and_values(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    rows, token_ids, prompt = text_rows(backbone), words(backbone), random_deep(backbone)
    found = backbone(prompt, collated(backbone, rows), token_ids)
    expected = torch.stack([by_hand(tiny(family), backbone, prompt, row)[token_ids] for row in rows])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (backbone(random_deep(backbone, 1), collated(backbone, rows), token_ids) - found).abs().max() > 1e-3


@pytest.mark.parametrize("family", [*ENCODERS, *RECORDED])
def test_recorded_keys_and_values_are_the_shared_prompt(tiny: Tiny, family: str) -> None:
    """The keys and values of a prompt that sees only itself, used as a deep prompt, are the same function."""
    backbone = FrozenBackbone(str(tiny(family)), attention="shared")
    embeddings, batch = random_prompt(backbone), collated(backbone, text_rows(backbone))
    deep = backbone.keys_values(embeddings)
    assert deep.dtype == torch.float32
    assert tuple(deep.shape) == backbone.keys_values_shape(P)
    found, expected = (backbone(prompt, batch, words(backbone)) for prompt in (deep, embeddings))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_shape_has_key_value_heads(tiny: Tiny) -> None:
    assert FrozenBackbone(str(tiny("llama"))).keys_values_shape(7) == (2, 2, 7, 2, 8)  # 4 query heads
    assert FrozenBackbone(str(tiny("gemma3_text"))).keys_values_shape(1) == (3, 2, 1, 2, 8)
    assert FrozenBackbone(str(tiny("albert"))).keys_values_shape(1) == (2, 2, 1, 4, 8)  # one layer, called twice
    assert FrozenBackbone(str(tiny("mt5"))).keys_values_shape(1) == (2, 2, 1, 6, 8)  # wider than H


@pytest.mark.parametrize("family", [*ENCODERS, *RECORDED, *SEQ2SEQ])
def test_batch_composition_padding_and_banks_change_nothing(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    rows, token_ids, prompt = text_rows(backbone), words(backbone), random_deep(backbone)
    together = backbone(prompt, collated(backbone, rows), token_ids)
    for number, row in enumerate(rows):
        alone = backbone(prompt, collated(backbone, [row], width=len(row) + 3), token_ids)[0]
        torch.testing.assert_close(together[number], alone, atol=1e-5, rtol=0)
    prompts = torch.stack([random_deep(backbone, seed) for seed in range(2)])
    batch = collated(backbone, rows[:2]) | {
        "text_ids": torch.tensor([0, 1, 0, 1]),
        "prompt_ids": torch.tensor([0, 0, 1, 1]),
    }
    for each in (prompts, backbone.record(prompts)):
        found = backbone(each, batch, token_ids)
        expected = torch.cat([backbone(one, collated(backbone, rows[:2]), token_ids) for one in prompts])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "num_beams"),
    [(family, 1) for family in (*RECORDED, "t5")] + [("llama", 2), ("gemma3_text", 2), ("t5", 2)],
)
def test_generated_tokens_are_the_most_likely_ones(tiny: Tiny, family: str, num_beams: int) -> None:
    """Ragged texts, two prompts; greedy tokens equal those chosen one by one from the log-probabilities."""
    backbone = FrozenBackbone(str(tiny(family)))
    backbone.model.generation_config.eos_token_id = None
    rows = text_rows(backbone)
    prompts = torch.stack([random_deep(backbone, seed) for seed in range(2)])
    batch = collated(backbone, rows) | {"prompt_ids": torch.tensor([0, 1, 0])}
    written = backbone.generate(prompts, batch, max_new_tokens=4, num_beams=num_beams)
    assert written.shape == (3, 4)
    for number, row in enumerate(rows):
        alone = collated(backbone, [row])
        own = prompts[batch["prompt_ids"][number]]
        assert torch.equal(backbone.generate(own, alone, max_new_tokens=4, num_beams=num_beams)[0], written[number])
        if num_beams == 1:
            chosen: list[int] = []
            for _ in range(4):
                target = torch.tensor([[*chosen, 0]])
                states = backbone._answers.target_states(backbone._prompts(own, alone), alone | {"target_ids": target})
                chosen.append(int(backbone._logits(states[0, -1]).argmax()))
            assert written[number].tolist() == chosen


@pytest.mark.parametrize("family", ["roberta", "gpt2", "gemma3_text", "t5"])
def test_recomputed_layers_and_bf16(tiny: Tiny, family: str) -> None:
    """Gradient checkpointing changes nothing; bf16 weights and bf16 autocast stay near float32."""
    found = []
    for options in ({}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}, {}):
        backbone = FrozenBackbone(str(tiny(family)), **options)
        prompt = (random_deep(backbone, length=60) * 0.5).requires_grad_()  # long enough for the shared kernel
        rows = [row[:9] for row in text_rows(backbone)]
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=len(found) == 3)
        if family in ("roberta", "gpt2"):
            prompt = (random_deep(backbone, length=48) * 0.5).requires_grad_()
        with autocast:
            logits = backbone(prompt, collated(backbone, rows), words(backbone))
        logits.square().sum().backward()
        assert prompt.grad is not None
        assert prompt.grad.dtype == torch.float32
        found.append((logits.detach(), prompt.grad))
    for first, second, tolerance in ((found[0], found[1], 1e-6), (found[0], found[2], 0.1), (found[0], found[3], 0.1)):
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, atol=tolerance * one.abs().max().item(), rtol=0)


@pytest.mark.parametrize("family", ["bloom", "gpt_neo", "gemma2", "mpnet", "deberta-v2"])
def test_families_without_a_recorded_path_are_refused(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    with pytest.raises(UserError, match=r"use --model\.method prompt"):
        backbone.keys_values_shape(P)
    with pytest.raises(UserError, match=r"use --model\.method prompt"):
        backbone(torch.zeros(2, 2, P, 4, 8), collated(backbone, text_rows(backbone)), words(backbone))


def test_another_shape_is_refused(tiny: Tiny) -> None:
    backbone = FrozenBackbone(str(tiny("llama")))
    with pytest.raises(UserError, match=r"\(2, 2, 5, 4, 8\), but .* needs \(2, 2, 5, 2, 8\)"):
        backbone(torch.zeros(2, 2, P, 4, 8), collated(backbone, text_rows(backbone)), words(backbone))


def test_vectors_are_those_of_peft() -> None:
    """A prompt token's vector holds layer by layer its keys, then its values, head by head."""
    prompt = torch.arange(2 * 2 * 3 * 2 * 2).float().view(2, 2, 3, 2, 2)
    vectors = to_vectors(prompt)
    assert vectors.shape == (3, 16)
    assert torch.equal(vectors[1].view(4, 2, 2)[2], prompt[1, 0, 1])
    assert torch.equal(from_vectors(vectors, prompt.shape), prompt)
