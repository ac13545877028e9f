"""Linear layers with frozen weights in bf16 on a CPU.

Three savings over `torch.nn.functional.linear`:

- Bias. `linear` copies the bias into every row of the output before the product, which costs up to a tenth of its time
  (448 or 3,648 rows, 768 and 3,072 columns, two cores with AMX). The oneDNN kernel of TorchInductor adds the bias on
  output. It has no backward pass, but a frozen layer needs only the gradient of its input.
- Weight layout. oneDNN reorders the weights into blocks for every product. The transposed weights of the backward pass
  are reordered once: products of 3,712 rows take 5 to 10 % less time (two cores with AVX-512) for a second copy of the
  weights.
- Shared rows. If many examples have the same prompt and the prompt sees the text, its hidden states before the first
  attention are the same in all of them (`SharedRows`). They are multiplied once, and so is the sum of their gradients.
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
# Largest model, in bytes of weights, that keeps a transposed copy, and fewest rows for which the copy is faster.
MAX_TRANSPOSED_BYTES, MIN_ROWS = 1 << 29, 64


@cache
def _kernel() -> Any:
    """Return `(x, weight, bias, activation, scalars, algorithm) -> output`, or None without a bf16 kernel."""
    operators = torch.ops.mkldnn
    supported = getattr(operators, "_is_mkldnn_bf16_supported", None)
    if not torch.backends.mkldnn.is_available() or supported is None or not supported():
        return None
    return getattr(operators, "_linear_pointwise", None)


def has_kernel() -> bool:
    """Return whether this processor and this version of torch have the bf16 kernel."""
    return _kernel() is not None


def is_supported(x: Tensor) -> bool:
    """Return whether the kernel takes the dtype and device of `x`; `x` must be contiguous as well."""
    return x.dtype is DTYPE and x.device.type == "cpu" and has_kernel()


def linear_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `x W' + b` for x [..., in] and weight [out, in], plain or reordered."""
    output: Tensor = _kernel()(x, weight, bias, "none", [], "")
    return output


class UniqueIndex:
    """Index of unique items: one representative example per item, and the item of each example.

    Args:
        ids: [B], item id of each example; None if all examples have the same item.

    Attributes:
        examples: [U], a representative example of each unique item.
        inverse: [B], index of each example's item; None if there is only one item.
    """

    def __init__(self, ids: Tensor | None) -> None:
        self.examples, self.inverse = torch.zeros(1, dtype=torch.long), ids
        if ids is not None:
            unique, self.inverse = torch.unique(ids, return_inverse=True)
            self.examples = torch.zeros_like(unique).scatter_(0, self.inverse, torch.arange(len(ids)))

    def expand(self, items: Tensor) -> Tensor:
        """Map items [U, ...] to examples [B, ...]; a single item stays [1, ...]."""
        return items if self.inverse is None else items[self.inverse]

    def sum_by_item(self, x: Tensor) -> Tensor:
        """Sum x [B, T, O] over the examples of each item: [U, T, O], accumulated in float32."""
        if self.inverse is None:
            return x.sum(dim=0, keepdim=True)
        # A product with a one-hot matrix would spread one prompt's NaN to the sums of all prompts.
        sums = x.new_zeros(len(self.examples), *x.shape[1:], dtype=torch.float32)
        return sums.index_add_(0, self.inverse, x.float()).to(x.dtype)


class SharedRows:
    """Positions of a batch [B, T, ...] whose values are the same in many examples: prompts, optionally also texts.

    Args:
        start, end: the prompt is at positions start to end - 1; all other positions are text.
        prompt_ids: [B], prompt of each example; None if all examples have the same prompt.
        text_ids: [B], text of each example; None if each example has its own.
    """

    def __init__(self, start: int, end: int, prompt_ids: Tensor | None, text_ids: Tensor | None) -> None:
        self.start, self.end = start, end
        self.prompts, self.texts = UniqueIndex(prompt_ids), None if text_ids is None else UniqueIndex(text_ids)

    def unique_texts(self, x: Tensor) -> Tensor:
        """Select each unique text of x [B, T, ...] once, as a contiguous tensor."""
        return x.contiguous() if self.texts is None else x[self.texts.examples]

    def expand_texts(self, texts: Tensor) -> Tensor:
        """Map unique texts [U, T, ...] to examples [B, T, ...]."""
        return texts if self.texts is None else self.texts.expand(texts)


class _RowSharing(threading.local):
    """The rows to share in the running forward pass, per thread: models pass only the states to linear layers."""

    rows: SharedRows | None = None


_sharing = _RowSharing()


@contextmanager
def sharing_rows(rows: SharedRows | None) -> Iterator[None]:
    """Compute `rows` once per unique item, in this thread, until the first attention (`stop_sharing_rows`)."""
    _sharing.rows = rows
    try:
        yield
    finally:
        _sharing.rows = None


def stop_sharing_rows() -> None:
    """Stop sharing rows: attention has mixed the positions of each example."""
    if not torch.compiler.is_compiling():
        _sharing.rows = None


class TransposedWeight:
    """A cache of a layer's transposed weights in oneDNN's block format, built at the first backward pass.

    Args:
        enabled: keep the copy; otherwise `product` multiplies with the plain weights.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.reordered: Tensor | None = None
        # Address and a sample of the copied weights, to detect that they changed.
        self.address, self.sample = 0, torch.empty(0)

    def __getstate__(self) -> dict[str, Any]:
        # Tensors in oneDNN's format can be neither copied nor serialized.
        return {"enabled": self.enabled, "reordered": None, "address": 0, "sample": torch.empty(0)}

    def product(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """Multiply gradient [..., out] with weight [out, in]: [..., in]."""
        if not self.enabled or gradient.numel() < MIN_ROWS * gradient.shape[-1]:
            return torch.matmul(gradient, weight)
        sample = weight[:: max(1, weight.shape[0] // 8), :: max(1, weight.shape[1] // 8)]
        if self.reordered is None or self.address != weight.data_ptr() or not torch.equal(self.sample, sample):
            self.reordered = torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous())
            self.address, self.sample = weight.data_ptr(), sample.clone()
        return linear_product(gradient.contiguous(), self.reordered, None)


class _FrozenLinear(torch.autograd.Function):
    """`x W' + b` with a gradient for x only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transposed: TransposedWeight,
        shared: SharedRows | None,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.transposed, ctx.shared = transposed, shared
        if shared is None:
            return linear_product(x, weight, bias)
        output = x.new_empty(*x.shape[:2], len(weight))
        prompts = x[shared.prompts.examples, shared.start : shared.end]
        output[:, shared.start : shared.end] = shared.prompts.expand(linear_product(prompts, weight, bias))
        for part in (slice(0, shared.start), slice(shared.end, None)):
            if x[0, part].numel():
                output[:, part] = shared.expand_texts(linear_product(shared.unique_texts(x[:, part]), weight, bias))
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        shared: SharedRows | None = ctx.shared
        if shared is None:
            return ctx.transposed.product(gradient, weight), None, None, None, None
        # Text embeddings are frozen and get no gradient. The gradients of all examples with the same prompt are summed
        # into that prompt's representative example.
        to_input = gradient.new_zeros(*gradient.shape[:2], weight.shape[1])
        prompt = slice(shared.start, shared.end)
        sums = shared.prompts.sum_by_item(gradient[:, prompt])
        to_input[shared.prompts.examples, prompt] = ctx.transposed.product(sums, weight)
        return to_input, None, None, None, None


def frozen_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transposed: TransposedWeight | None = None,
    shared: SharedRows | None = None,
) -> Tensor:
    """Apply a linear layer with frozen weights, as `torch.nn.functional.linear` does.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out] or None.
        transposed: the layer's cache for the backward pass.
        shared: rows of x [B, T, in] to compute once; ignored unless x has three dimensions.

    Returns:
        [..., out]
    """
    supported = is_supported(x) and x.dtype is weight.dtype and x.is_contiguous()
    if not supported or weight.requires_grad or torch.compiler.is_compiling():
        return functional.linear(x, weight, bias)
    shared = shared if x.ndim == 3 else None
    output: Tensor = _FrozenLinear.apply(x, weight, bias, transposed or TransposedWeight(enabled=False), shared)
    return output


class LinearForward:
    """A replacement for the `forward` of a linear layer.

    Args:
        layer: the layer; `Conv1D` is GPT-2's linear layer, with weight [in, out].
        keep_transposed: keep a transposed copy of its weights for the backward pass.
    """

    def __init__(self, layer: nn.Linear | Conv1D, keep_transposed: bool) -> None:
        self.layer, self.is_conv1d = layer, isinstance(layer, Conv1D)
        self.transposed = TransposedWeight(keep_transposed)

    def __call__(self, x: Tensor) -> Tensor:
        weight = self.layer.weight.t() if self.is_conv1d else self.layer.weight
        # torch.compile cannot trace a thread-local variable.
        shared = None if torch.compiler.is_compiling() else _sharing.rows
        return frozen_linear(x, weight, self.layer.bias, self.transposed, shared)


def substitute(model: nn.Module) -> int:
    """Patch every linear layer to use the frozen kernel; return the bytes of their weights."""
    # Subclasses may compute something else.
    layers = [layer for layer in model.modules() if type(layer) in (nn.Linear, Conv1D)]
    size = sum(weight.nbytes for layer in layers for weight in layer.parameters(recurse=False))
    for layer in layers:
        layer.forward = LinearForward(layer, keep_transposed=size <= MAX_TRANSPOSED_BYTES)
    return size
