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
from typing import Any

import torch
from common import timed

from prompt_transfer.backbones.families import FAMILIES
from prompt_transfer.backbones.kernels import frozen_linear
from prompt_transfer.backbones.kernels.merged_linear import reordered


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model.

    Attributes:
        key_width: width of the keys of all heads together; None for H, less with grouped queries.
        gated: whether the first FFN layer has two projections of F neurons (SwiGLU).
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    key_width: int | None = None
    gated: bool = False

    @property
    def keys_values(self) -> int:
        """The width of the keys and values of a position."""
        return 2 * (self.key_width or self.hidden)

    @property
    def first_ffn(self) -> int:
        """The width of the first FFN layer's output."""
        return 2 * self.ffn if self.gated else self.ffn

    @classmethod
    def of(cls, config: Any) -> Sizes:
        """Read the sizes from the configuration of a BERT-, GPT-2- or Llama-like model."""
        hidden, heads = config.hidden_size, config.num_attention_heads
        keys = getattr(config, "num_key_value_heads", None) or heads
        width = getattr(config, "head_dim", None) or hidden // heads
        ffn = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
        gated = FAMILIES[config.model_type].gated(config)
        return cls(config.num_hidden_layers, hidden, ffn, heads, keys * width, gated)


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
        product(batch if reads_states else entering, hidden, sizes.keys_values, batch if reads_states else back)
        product(min(asking, entering), hidden, hidden, min(back, asking))
        product(asking, hidden, hidden)
        product(asking, hidden, sizes.first_ffn)
        product(asking, ffn, hidden)
        seen = sum(count + prompt_length for count in texts) if last else pairs
        # Two products forward, four backward.
        attended += 6 * 2.0 * seen * hidden * (sizes.heads if reads_states else 1)
        # A gated activation reads two and writes one forward, reads three and writes two backward.
        elements += asking * (12 * hidden + (8 if sizes.gated else 5) * ffn)
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
            for inputs, outputs in (
                (hidden, hidden), (hidden, sizes.keys_values), (hidden, sizes.first_ffn), (ffn, hidden)
            )
        }  # fmt: skip
        # Attention within examples, and from all positions to a shared prompt of 100: the faster one counts.
        width = hidden // sizes.heads
        shapes = ((batch * sizes.heads, max(1, rows // batch), max(1, rows // batch)), (sizes.heads, rows, 100))
        self.attention = 0.0
        for count, queries, keys in shapes:
            left, right = (torch.randn(count, size, width, dtype=dtype, device=device) for size in (queries, keys))
            seconds = self._median(lambda left=left, right=right: left @ right.transpose(1, 2))
            self.attention = max(self.attention, 2.0 * count * queries * keys * width / seconds)
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

        # With weights packed once, if there is a kernel for that.
        if dtype is torch.bfloat16 and device == "cpu" and frozen_linear.has_kernel():
            packed = [(reordered(weight), reordered(weight.t().contiguous())) for weight in weights]

            def both() -> None:
                for weight, transposed in packed:
                    frozen_linear.linear_product(x, weight, None)
                    frozen_linear.linear_product(gradient, transposed, None)
        else:

            def both() -> None:
                for weight in weights:
                    torch.nn.functional.linear(x, weight)
                    gradient @ weight

        return 2 * 2.0 * rows * inputs * outputs * len(weights) / self._median(both)

    def seconds(self, work: Needed) -> tuple[float, float]:
        """Return the seconds of the matrix products, and the seconds including elementwise work."""
        matrix = sum(count / self.linear[shape] for shape, count in work.linear.items())
        matrix += work.attention / self.attention
        return matrix, matrix + work.elements * self.itemsize / self.copy
