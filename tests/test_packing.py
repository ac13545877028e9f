"""Packed batches of causal models: the same function as padded ones, for every family that is packed."""

from __future__ import annotations

from typing import Any

import pytest
import test_deep_backbones
import test_families
import torch
from test_families import Tiny, collated, random_prompt, text_rows, words
from torch import Tensor, nn

from prompt_transfer.backbones import packing
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.fused_layers import FusedAttention, FusedMLP
from prompt_transfer.backbones.kernels import frozen_linear, gated_mlp
from prompt_transfer.backbones.options import option_log_probs
from prompt_transfer.backbones.stack import Stack

needs_kernel = pytest.mark.skipif(not frozen_linear.has_kernel(), reason="this processor or this torch has no kernel")
pytestmark = needs_kernel
# Without sliding windows in the tiny models.
FUSED = ("llama", "granite", "gemma")
PACKED = (*FUSED, "gpt2", "opt", "gpt_neox", "olmo2", "qwen3", "smollm3")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Pack float32 too, which allows exact comparisons, and count the uses of each path."""
    counts = dict.fromkeys(("packed", "attention", "recorded", "mlp"), 0)
    monkeypatch.setattr(frozen_linear, "DTYPE", torch.float32)

    def counted(owner: Any, name: str, key: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[key] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(Stack, "run_packed", "packed")
    counted(packing, "packed_attention", "attention")
    counted(packing, "recorded_attention", "recorded")
    counted(gated_mlp._SwiGLU, "apply", "mlp")
    return counts


def both_ways(backbone: FrozenBackbone, *args: Any, call: Any = None) -> list[Tensor]:
    """Return the output packed, and padded."""
    call = call or backbone
    packed = call(*args)
    stack = backbone._answers.stack
    stack.packs = lambda x: False  # type: ignore[method-assign]
    padded = call(*args)
    del stack.packs  # type: ignore[method-assign]
    return [packed, padded]


@pytest.mark.parametrize("family", PACKED)
def test_logits_and_gradients_equal_a_plain_forward(tiny: Tiny, family: str, used: dict[str, int]) -> None:
    test_families.test_logits_and_gradients_equal_a_plain_forward(tiny, family, "full")
    assert used["packed"] == 1
    assert bool(used["attention"]) == (family in FUSED)
    assert bool(used["mlp"]) == (family in ("llama", "granite", "olmo2", "qwen3", "smollm3"))


@pytest.mark.parametrize("family", PACKED)
def test_several_prompts_in_any_order(tiny: Tiny, family: str, used: dict[str, int]) -> None:
    test_families.test_several_prompts_in_a_batch_equal_one_after_the_other(tiny, family, "full")
    test_families.test_padding_and_company_do_not_change_logits(tiny, family)
    assert used["packed"] > 3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prompts_with_equally_many_texts(tiny: Tiny, family: str, used: dict[str, int]) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    batch, token_ids = collated(backbone, text_rows(backbone)), words(backbone)
    prompts = torch.stack([random_prompt(backbone, seed) for seed in range(2)]).requires_grad_()
    texts = torch.arange(3).repeat(2)
    several = {**batch, "text_ids": texts, "prompt_ids": torch.arange(2).repeat_interleave(3)}
    packed, padded = both_ways(backbone, prompts, several, token_ids)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(logits.square().sum(), prompts)[0] for logits in (packed, padded)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    assert bool(used["attention"]) == (family == "llama")


@pytest.mark.parametrize("family", PACKED)
def test_recorded_prompts_no_prompt_and_options(tiny: Tiny, family: str, used: dict[str, int]) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    batch, token_ids = collated(backbone, text_rows(backbone)), words(backbone)
    prompts = torch.stack([random_prompt(backbone, seed) for seed in range(2)])
    bank, ids = backbone.record(prompts), torch.tensor([1, 0, 1])
    with torch.inference_mode():
        packed, padded = both_ways(backbone, bank, {**batch, "prompt_ids": ids}, token_ids)
        torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            packed, backbone(prompts, {**batch, "prompt_ids": ids}, token_ids), atol=1e-5, rtol=0
        )
        texts, groups = torch.arange(3).repeat(2), torch.tensor([1, 1, 1, 0, 0, 0])
        several = {**batch, "text_ids": texts, "prompt_ids": groups}
        torch.testing.assert_close(*both_ways(backbone, bank, several, token_ids), atol=1e-5, rtol=0)
        one = backbone.record(prompts[:1])
        torch.testing.assert_close(*both_ways(backbone, one, batch, token_ids), atol=1e-5, rtol=0)
        none = torch.empty(0, backbone.hidden_size)
        torch.testing.assert_close(*both_ways(backbone, none, batch, token_ids), atol=1e-5, rtol=0)
        targets = {**batch, "target_ids": torch.tensor([[40, 50, -100], [60, -100, -100], [70, 80, 90]])}
        for prompt in (prompts[0], one):
            scores = both_ways(backbone, backbone, prompt, targets, call=option_log_probs)
            torch.testing.assert_close(*scores, atol=1e-4, rtol=0)
    assert used["packed"] == 7
    assert bool(used["recorded"]) == (family in FUSED)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_checkpointing_and_deep_prompts(tiny: Tiny, family: str, used: dict[str, int]) -> None:
    backbone = FrozenBackbone(str(tiny(family)), gradient_checkpointing=True)
    batch, token_ids = collated(backbone, text_rows(backbone)), words(backbone)
    deep = torch.randn(backbone.keys_values_shape(3), generator=torch.Generator().manual_seed(0))
    for prompt in (random_prompt(backbone).requires_grad_(), deep.requires_grad_()):
        packed, padded = both_ways(backbone, prompt, batch, token_ids)
        torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0)
        gradients = [torch.autograd.grad(logits.square().sum(), prompt)[0] for logits in (packed, padded)]
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    assert used["packed"] == 2


def test_sliding_windows_hooks_and_other_dtypes_are_not_packed(tiny: Tiny, used: dict[str, int]) -> None:
    for family in ("mistral", "gemma3_text"):
        backbone = FrozenBackbone(str(tiny(family)))
        assert not backbone._answers.stack.packs(torch.zeros(1, 2, 8))
    backbone = FrozenBackbone(str(tiny("llama")))
    packs = backbone._answers.stack.packs
    assert packs(torch.zeros(1, 2, 8))
    assert not packs(torch.zeros(1, 2, 8, dtype=torch.bfloat16))
    handle = backbone.ffn_sites()[0].register_forward_hook(lambda *args: None)
    assert not packs(torch.zeros(1, 2, 8))
    handle.remove()
    with torch.autocast("cpu", torch.bfloat16):
        assert not packs(torch.zeros(1, 2, 8))
    assert packs(torch.zeros(1, 2, 8))


def test_adapters_and_hooks_inside_are_called(tiny: Tiny, used: dict[str, int]) -> None:
    backbone = FrozenBackbone(str(tiny("llama")))
    batch, prompt, token_ids = collated(backbone, text_rows(backbone)), random_prompt(backbone), words(backbone)
    layer: Any = backbone.model.model.layers[0]
    assert isinstance(layer.self_attn.forward, FusedAttention)
    assert isinstance(layer.mlp.forward, FusedMLP)

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    before = backbone(prompt, batch, token_ids)
    for part, name in ((layer.self_attn, "v_proj"), (layer.mlp, "down_proj"), (layer.mlp, "up_proj")):
        own = getattr(part, name)
        other = Doubled(own.in_features, own.out_features, bias=False)
        other.weight = own.weight
        setattr(part, name, other)
        doubled = backbone(prompt, batch, token_ids)
        setattr(part, name, own)
        own.weight.mul_(2)
        torch.testing.assert_close(backbone(prompt, batch, token_ids), doubled, atol=1e-5, rtol=0)
        own.weight.div_(2)
        # A plain layer in its place.
        zero = nn.Linear(own.in_features, own.out_features, bias=False).requires_grad_(False)
        zero.weight.zero_()
        setattr(part, name, zero)
        without = backbone(prompt, batch, token_ids)
        setattr(part, name, own)
        assert not torch.allclose(without, before, atol=1e-3)
    torch.testing.assert_close(backbone(prompt, batch, token_ids), before, atol=1e-5, rtol=0)


def test_one_example_of_nan_stays_alone(tiny: Tiny, used: dict[str, int]) -> None:
    backbone = FrozenBackbone(str(tiny("llama")))
    batch, token_ids = collated(backbone, text_rows(backbone)), words(backbone)
    prompts = torch.stack([random_prompt(backbone), torch.full((5, backbone.hidden_size), torch.nan)])
    for ids in ([0, 1, 0], [1, 0, 1]):
        logits = backbone(prompts, {**batch, "prompt_ids": torch.tensor(ids)}, token_ids)
        assert logits.isfinite().all(dim=1).tolist() == [number == 0 for number in ids]


def test_bf16_is_packed_without_being_told(tiny: Tiny) -> None:
    half, whole = (FrozenBackbone(str(tiny("llama")), dtype=dtype) for dtype in ("bfloat16", "float32"))
    batch, token_ids = collated(half, text_rows(half)), words(half)
    prompt = random_prompt(half).requires_grad_()
    assert half._answers.stack.packs(torch.zeros(1, 2, 8, dtype=torch.bfloat16))
    found = [backbone(prompt, batch, token_ids) for backbone in (half, whole)]
    torch.testing.assert_close(*found, atol=0.1, rtol=0)
    gradients = [torch.autograd.grad(logits.square().sum(), prompt)[0] for logits in found]
    assert torch.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.99


def test_deep_prompts_in_batches_and_banks(tiny: Tiny, used: dict[str, int]) -> None:
    test_deep_backbones.test_batch_composition_padding_and_banks_change_nothing(tiny, "llama")
    assert used["packed"]
