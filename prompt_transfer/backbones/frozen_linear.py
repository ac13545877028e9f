"""Linear layers of frozen weights in bf16 on a CPU: the product and its bias in one kernel.

`torch.nn.functional.linear` copies the bias into every row of the result before it multiplies: up to a tenth of the
product's time (448 or 3,648 rows, 768 and 3,072 columns, two cores with AMX). The kernel that TorchInductor takes adds
it on the way out. It knows no gradients, but a frozen layer needs only that of its input.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D


@cache
def _kernel() -> Any:
    """`(x, weight, bias, activation, its scalars, its algorithm)` -> output; None where there is none for bf16."""
    operators = torch.ops.mkldnn
    supported = getattr(operators, "_is_mkldnn_bf16_supported", None)
    if not torch.backends.mkldnn.is_available() or supported is None or not supported():
        return None
    return getattr(operators, "_linear_pointwise", None)


class _FrozenLinear(torch.autograd.Function):
    """`x W' + b` with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        output: Tensor = _kernel()(x, weight, bias, "none", [], "")
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return torch.matmul(gradient, weight), None, None


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `torch.nn.functional.linear`: x [..., in], weight [out, in] and bias [out] give [..., out]."""
    fits = x.dtype is weight.dtype is torch.bfloat16 and x.device.type == "cpu" and x.is_contiguous()
    if not fits or _kernel() is None or weight.requires_grad or torch.compiler.is_compiling():
        return functional.linear(x, weight, bias)
    output: Tensor = _FrozenLinear.apply(x, weight, bias)
    return output


class Forward:
    """In place of a layer's `forward`; `Conv1D` is the layer of GPT-2, whose weight lies the other way."""

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        self.layer, self.turned = layer, isinstance(layer, Conv1D)

    def __call__(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        return frozen_linear(x, weight.t() if self.turned else weight, self.layer.bias)


def substitute(model: nn.Module) -> None:
    """Let all layers with a bias be computed so."""
    for layer in model.modules():
        # Not what is derived from them: it computes something else.
        if type(layer) in (nn.Linear, Conv1D) and layer.bias is not None:
            layer.forward = Forward(layer)
