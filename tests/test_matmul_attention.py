"""Attention by matrix products against the library's: masks, causality, shared heads, position biases, gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from prompt_transfer.backbones import attention
from prompt_transfer.backbones.kernels.matmul_attention import matmul_attention

B, HEADS, T, S, D = 3, 4, 5, 9, 8


def layer(*, causal: bool = False, groups: int = 1) -> nn.Module:
    return cast("nn.Module", SimpleNamespace(is_causal=causal, num_key_value_groups=groups))


def states(key_heads: int = HEADS, length: int = T, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return query [B, HEADS, length, D], key and value [B, key_heads, S, D]."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, HEADS, length, D), (B, key_heads, S, D), (B, key_heads, S, D))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def padding() -> Tensor:
    """Return a mask [B, 1, 1, S] for examples with 9, 7 and 1 keys."""
    return (torch.arange(S) < torch.tensor([9, 7, 1])[:, None])[:, None, None]


BIAS = torch.linspace(-3, 3, HEADS * T * S).view(1, HEADS, T, S)
CASES: dict[str, tuple[dict[str, Any], Tensor | None, dict[str, Any]]] = {
    "plain": ({}, None, {}),
    "padded": ({}, padding(), {}),
    "numbers as mask": ({}, torch.where(padding(), 0.0, torch.finfo(torch.float32).min), {}),
    "causal": ({"causal": True}, None, {}),
    "not causal by keyword": ({"causal": True}, None, {"is_causal": False}),
    "shared keys": ({"groups": 2}, padding(), {}),
    "shared keys, causal": ({"groups": 2, "causal": True}, None, {}),
    "scaled": ({}, None, {"scaling": 1.0}),
    "biased": ({}, None, {"position_bias": BIAS, "scaling": 1.0}),
    "biased and padded": ({}, padding(), {"position_bias": BIAS}),
    "biased and causal": ({"causal": True}, None, {"position_bias": BIAS}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_attention_of_the_library(case: str) -> None:
    kind, mask, options = CASES[case]
    results = []
    for function in (matmul_attention, sdpa_attention_forward):
        tensors = states(HEADS // kind.get("groups", 1))
        output, weights = function(layer(**kind), *tensors, mask, **options)
        assert weights is None
        assert output.is_contiguous()
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        results.append([output, *(cast("Tensor", tensor.grad) for tensor in tensors)])
    for ours, library in zip(*results, strict=True):
        torch.testing.assert_close(ours, library, rtol=0, atol=1e-5)


def test_one_query_of_a_causal_layer_sees_all_keys() -> None:
    tensors = states(length=1)
    ours, library = (
        function(layer(causal=True), *tensors, None)[0] for function in (matmul_attention, sdpa_attention_forward)
    )
    torch.testing.assert_close(ours, library)


def test_a_query_that_may_look_nowhere_is_no_nan() -> None:
    output, _ = matmul_attention(layer(), *states(), torch.zeros(B, 1, T, S, dtype=torch.bool))
    assert output.isfinite().all()


def test_dropout_falls_on_the_same_weights_in_both_passes() -> None:
    tensors = states()
    # With unit vectors as values, the output is the weights.
    tensors[2] = torch.eye(S).expand(B, HEADS, S, S).clone().requires_grad_()
    torch.manual_seed(0)
    output, _ = matmul_attention(layer(), *tensors, None, dropout=0.5)
    weights = output.transpose(1, 2)
    exact, _ = matmul_attention(layer(), *tensors, None)
    kept = weights != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(weights, exact.transpose(1, 2) * kept * 2)
    shape = torch.linspace(-1, 1, output.numel()).view_as(output)
    found = torch.autograd.grad((output * shape).sum(), tensors)
    expected = torch.autograd.grad((exact * kept.transpose(1, 2) * 2 * shape).sum(), tensors[:2])
    for ours, by_autograd in zip(found[:2], expected, strict=True):
        torch.testing.assert_close(ours, by_autograd, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[2], weights.transpose(2, 3) @ shape.transpose(1, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "trained", "used"),
    [(torch.float32, True, False), (torch.bfloat16, True, True), (torch.bfloat16, False, False)],
)
def test_it_serves_training_in_bf16_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, trained: bool, used: bool
) -> None:
    seen = []

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(arguments)
        return matmul_attention(*arguments, **options)

    monkeypatch.setattr(attention, "matmul_attention", watched)
    with torch.set_grad_enabled(trained):
        output, _ = attention.attend(layer(), *states(dtype=dtype), padding())
    assert bool(seen) == used
    exact, _ = sdpa_attention_forward(layer(), *(tensor.float() for tensor in states(dtype=dtype)), padding())
    torch.testing.assert_close(output.float(), exact, rtol=0, atol=1e-6 if dtype == torch.float32 else 3e-2)
