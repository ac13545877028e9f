"""Frozen RMS norms: values, gradients, and norms found or left unpatched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_families import Tiny, collated, random_prompt, text_rows, words
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.kernels import frozen_norm

EPS = 1e-6


def states(dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor]:
    """Return input [*shape, 24], with a mean and scale per row, and weight [24]."""
    torch.manual_seed(0)
    x = torch.randn(*shape, 24) * torch.linspace(0.1, 10, shape[-1])[:, None] + 2
    return x.to(dtype), (torch.rand(24) + 0.5).to(dtype)


def by_hand(x: Tensor, weight: Tensor) -> Tensor:
    """Compute the norm of Zhang and Sennrich (2019) in float64."""
    return weight.double() * x.double() / (x.double().square().mean(dim=-1, keepdim=True) + EPS).sqrt()


@pytest.mark.parametrize("shape", [(7,), (2, 5), (2, 3, 4)])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_output_and_gradient_are_those_of_the_formula(shape: tuple[int, ...], dtype: torch.dtype, rtol: float) -> None:
    x, weight = states(dtype, *shape)
    scale = torch.linspace(-1, 2, 24)
    found = []
    for own, function in (
        (x.clone(), lambda given: frozen_norm.frozen_norm(given, weight, EPS)),
        (x.double(), lambda given: by_hand(given, weight)),
    ):
        output = function(own.requires_grad_())
        (output * scale).sum().backward()
        assert own.grad is not None
        found.append((output, own.grad))
    assert found[0][0].dtype == dtype
    for ours, exact in zip(*found, strict=True):
        assert ours.shape == exact.shape
        size = float(exact.detach().abs().max())
        torch.testing.assert_close(ours.double(), exact, rtol=rtol, atol=rtol * size)


def test_it_is_no_less_exact_than_the_library_in_bf16() -> None:
    x, weight = states(torch.bfloat16, 4, 50)
    norm = T5LayerNorm(24, EPS)
    norm.weight = nn.Parameter(weight, requires_grad=False)
    torch.testing.assert_close(frozen_norm.frozen_norm(x, weight, EPS), norm(x), rtol=0, atol=0)
    errors = []
    exact = x.double().requires_grad_()
    by_hand(exact, weight).square().sum().backward()
    assert exact.grad is not None
    for function in (lambda given: frozen_norm.frozen_norm(given, weight, EPS), norm):
        own = x.clone().requires_grad_()
        function(own).float().square().sum().backward()
        assert own.grad is not None
        errors.append(float((own.grad.double() - exact.grad).abs().mean()))
    assert errors[0] <= 1.05 * errors[1]


def test_norms_are_found_by_what_they_give() -> None:
    class Doubled(T5LayerNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) * 2

    norms = nn.ModuleList(
        [T5LayerNorm(8), LlamaRMSNorm(8), GemmaRMSNorm(8), Doubled(8), nn.LayerNorm(8), nn.RMSNorm(8)]
    )
    frozen_norm.substitute(norms.requires_grad_(False))
    assert ["forward" in vars(norm) for norm in norms] == [True, True, False, False, False, False]


def test_what_does_not_fit_goes_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = frozen_norm.frozen_norm
    norm = T5LayerNorm(24).requires_grad_(False)
    frozen_norm.substitute(norm)
    monkeypatch.setattr(frozen_norm, "frozen_norm", lambda *given: calls.append(given) or real(*given))
    x, _ = states(torch.float32, 2, 6)
    expected = norm(x)
    assert len(calls) == 1
    strided = x[:, ::2]
    torch.testing.assert_close(norm(strided), expected[:, ::2])
    # A trained weight gets its gradient.
    norm.weight.requires_grad_()
    norm(x).sum().backward()
    assert norm.weight.grad is not None
    assert len(calls) == 1
    norm.weight.requires_grad_(False)
    assert norm(x[:0]).shape == (0, 6, 24)
    torch.testing.assert_close(norm(x.double()), expected.double(), rtol=0, atol=1e-6)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="of the same dtype"):
        real(x.double(), norm.weight, EPS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["t5", "mt5", "llama", "qwen2", "qwen3", "roberta"])
def test_backbones_that_have_such_norms_use_it(
    tiny: Tiny, family: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    real = frozen_norm.frozen_norm
    backbone = FrozenBackbone(str(tiny(family)), dtype=dtype)
    monkeypatch.setattr(frozen_norm, "frozen_norm", lambda *given: calls.append(given) or real(*given))
    prompt = random_prompt(backbone).requires_grad_()
    backbone(prompt, collated(backbone, text_rows(backbone)), words(backbone)).sum().backward()
    assert prompt.grad is not None
    assert (len(calls) >= 2 * backbone.config.num_hidden_layers) == (family != "roberta")
    # A copy has its own patched forward.
    other = copy.deepcopy(backbone)
    norms = [part for part in other.model.modules() if isinstance(vars(part).get("forward"), frozen_norm.NormForward)]
    assert all(norm.forward.norm is norm for norm in norms)  # type: ignore[union-attr]
