"""The gated activation of a feed-forward layer (SwiGLU, Shazeer 2020) with frozen weights in bf16 on a CPU.

Both projections are one product (`merged_linear.py`). Its output and the activated gate are kept for the backward pass,
which writes the gradients of both projections into one matrix, for one product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prompt_transfer.backbones.kernels.merged_linear import MergedLinear


class _SwiGLU(torch.autograd.Function):
    """`silu(x Wg') * (x Wu')` with a gradient for x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, merged: MergedLinear) -> Tensor:
        gate, up = merged.product(x).chunk(2, dim=-1)
        active = functional.silu(gate)
        ctx.save_for_backward(gate, up, active)
        ctx.merged = merged
        return active * up

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gate, up, active = ctx.saved_tensors
        both = gradient.new_empty(*gradient.shape[:-1], 2 * gradient.shape[-1])
        to_gate, to_up = both.chunk(2, dim=-1)
        torch.mul(gradient, active, out=to_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=to_gate)
        return ctx.merged.input_gradient(both), None


def swiglu(x: Tensor, merged: MergedLinear) -> Tensor:
    """Compute the neurons `silu(gate) * up` [..., F] of x [..., H].

    Args:
        x: contiguous, bf16, on a CPU.
        merged: the joined projections `gate` and `up`.
    """
    output: Tensor = _SwiGLU.apply(x, merged)
    return output
