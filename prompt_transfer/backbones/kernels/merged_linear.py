"""Frozen linear layers that read the same input, as one product in bf16 on a CPU.

The rows of their weights are joined (and may be permuted) in one matrix, kept in oneDNN's block format for the forward
pass and transposed for the backward pass. One product has more columns than its parts, and the gradients of the input
are summed inside it, in float32.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prompt_transfer.backbones.kernels import frozen_linear
from prompt_transfer.backbones.kernels.frozen_linear import linear_product


def are_plain(layers: Sequence[nn.Module]) -> bool:
    """Return whether all are linear layers with frozen bf16 weights on a CPU, without hooks or adapters."""
    return all(
        type(layer) is nn.Linear
        and not layer.weight.requires_grad
        and layer.weight.dtype is frozen_linear.DTYPE
        and type(layer.weight) is nn.Parameter
        and layer.weight.device.type == "cpu"
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
        for layer in layers
    )


def reordered(weight: Tensor) -> Tensor:
    """Return a weight [out, in] in oneDNN's block format."""
    output: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return output


class MergedLinear:
    """A cache of the joined weights of linear layers, built at the first use.

    Args:
        layers: the layers, all with a bias or all without.
        order: [out], the rows of the joined weights in the order of the output; None for the layers' own order.
    """

    def __init__(self, layers: Sequence[nn.Linear], order: Tensor | None = None) -> None:
        self.layers, self.order = list(layers), order
        self._forget()

    def _forget(self) -> None:
        self.forward: Tensor | None = None
        self.transposed: Tensor | None = None
        self.bias: Tensor | None = None
        # Addresses and samples of the copied weights, to detect that they changed.
        self.state: list[tuple[int, Tensor]] = []

    def __getstate__(self) -> dict[str, Any]:
        # Tensors in oneDNN's format can be neither copied nor serialized.
        return {"layers": self.layers, "order": self.order}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def reads(self, *layers: nn.Module) -> bool:
        """Return whether the joined layers are these and plain: none was replaced, by an adapter for example."""
        return all(map(operator.is_, self.layers, layers)) and are_plain(layers)

    def product(self, x: Tensor) -> Tensor:
        """Compute the layers' joined outputs [..., out] for x [..., in]."""
        self._refresh()
        if self.forward is None:
            self.forward = reordered(self._joined())
            if self.layers[0].bias is not None:
                bias = torch.cat([layer.bias.detach() for layer in self.layers])
                self.bias = bias if self.order is None else bias[self.order]
        return linear_product(x, self.forward, self.bias)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Compute the gradient [..., in] of the input from that of the joined outputs [..., out]."""
        if self.transposed is None:
            self.transposed = reordered(self._joined().t().contiguous())
        return linear_product(gradient, self.transposed, None)

    def _joined(self) -> Tensor:
        weights = torch.cat([layer.weight.detach() for layer in self.layers])
        return weights if self.order is None else weights[self.order]

    def _refresh(self) -> None:
        """Forget the copies if a weight was replaced or changed."""
        samples = [_sample(layer.weight.detach()) for layer in self.layers]
        addresses = [layer.weight.data_ptr() for layer in self.layers]
        same = len(self.state) == len(samples) and all(
            address == kept and torch.equal(sample, before)
            for (kept, before), address, sample in zip(self.state, addresses, samples, strict=True)
        )
        if not same:
            self._forget()
            self.state = [(address, sample.clone()) for address, sample in zip(addresses, samples, strict=True)]


def _sample(weight: Tensor) -> Tensor:
    return weight[:: max(1, weight.shape[0] // 8), :: max(1, weight.shape[1] // 8)]


class _MergedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, merged: MergedLinear) -> Tensor:
        ctx.merged = merged
        return merged.product(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.merged.input_gradient(gradient.contiguous()), None


def merged_linear(x: Tensor, merged: MergedLinear) -> Tensor:
    """Compute the layers' joined outputs [..., out] for x [..., in], with a gradient for x only."""
    output: Tensor = _MergedLinear.apply(x, merged)
    return output
