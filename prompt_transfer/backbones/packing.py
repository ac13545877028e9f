"""Packed batches of a causal model on a CPU: prompts and texts as rows of one sequence, without padding.

The rows [1, R, H] of all prompts, then of all texts, go through every linear layer and norm in one product. Only
attention needs examples: `PackedStates` unpacks the rows there. The prompt's keys and values reach the texts inside
each layer, so the prompt needs no pass of its own, whose few rows would be bound by reading the weights.

Shape letters: B batch, T text tokens, N prompts, P prompt tokens, R rows, S scored positions of an example, D head
width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prompt_transfer.backbones.attention import (
    LayerPromptKV,
    PackedAttention,
    PromptStates,
    StopAfterKV,
    attend_own,
    attend_to_prompt,
)
from prompt_transfer.backbones.kernels import frozen_linear
from prompt_transfer.backbones.kernels.packed_attention import (
    Heads,
    PackedShape,
    Rotation,
    packed_attention,
    recorded_attention,
)


def is_supported(x: Tensor) -> bool:
    """Return whether batches are packed for states like `x`: bf16 on a CPU with a kernel for it, without autocast."""
    return frozen_linear.is_supported(x) and not torch.is_autocast_enabled("cpu")


class PackedRows:
    """The places of a batch's tokens in packed rows.

    Args:
        mask: [B, T], 1 for tokens; padding on the right.
        prompts: N, if the prompts are rows too; else 0.
        prompt_length: P.

    Attributes:
        start: first row of the texts.
        rows: [R - start], the position in [B T] of each text row; None without padding.
        places: [B T], the text row of each position, for padding the example's last one; None without padding.
    """

    def __init__(self, mask: Tensor, prompts: int, prompt_length: int) -> None:
        self.shape = mask.shape
        self.prompts, self.prompt_length = prompts, prompt_length
        self.start = prompts * prompt_length
        self.lengths = lengths = mask.sum(dim=1)
        self.first = lengths.cumsum(0) - lengths
        self.rows: Tensor | None = None
        self.places: Tensor | None = None
        if not bool(mask.all()):
            self.rows = mask.flatten().nonzero()[:, 0]
            # Padding repeats a token of its own example: values of other examples may not be finite.
            steps = torch.arange(mask.shape[1]).minimum((lengths - 1)[:, None])
            self.places = (self.first[:, None] + steps).clamp_min(0).flatten()

    def pack(self, texts: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Return texts [B, T, ...] as rows [1, R, ...], after those of prompts [N, P, ...]."""
        packed = texts.flatten(0, 1)
        if self.rows is not None:
            packed = packed.index_select(0, self.rows)
        if prompts is not None:
            packed = torch.cat([prompts.flatten(0, 1), packed])
        return packed[None]

    def of_prompts(self, states: Tensor) -> Tensor:
        """Return the prompts' states [N, heads, P, D] from packed ones [1, heads, R, D]."""
        return states[0, :, : self.start].unflatten(1, (self.prompts, self.prompt_length)).transpose(0, 1)

    def of_texts(self, states: Tensor) -> Tensor:
        """Return the texts' states [B, heads, T, D] from packed ones [1, heads, R, D]."""
        rows = states[0, :, self.start :].transpose(0, 1)
        padded: Tensor = rows if self.places is None else _Unpack.apply(rows, self.rows, self.places)
        return padded.unflatten(0, self.shape).transpose(1, 2)

    def joined(self, prompts: Tensor | None, texts: Tensor) -> Tensor:
        """Return the packed output [1, R, heads, D] of attention outputs [N, P, heads, D] and [B, T, heads, D]."""
        rows = texts.flatten(0, 1)
        if self.places is not None:
            rows = _Pack.apply(rows, self.rows)
        return (rows if prompts is None else torch.cat([prompts.flatten(0, 1), rows]))[None]

    def packed_shape(self, prompt_ids: Tensor | None) -> PackedShape | None:
        """Return the shape for the kernels; None unless equally many texts and text rows follow each prompt.

        Prompts in the rows must be used in their order.

        Args:
            prompt_ids: [B], prompt of each example; None if there is only one prompt.
        """
        count = 1
        if prompt_ids is not None:
            ids, counts = torch.unique_consecutive(prompt_ids, return_counts=True)
            count = len(ids)
            if not bool((counts == counts[0]).all()) or (self.prompts and ids.tolist() != list(range(self.prompts))):
                return None
            if self.rows is not None and not bool((rows := self.lengths.view(count, -1).sum(dim=1)).eq(rows[0]).all()):
                return None
        elif self.prompts > 1:
            return None
        return PackedShape(
            count,
            self.shape[0] // count,
            self.shape[1],
            self.prompt_length if self.prompts else 0,
            self.rows,
            self.places,
        )

    def scored(self, at: Tensor) -> Tensor:
        """Return the rows [1, B S] of positions `at` [B, S] of the texts."""
        return (self.start + self.first[:, None] + at).clamp_max_(self.start + self._count() - 1).view(1, -1)

    def _count(self) -> int:
        return self.shape[0] * self.shape[1] if self.rows is None else len(self.rows)


class _Unpack(torch.autograd.Function):
    """Packed rows [R, ...] at padded positions [B T, ...]; gradients of padding are dropped."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.rows = rows
        return packed.index_select(0, places)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, ctx.rows), None, None


class _Pack(torch.autograd.Function):
    """Padded positions [B T, ...] as packed rows [R, ...]."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, rows: Tensor) -> Tensor:
        ctx.rows, ctx.count = rows, len(padded)
        return padded.index_select(0, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        padded = gradient.new_zeros(ctx.count, *gradient.shape[1:])
        return padded.index_copy_(0, ctx.rows, gradient), None


class PackedStates(PackedAttention):
    """Attention of packed rows, passed to every layer as `prompt_states`.

    Args:
        rows: the places of the tokens.
        mask: causal mask of the texts, bool [1, 1, T, P + T].
        at: [B, S], the scored positions of the texts.
        prompt_ids: [B], prompt of each example; None if there is only one prompt.
        recorded: the prompts' key/value cache in reading state, if the prompts are not rows; None if they are, or
            without prompts.
    """

    def __init__(
        self, rows: PackedRows, mask: Tensor, at: Tensor, prompt_ids: Tensor | None, recorded: PromptStates | None
    ) -> None:
        self.rows, self.mask, self.at = rows, mask, at
        self.prompt_ids, self.recorded = prompt_ids, recorded
        self.shape = rows.packed_shape(prompt_ids)
        self._rotation: tuple[Tensor, Rotation] | None = None

    def rotation(self, position_embeddings: tuple[Tensor, Tensor], heads: Heads, scale: float) -> Rotation:
        cos, sin = position_embeddings
        if self._rotation is None or self._rotation[0] is not cos:
            self._rotation = (cos, Rotation.of(cos, sin, heads, scale))
        return self._rotation[1]

    def enter(self) -> PackedLayer:
        return PackedLayer(self, None if self.recorded is None else self.recorded.enter())

    def enter_last(self) -> LastPackedLayer:
        return LastPackedLayer(self, None if self.recorded is None else self.recorded.enter())

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        return self.enter().attend(module, query, key, value, **kwargs)


class PackedLayer(PackedAttention):
    """One layer's part of `PackedStates`."""

    def __init__(self, packed: PackedStates, recorded: LayerPromptKV | None) -> None:
        self.packed, self.recorded = packed, recorded

    def enter(self) -> PackedLayer:
        return self

    def rotation(self, position_embeddings: tuple[Tensor, Tensor], heads: Heads, scale: float) -> Rotation:
        return self.packed.rotation(position_embeddings, heads, scale)

    def attend_rotated(self, rotated: Tensor, values: Tensor, heads: Heads) -> Tensor | None:
        shape = self.packed.shape
        if shape is None or not self.packed.rows.prompt_length:
            return None
        if self.recorded is None:
            return packed_attention(rotated, values, heads, shape)
        prompt = self.recorded.recorded
        if prompt is None or torch.is_grad_enabled():
            return None
        ids = self.packed.prompt_ids
        if ids is not None:
            first = ids[:: shape.texts]
            prompt = (prompt[0][first], prompt[1][first])
        return recorded_attention(rotated, values, heads, shape, prompt)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        rows, prompts = self.packed.rows, None
        if rows.start:
            first, second, third = (rows.of_prompts(states) for states in (query, key, value))
            prompts = attend_own(module, first, second, third, None, **kwargs)[0]
        queries = rows.of_texts(query)
        return rows.joined(prompts, self.of_texts(module, queries, key, value, self.packed.mask, **kwargs))

    def of_texts(
        self, module: nn.Module, queries: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any
    ) -> Tensor:
        """Compute the attention of the texts' queries [B, heads, S, D] to packed keys and values: [B, S, heads, D]."""
        rows, own = self.packed.rows, self.recorded
        if rows.start:
            own = LayerPromptKV((rows.of_prompts(key), rows.of_prompts(value)), self.packed.prompt_ids, None)
        keys, values = rows.of_texts(key), rows.of_texts(value)
        if own is None:
            return attend_own(module, queries, keys, values, mask, **kwargs)[0]
        return attend_to_prompt(module, queries, keys, values, mask, own, **kwargs)[0]


class LastPackedLayer(PackedLayer):
    """The last layer's part of `PackedStates`."""

    kept: tuple[Tensor, Tensor] | None = None

    def attend_rotated(self, rotated: Tensor, values: Tensor, heads: Heads) -> None:
        return None

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        if self.kept is None:
            self.kept = (key, value)
            raise StopAfterKV
        rows, at = self.packed.rows, self.packed.at
        queries = query[0].unflatten(1, at.shape).transpose(0, 1)
        # The scored queries of the causal mask.
        mask = self.packed.mask[0, 0, at.clamp_max(rows.shape[1] - 1)][:, None]
        return self.of_texts(module, queries, *self.kept, mask, **kwargs).flatten(0, 1)[None]
