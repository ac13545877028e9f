"""Lower bound on the time of a training step: required operations at measured rates, and bytes at the copy rate.

The count includes only the work that the function requires, on texts without padding: no weight gradients; in the last
layer only the answer slot's query and FFN (in `full` mode, an encoder's single query reads hidden states directly,
without keys and values); no gradients of the text before the first layer; the prompt once before the first attention.
Rates are measured in the same run for the same shapes, with weights not in the CPU cache. Elementwise work that every
kernel must do: norms with residual sums, and the activation, forward and backward, each reading and writing once.

Shape letters: B batch, P prompt tokens, H hidden, F neurons per layer, L layers.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from common import timed

from prompt_transfer.backbones.kernels import frozen_linear


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model."""

    layers: int
    hidden: int
    ffn: int
    heads: int


@dataclass(frozen=True)
class Needed:
    """Work of one step: floating-point operations of linear layers by (inputs, outputs) and of attention, and bytes."""

    linear: dict[tuple[int, int], float]
    attention: float
    elements: float

    @property
    def total(self) -> float:
        """Return the operations of all matrix products."""
        return sum(self.linear.values()) + self.attention


def needed(sizes: Sizes, attention: str, prompt_length: int, texts: Sequence[int], causal: bool = False) -> Needed:
    """Return the work of one step.

    Args:
        sizes: sizes of the model.
        attention: `full` or `shared`.
        prompt_length: P.
        texts: number of tokens of each of the B texts, including an encoder's answer slot.
        causal: whether attention is causal.
    """
    batch, text = len(texts), sum(texts)
    hidden, ffn = sizes.hidden, sizes.ffn
    linear: dict[tuple[int, int], float] = {}
    elements = attended = 0.0

    def product(rows: float, inputs: int, outputs: int, backward_rows: float | None = None) -> None:
        passes = rows + (rows if backward_rows is None else backward_rows)
        linear[inputs, outputs] = linear.get((inputs, outputs), 0.0) + 2.0 * passes * inputs * outputs

    shared = attention == "shared"
    rows = text + (prompt_length if shared else batch * prompt_length)
    # Causal attention has half as many query-key pairs.
    half = 0.5 if causal else 1.0
    pairs = sum(half * count**2 + count * prompt_length for count in texts)
    pairs += half * prompt_length**2 * (1 if shared else batch) + (0 if shared else prompt_length * text)
    for layer in range(sizes.layers):
        first, last = layer == 0, layer == sizes.layers - 1
        # Before the first attention the prompt is the same in all examples, and only it has a gradient.
        entering, back = (text + prompt_length, prompt_length) if first else (rows, rows)
        asking = batch if last else rows
        # A single query can read hidden states directly, without computing keys and values.
        reads_states = last and not shared and not causal
        product(batch if reads_states else entering, hidden, 2 * hidden, batch if reads_states else back)
        product(min(asking, entering), hidden, hidden, min(back, asking))
        product(asking, hidden, hidden)
        product(asking, hidden, ffn)
        product(asking, ffn, hidden)
        seen = sum(count + prompt_length for count in texts) if last else pairs
        # Two products forward, four backward.
        attended += 6 * 2.0 * seen * hidden * (sizes.heads if reads_states else 1)
        elements += asking * (12 * hidden + 5 * ffn)
    return Needed(linear, attended, elements)


class Rates:
    """Measured rates of this machine for the shapes of one model.

    Args:
        sizes: sizes of the model.
        rows: positions per batch.
        batch: B.
        dtype: dtype of the weights.
        device: cpu or cuda.
        repeats: measurements per rate; medians count.
    """

    def __init__(self, sizes: Sizes, rows: int, batch: int, dtype: torch.dtype, device: str, repeats: int = 5) -> None:
        self.repeats, self.itemsize = repeats, dtype.itemsize
        hidden, ffn = sizes.hidden, sizes.ffn
        self.linear = {
            (inputs, outputs): self._linear(rows, inputs, outputs, dtype, device)
            for inputs, outputs in ((hidden, hidden), (hidden, 2 * hidden), (hidden, ffn), (ffn, hidden))
        }
        shape = (batch * sizes.heads, max(1, rows // batch), hidden // sizes.heads)
        left, right = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
        self.attention = 2.0 * shape[0] * shape[1] ** 2 * shape[2] / self._median(lambda: left @ right.transpose(1, 2))
        source = torch.randn(rows, ffn, dtype=dtype, device=device)
        target = torch.empty_like(source)
        self.copy = 2 * source.numel() * self.itemsize / self._median(lambda: target.copy_(source))

    def _median(self, function: object) -> float:
        assert callable(function)
        function()
        return statistics.median(timed(function) for _ in range(self.repeats))

    def _linear(self, rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: str) -> float:
        """Return a linear layer's operations per second, forward and input gradient, cycling through 12 weights."""
        weights = [torch.randn(outputs, inputs, dtype=dtype, device=device) for _ in range(12)]
        x = torch.randn(rows, inputs, dtype=dtype, device=device)
        gradient = torch.randn(rows, outputs, dtype=dtype, device=device)

        # Forward with PyTorch; backward with weights packed once, if there is a kernel for that.
        sort = dtype is torch.bfloat16 and device == "cpu" and frozen_linear.has_kernel()
        turned = [frozen_linear.TransposedWeight(sort) for _ in weights]

        def both() -> None:
            for weight, other in zip(weights, turned, strict=True):
                torch.nn.functional.linear(x, weight)
                other.product(gradient, weight)

        return 2 * 2.0 * rows * inputs * outputs * len(weights) / self._median(both)

    def seconds(self, work: Needed) -> tuple[float, float]:
        """Return the seconds of the matrix products, and the seconds including elementwise work."""
        matrix = sum(count / self.linear[shape] for shape, count in work.linear.items())
        matrix += work.attention / self.attention
        return matrix, matrix + work.elements * self.itemsize / self.copy
