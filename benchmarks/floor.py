"""What a training step needs at least: counted products over measured rates, and bytes over the rate of copying.

Counted is what the function itself asks for, on texts without padding: no weight gradients, of the last layer queries
and FFN at the answer slot alone (whose one query an encoder in `full` mode lets read states, not keys and values), no
gradients of text that stands before the first layer, and before its attention the prompt once. The rates are measured
in the same run, for the shapes that are used, with the weights not in the cache. Elementwise work that no kernel can
leave out: norms with their residual sums, and the activation, forward and backward, each reading and writing once.

Shape letters: B batch, P prompt tokens, H hidden, F neurons a layer, L layers.
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
    """Of a model."""

    layers: int
    hidden: int
    ffn: int
    heads: int


@dataclass(frozen=True)
class Needed:
    """Of one step: floating-point operations of linear layers by (inputs, outputs), of attention; and bytes."""

    linear: dict[tuple[int, int], float]
    attention: float
    elements: float

    @property
    def total(self) -> float:
        """Operations of all products."""
        return sum(self.linear.values()) + self.attention


def needed(sizes: Sizes, attention: str, prompt_length: int, texts: Sequence[int], causal: bool = False) -> Needed:
    """Work of one step on texts of so many tokens (an encoder's answer slot counted).

    Args:
        sizes: of the model.
        attention: `full` or `shared`.
        prompt_length: P.
        texts: tokens of each example, B of them.
        causal: whether a token sees only what stands before it.
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
    # Pairs of a query and a key that it sees.
    half = 0.5 if causal else 1.0
    pairs = sum(half * count**2 + count * prompt_length for count in texts)
    pairs += half * prompt_length**2 * (1 if shared else batch) + (0 if shared else prompt_length * text)
    for layer in range(sizes.layers):
        first, last = layer == 0, layer == sizes.layers - 1
        # In front of the first attention a prompt is the same in all examples, and only its rows have a gradient.
        entering, back = (text + prompt_length, prompt_length) if first else (rows, rows)
        asking = batch if last else rows
        # One query an example reads the states themselves: its products with the layers of keys and values are enough.
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
    """Rates of this machine for the shapes of one model.

    Args:
        sizes: of the model.
        rows: positions of a batch.
        batch: B.
        dtype: of the weights.
        device: where.
        repeats: of each; medians count.
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
        """Operations a second of a layer, forward and backward to its input, over as many weights as 12 layers have."""
        weights = [torch.randn(outputs, inputs, dtype=dtype, device=device) for _ in range(12)]
        x = torch.randn(rows, inputs, dtype=dtype, device=device)
        gradient = torch.randn(rows, outputs, dtype=dtype, device=device)

        # Forward as PyTorch does it; backward with weights that are sorted once, where there is a kernel for them.
        sort = dtype is torch.bfloat16 and device == "cpu" and frozen_linear.has_kernel()
        turned = [frozen_linear.TransposedWeight(sort) for _ in weights]

        def both() -> None:
            for weight, other in zip(weights, turned, strict=True):
                torch.nn.functional.linear(x, weight)
                other.product(gradient, weight)

        return 2 * 2.0 * rows * inputs * outputs * len(weights) / self._median(both)

    def seconds(self, work: Needed) -> tuple[float, float]:
        """Seconds of the products alone, and with the elementwise bytes."""
        matrix = sum(count / self.linear[shape] for shape, count in work.linear.items())
        matrix += work.attention / self.attention
        return matrix, matrix + work.elements * self.itemsize / self.copy
