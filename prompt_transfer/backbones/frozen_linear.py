"""Linear layers of frozen weights in bf16 on a CPU: no more work than a frozen layer and a prompt need.

*Bias.* `torch.nn.functional.linear` copies the bias into every row of the result before it multiplies: up to a tenth of
the product's time (448 or 3,648 rows, 768 and 3,072 columns, two cores with AMX). The kernel that TorchInductor takes
adds it on the way out. It knows no gradients, but a frozen layer needs only that of its input.

*Order of the weights.* A product sorts its weights into blocks each time. Those of the backward pass, which lie across,
are sorted once: products of 3,712 rows take 5 to 10 % less (two cores with AVX-512), for as many bytes as the weights.

*Rows that are alike.* Where all examples stand behind one prompt that sees the text, its rows in front of the first
attention are the same in every example (`alike`): they are multiplied once, and so is the sum of their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

DTYPE = torch.bfloat16
# Bytes of a model's weights up to which they are kept in both orders, and rows from which that pays.
MOST_SORTED, FEWEST_ROWS = 1 << 29, 64


@cache
def _kernel() -> Any:
    """`(x, weight, bias, activation, its scalars, its algorithm)` -> output; None where there is none for bf16."""
    operators = torch.ops.mkldnn
    supported = getattr(operators, "_is_mkldnn_bf16_supported", None)
    if not torch.backends.mkldnn.is_available() or supported is None or not supported():
        return None
    return getattr(operators, "_linear_pointwise", None)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in], weight [out, in] in any order."""
    output: Tensor = _kernel()(x, weight, bias, "none", [], "")
    return output


class Alike:
    """Which rows of a batch [B, T, ...] are the same in every example, from `start` to before `end`."""

    rows: tuple[int, int] | None = None


@contextmanager
def alike(start: int, end: int) -> Iterator[None]:
    """Inside, until the first attention (`no_longer_alike`)."""
    Alike.rows = (start, end)
    try:
        yield
    finally:
        Alike.rows = None


def no_longer_alike() -> None:
    """Attention has mixed the rows of each example."""
    Alike.rows = None


class Turned:
    """A layer's weights [out, in] the other way round, sorted for `_product`: made when they are first asked for."""

    def __init__(self, sort: bool) -> None:
        self.sort = sort
        self.made: Tensor | None = None
        self.of: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Sorted weights can be neither copied nor written.
        return {"sort": self.sort, "made": None, "of": None}

    def product(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """gradient [..., out] -> [..., in]"""
        if not self.sort or gradient.numel() < FEWEST_ROWS * gradient.shape[-1]:
            return torch.matmul(gradient, weight)
        known = (weight.data_ptr(), weight._version)
        if self.made is None or self.of != known:
            self.made, self.of = torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous()), known
        return _product(gradient.contiguous(), self.made, None)


class _FrozenLinear(torch.autograd.Function):
    """`x W' + b` with a gradient for x alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, turned: Turned, rows: tuple[int, int] | None
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.turned, ctx.rows = turned, rows
        if rows is None:
            return _product(x, weight, bias)
        start, end = rows
        output = x.new_empty(*x.shape[:2], len(weight))
        output[:, start:end] = _product(x[0, start:end], weight, bias)
        for part in (slice(0, start), slice(end, None)):
            if x[0, part].numel():
                output[:, part] = _product(x[:, part].contiguous(), weight, bias)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        if ctx.rows is None:
            return ctx.turned.product(gradient, weight), None, None, None, None
        start, end = ctx.rows
        # Nothing is trained in front of the text. What the prompt's rows are to one example they are to all of them, so
        # the first one may bring the gradients of all.
        found = gradient.new_zeros(*gradient.shape[:2], weight.shape[1])
        found[0, start:end] = ctx.turned.product(gradient[:, start:end].sum(dim=0), weight)
        return found, None, None, None, None


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None, turned: Turned | None = None) -> Tensor:
    """As `torch.nn.functional.linear`: x [..., in], weight [out, in] and bias [out] give [..., out]."""
    fits = x.dtype is weight.dtype is DTYPE and x.device.type == "cpu" and x.is_contiguous()
    if not fits or _kernel() is None or weight.requires_grad or torch.compiler.is_compiling():
        return functional.linear(x, weight, bias)
    rows = Alike.rows if x.ndim == 3 and len(x) > 1 and x.requires_grad else None
    output: Tensor = _FrozenLinear.apply(x, weight, bias, turned or Turned(sort=False), rows)
    return output


class Forward:
    """In place of a layer's `forward`; `Conv1D` is the layer of GPT-2, whose weight lies the other way.

    Args:
        layer: whose forward it is.
        sort: keep its weights in the order of the backward pass too.
    """

    def __init__(self, layer: nn.Linear | Conv1D, sort: bool) -> None:
        self.layer, self.transposed = layer, isinstance(layer, Conv1D)
        self.turned = Turned(sort)

    def __call__(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        return frozen_linear(x, weight.t() if self.transposed else weight, self.layer.bias, self.turned)


def substitute(model: nn.Module) -> None:
    """Let all linear layers be computed so."""
    # Not what is derived from them: it computes something else.
    found = [layer for layer in model.modules() if type(layer) in (nn.Linear, Conv1D)]
    size = sum(weight.nbytes for layer in found for weight in layer.parameters(recurse=False))
    for layer in found:
        layer.forward = Forward(layer, sort=size <= MOST_SORTED)
