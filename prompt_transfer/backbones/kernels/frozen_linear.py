"""Linear layers of frozen weights in bf16 on a CPU: no more work than a frozen layer and a prompt need.

*Bias.* `torch.nn.functional.linear` copies the bias into every row of the result before it multiplies: up to a tenth of
the product's time (448 or 3,648 rows, 768 and 3,072 columns, two cores with AMX). The kernel that TorchInductor takes
adds it on the way out. It knows no gradients, but a frozen layer needs only that of its input.

*Order of the weights.* A product sorts its weights into blocks each time. Those of the backward pass, which lie across,
are sorted once: products of 3,712 rows take 5 to 10 % less (two cores with AVX-512), for as many bytes as the weights.

*Rows that are alike.* Where many examples stand behind one prompt that sees the text, its rows in front of the first
attention are the same in all of them (`SharedRows`): they are multiplied once, and so is the sum of their gradients.
"""

from __future__ import annotations

import threading
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


def has_kernel() -> bool:
    """Whether this processor and this torch have it."""
    return _kernel() is not None


def is_supported(x: Tensor) -> bool:
    """Whether states of this dtype and place are computed here, if they lie in one piece."""
    return x.dtype is DTYPE and x.device.type == "cpu" and has_kernel()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in], weight [out, in] in any order."""
    output: Tensor = _kernel()(x, weight, bias, "none", [], "")
    return output


class UniqueIndex:
    """Which examples have which of some things: of each an example that has it, and what each example has.

    Args:
        ids: [B], what each example has; None: all have the same.
    """

    def __init__(self, ids: Tensor | None) -> None:
        self.examples, self.which = torch.zeros(1, dtype=torch.long), ids
        if ids is not None:
            found, self.which = torch.unique(ids, return_inverse=True)
            self.examples = torch.zeros_like(found).scatter_(0, self.which, torch.arange(len(ids)))

    def expand(self, rows: Tensor) -> Tensor:
        """Of [U, ...] what each example has: [B or 1, ...]."""
        return rows if self.which is None else rows[self.which]

    def sum_by_item(self, x: Tensor) -> Tensor:
        """Of [B, T, O] the sums over the examples of each: [U, T, O], kept in float32 on the way."""
        if self.which is None:
            return x.sum(dim=0, keepdim=True)
        # Not a product with zeros and ones: one prompt's NaN would be in the sums of all.
        sums = x.new_zeros(len(self.examples), *x.shape[1:], dtype=torch.float32)
        return sums.index_add_(0, self.which, x.float()).to(x.dtype)


class SharedRows:
    """Rows of a batch [B, T, ...] that are the same in many examples: those of prompts, maybe those of texts.

    Args:
        start, end: first row of the prompts, last + 1; all others are text.
        prompt_ids: [B], which prompt an example has; None: all have the same.
        text_ids: [B], which text; None: each has its own.
    """

    def __init__(self, start: int, end: int, prompt_ids: Tensor | None, text_ids: Tensor | None) -> None:
        self.start, self.end = start, end
        self.prompts, self.texts = UniqueIndex(prompt_ids), None if text_ids is None else UniqueIndex(text_ids)

    def unique_texts(self, x: Tensor) -> Tensor:
        """Of [B, T, ...] each text's rows once, in one piece."""
        return x.contiguous() if self.texts is None else x[self.texts.examples]

    def expand_texts(self, rows: Tensor) -> Tensor:
        """The rows of each example."""
        return rows if self.texts is None else self.texts.expand(rows)


class _Active(threading.local):
    rows: SharedRows | None = None


_now = _Active()


@contextmanager
def sharing_rows(rows: SharedRows | None) -> Iterator[None]:
    """Inside, until the first attention (`stop_sharing_rows`), they are so."""
    _now.rows = rows
    try:
        yield
    finally:
        _now.rows = None


def stop_sharing_rows() -> None:
    """Attention has mixed the rows of each example."""
    if not torch.compiler.is_compiling():
        _now.rows = None


class TransposedWeight:
    """A layer's weights [out, in] the other way round, sorted for `_product`: made when they are first asked for."""

    def __init__(self, sort: bool) -> None:
        self.sort = sort
        self.made: Tensor | None = None
        # Of the weights that it was made of: where they are, and some of them.
        self.place, self.some = 0, torch.empty(0)

    def __getstate__(self) -> dict[str, Any]:
        # Sorted weights can be neither copied nor written.
        return {"sort": self.sort, "made": None, "place": 0, "some": torch.empty(0)}

    def product(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """gradient [..., out] -> [..., in]"""
        if not self.sort or gradient.numel() < FEWEST_ROWS * gradient.shape[-1]:
            return torch.matmul(gradient, weight)
        some = weight[:: max(1, weight.shape[0] // 8), :: max(1, weight.shape[1] // 8)]
        if self.made is None or self.place != weight.data_ptr() or not torch.equal(self.some, some):
            self.made = torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous())
            self.place, self.some = weight.data_ptr(), some.clone()
        return _product(gradient.contiguous(), self.made, None)


class _FrozenLinear(torch.autograd.Function):
    """`x W' + b` with a gradient for x alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, turned: TransposedWeight, same: SharedRows | None
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.turned, ctx.same = turned, same
        if same is None:
            return _product(x, weight, bias)
        output = x.new_empty(*x.shape[:2], len(weight))
        prompts = x[same.prompts.examples, same.start : same.end]
        output[:, same.start : same.end] = same.prompts.expand(_product(prompts, weight, bias))
        for part in (slice(0, same.start), slice(same.end, None)):
            if x[0, part].numel():
                output[:, part] = same.expand_texts(_product(same.unique_texts(x[:, part]), weight, bias))
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        same: SharedRows | None = ctx.same
        if same is None:
            return ctx.turned.product(gradient, weight), None, None, None, None
        # Nothing is trained in front of the text. What a prompt's rows are to one example they are to all that have it,
        # so one of them may bring the gradients of all.
        found = gradient.new_zeros(*gradient.shape[:2], weight.shape[1])
        rows = slice(same.start, same.end)
        found[same.prompts.examples, rows] = ctx.turned.product(same.prompts.sum_by_item(gradient[:, rows]), weight)
        return found, None, None, None, None


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None, turned: TransposedWeight | None = None) -> Tensor:
    """As `torch.nn.functional.linear`: x [..., in], weight [out, in] and bias [out] give [..., out]."""
    fits = is_supported(x) and x.dtype is weight.dtype and x.is_contiguous()
    if not fits or weight.requires_grad or torch.compiler.is_compiling():
        return functional.linear(x, weight, bias)
    same = _now.rows if x.ndim == 3 else None
    output: Tensor = _FrozenLinear.apply(x, weight, bias, turned or TransposedWeight(sort=False), same)
    return output


class LinearForward:
    """In place of a layer's `forward`; `Conv1D` is the layer of GPT-2, whose weight lies the other way.

    Args:
        layer: whose forward it is.
        sort: keep its weights in the order of the backward pass too.
    """

    def __init__(self, layer: nn.Linear | Conv1D, sort: bool) -> None:
        self.layer, self.transposed = layer, isinstance(layer, Conv1D)
        self.turned = TransposedWeight(sort)

    def __call__(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        return frozen_linear(x, weight.t() if self.transposed else weight, self.layer.bias, self.turned)


def substitute(model: nn.Module) -> None:
    """Let all linear layers be computed so."""
    # Not what is derived from them: it computes something else.
    found = [layer for layer in model.modules() if type(layer) in (nn.Linear, Conv1D)]
    size = sum(weight.nbytes for layer in found for weight in layer.parameters(recurse=False))
    for layer in found:
        layer.forward = LinearForward(layer, sort=size <= MOST_SORTED)
