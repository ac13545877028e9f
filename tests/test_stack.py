"""Skipped work: unneeded masks and unread gradients; and weights of half the size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_families import CAUSAL, MODES, P, Tiny, collated, random_prompt, text_rows, words
from tiny_models import PLAIN
from torch import Tensor

from prompt_transfer.backbones import attention as attention_module
from prompt_transfer.backbones.frozen import FrozenBackbone


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record mask, query, key and position bias of each call of the attention function."""
    seen: list[dict[str, Any]] = []
    original = attention_module.sdpa_attention_forward

    def watched(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        seen.append({"mask": mask, "query": query, "key": key, "bias": kwargs.get("position_bias")})
        return original(module, query, key, value, mask, **kwargs)

    monkeypatch.setattr(attention_module, "sdpa_attention_forward", watched)
    return seen


def self_attention(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop a T5's cross-attention, which has no bias and has heads in the query dimension."""
    return [call for call in calls if call["key"].shape[1] > 1]


@pytest.mark.parametrize("attention", ["full", "shared"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "albert", "distilbert", "t5"])
def test_no_mask_where_nothing_is_padded(tiny: Tiny, family: str, attention: str, calls: list[dict[str, Any]]) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    row = text_rows(backbone)[0]
    backbone(random_prompt(backbone), collated(backbone, [row, row]), words(backbone))
    assert all(call["mask"] is None for call in calls)
    if family == "t5":
        # All layers and examples share one bias.
        assert {call["bias"].shape[0] for call in self_attention(calls)} == {1}
    calls.clear()
    backbone(random_prompt(backbone), collated(backbone, [row, row], width=len(row) + 1), words(backbone))
    seen = [call for call in self_attention(calls) if len(call["query"]) == 2]
    hidden = [call["bias"] if family == "t5" else call["mask"] for call in seen]
    assert any(mask is not None and mask.shape[0] == 2 for mask in hidden)


@pytest.mark.parametrize("family", sorted({*CAUSAL} - {*PLAIN}))
def test_padding_of_causal_models_needs_no_mask_of_its_own(
    tiny: Tiny, family: str, calls: list[dict[str, Any]]
) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    batch = collated(backbone, text_rows(backbone))
    backbone(random_prompt(backbone), batch, words(backbone))
    over_prompt, over_text = calls[0], next(call for call in calls if len(call["query"]) > 1)
    assert over_prompt["mask"] is None or backbone.family.sliding(backbone.config)
    length = batch["input_ids"].shape[1]
    assert over_text["mask"].shape == (1, 1, length, P + length)
    # The first text token sees the prompt and itself, as far as a window reaches, but no later token.
    near = min(backbone.family.sliding(backbone.config) or P + 1, P + 1)
    assert over_text["mask"][0, 0, 0].tolist() == [False] * (P + 1 - near) + [True] * near + [False] * (length - 1)


@pytest.mark.parametrize("family", ["roberta", "gpt2", "llama", "t5"])
def test_text_of_the_first_layer_gets_no_gradient_behind_a_computed_prompt(
    tiny: Tiny, family: str, calls: list[dict[str, Any]]
) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention="shared")
    prompt = random_prompt(backbone).requires_grad_()
    backbone(prompt, collated(backbone, text_rows(backbone)), words(backbone))
    first = next(call for call in calls if len(call["query"]) > 1)
    assert not first["query"].requires_grad
    # Only the prompt's keys have a gradient.
    assert first["key"].requires_grad
    leaves = {node for node, _ in first["key"].grad_fn.next_functions if node is not None}
    assert len(leaves) == 1


@pytest.mark.parametrize(("family", "attention"), MODES)
def test_bf16_weights_train_a_float32_prompt(tiny: Tiny, family: str, attention: str) -> None:
    exact, half = (
        FrozenBackbone(str(tiny(family)), attention=attention, dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    gradients = []
    for backbone in (exact, half):
        prompt = random_prompt(backbone).requires_grad_()
        logits = backbone(prompt, collated(backbone, text_rows(backbone)), words(backbone))
        assert logits.dtype == torch.float32
        logits.logsumexp(dim=1).sum().backward()
        assert prompt.grad is not None
        assert prompt.grad.dtype == torch.float32
        gradients.append(prompt.grad)
    # bf16 has about two digits, but the direction is the same.
    assert torch.nn.functional.cosine_similarity(*(gradient.flatten() for gradient in gradients), dim=0) > 0.9


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "modernbert"])
def test_rotary_frequencies_are_not_rounded(tiny: Tiny, family: str) -> None:
    # In bf16, position 500 would be off by up to a radian.
    exact, half = (FrozenBackbone(str(tiny(family)), dtype=dtype) for dtype in ("float32", "bfloat16"))
    found = {name: buffer for name, buffer in half.model.named_buffers() if name.endswith("inv_freq")}
    assert found
    assert all(torch.equal(buffer, exact.model.get_buffer(name)) for name, buffer in found.items())
