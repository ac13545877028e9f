"""Attention over a separate shared prefix, against attention over the concatenation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_families import ALL, Tiny, collated, random_prompt, text_rows, words
from test_matmul_attention import BIAS, HEADS, B, D, S, T, layer, padding
from tiny_models import PLAIN
from torch import Tensor

from prompt_transfer.backbones import attention
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.kernels.matmul_attention import matmul_attention
from prompt_transfer.backbones.kernels.shared_prefix_attention import is_worthwhile, shared_prefix_attention

P = S - T
MASKS: dict[str, tuple[int, Tensor | None, Tensor | None]] = {
    "plain": (1, None, None),
    "padded": (1, padding(), None),
    "causal": (1, torch.ones(S, S, dtype=torch.bool).tril()[None, None, P:], None),
    "numbers as mask": (1, torch.where(padding(), 0.0, torch.finfo(torch.float32).min), None),
    "biased": (1, None, BIAS),
    "biased and padded": (1, padding(), BIAS),
    "shared keys": (2, padding(), None),
}


def tensors(groups: int) -> list[Tensor]:
    """Return query, key and value of the text, and key and value of the prompt."""
    generator = torch.Generator().manual_seed(0)
    heads = HEADS // groups
    shapes = ((B, HEADS, T, D), (B, heads, T, D), (B, heads, T, D), (1, heads, P, D), (1, heads, P, D))
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("scaling", [None, 1.0])
@pytest.mark.parametrize("case", MASKS)
def test_it_is_the_attention_over_both(case: str, scaling: float | None) -> None:
    groups, mask, bias = MASKS[case]
    module = layer(groups=groups)
    query, key, value, first, second = given = tensors(groups)
    apart, _ = shared_prefix_attention(
        module, query, key, value, (first, second), mask, scaling=scaling, position_bias=bias
    )
    whole = [torch.cat([each.expand(B, -1, -1, -1), own], dim=2) for each, own in ((first, key), (second, value))]
    together, _ = matmul_attention(module, query, *whole, mask, scaling=scaling, is_causal=False, position_bias=bias)
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-6)
    assert apart.is_contiguous()
    shape = torch.linspace(-1, 1, apart.numel()).view_as(apart)
    gradients = [torch.autograd.grad((output * shape).sum(), given) for output in (apart, together)]
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_what_needs_no_gradient_gets_none() -> None:
    query, key, value, first, second = tensors(1)
    fixed = [each.detach() for each in (query, key, value)]
    output, _ = shared_prefix_attention(layer(), *fixed, (first, second), None)
    output.sum().backward()
    assert first.grad is not None
    assert all(each.grad is None for each in fixed)


def test_it_pays_for_a_long_prompt_before_short_texts() -> None:
    assert is_worthwhile(100, 14)
    assert not is_worthwhile(20, 14)
    assert not is_worthwhile(100, 80)


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["", "checkpointing"])
@pytest.mark.parametrize("family", sorted({*ALL} - {*PLAIN}))
def test_a_backbone_computes_the_same(
    tiny: Tiny, family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if options and family == "albert":
        pytest.skip("its layers cannot be computed again")
    backbone = FrozenBackbone(str(tiny(family)), attention="shared", **options)
    batch = collated(backbone, text_rows(backbone))
    used: list[int] = []

    def watched(*arguments: Any, **kwargs: Any) -> Any:
        used.append(1)
        return shared_prefix_attention(*arguments, **kwargs)

    monkeypatch.setattr(attention, "shared_prefix_attention", watched)
    found = []
    for answer in (True, False):
        monkeypatch.setattr(attention, "is_worthwhile", lambda *_, answer=answer: answer)
        prompt = random_prompt(backbone).requires_grad_()
        logits = backbone(prompt, batch, words(backbone))
        logits.logsumexp(dim=1).sum().backward()
        assert prompt.grad is not None
        found.append((logits, prompt.grad))
        # The same values without gradients.
        with torch.no_grad():
            torch.testing.assert_close(backbone(prompt, batch, words(backbone)), logits, rtol=0, atol=1e-5)
        assert used
    for apart, together in zip(*found, strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)
