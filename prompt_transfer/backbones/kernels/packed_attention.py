"""Attention of a packed batch with rotary positions, in bf16 on a CPU: queries, keys and values in one product.

Rows are those of N prompts and of the texts that follow them, equally many for each (`packing.py`). Per key head, the
queries of all texts of a prompt form one matrix without padding, which is multiplied with the prompt's keys once; heads
that share keys (grouped queries) are more rows of that matrix, so keys and values are not repeated. Only the products
within texts are padded.

Rotary positions (Su et al. 2021) rotate the pairs (i, i + D / 2) of a head. The merged weights have the first halves of
all heads first, then the second halves, so that the rotation is three kernels over long rows (`Rotation`).

Shape letters: N prompts, E texts of a prompt, T text tokens, P prompt tokens, R rows, A heads, K key heads, G = A / K,
D head width, F = D / 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.backbones.kernels.merged_linear import MergedLinear


@dataclass(frozen=True)
class Heads:
    """The heads of an attention layer: A, K and D."""

    queries: int
    keys: int
    width: int

    @property
    def rotated(self) -> int:
        """The number of columns with rotary positions."""
        return (self.queries + self.keys) * self.width

    def order(self) -> Tensor:
        """Return the order of the rows of the joined query, key and value weights: first halves, second halves, rest.

        The rows of each head keep their order within a half.
        """
        halves = torch.arange(self.rotated).view(-1, 2, self.width // 2).transpose(0, 1).flatten()
        return torch.cat([halves, torch.arange(self.rotated, self.rotated + self.keys * self.width)])


@dataclass(frozen=True)
class Rotation:
    """Tables of the rotary positions of packed rows.

    Attributes:
        cos: [R, (A + K) D], for both halves; the queries' columns include the factor of the scores.
        sin: [R, (A + K) F].
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor, heads: Heads, scale: float) -> Rotation:
        """Build the tables from transformers' `cos` and `sin` [1, R, D], whose two halves are equal."""
        half = heads.width // 2
        scales = torch.ones(heads.queries + heads.keys, 1, dtype=torch.float32)
        scales[: heads.queries] = scale
        cos, sin = ((table[0, :, None, :half].float() * scales).flatten(1).to(table.dtype) for table in (cos, sin))
        return cls(torch.cat([cos, cos], dim=1), sin)

    def apply(self, x: Tensor, inverse: bool = False) -> Tensor:
        """Rotate x [R, (A + K) D] by the positions, or gradients back; returns a new tensor."""
        first, second = x.chunk(2, dim=1)
        rotated = x * self.cos
        to_first, to_second = rotated.chunk(2, dim=1)
        to_first.addcmul_(second, self.sin, value=1 if inverse else -1)
        to_second.addcmul_(first, self.sin, value=-1 if inverse else 1)
        return rotated


class _RotatedProjection(torch.autograd.Function):
    """Rotated queries and keys [R, (A + K) D] and values [R, K D] of x [1, R, H], with a gradient for x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, merged: MergedLinear, rotation: Rotation) -> tuple[Tensor, Tensor]:
        joined = merged.product(x)[0]
        ctx.merged, ctx.rotation = merged, rotation
        width = rotation.cos.shape[1]
        return rotation.apply(joined[:, :width]), joined[:, width:].contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_rotated: Tensor, to_values: Tensor) -> tuple[Tensor, None, None]:
        gradient = torch.cat([ctx.rotation.apply(to_rotated, inverse=True), to_values], dim=1)
        return ctx.merged.input_gradient(gradient)[None], None, None


def rotated_projection(x: Tensor, merged: MergedLinear, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Compute rotated queries and keys [R, (A + K) D], first halves of all heads first, and values [R, K D].

    Args:
        x: [1, R, H], contiguous.
        merged: the joined projections, in `Heads.order`.
        rotation: the tables of the rows.
    """
    return _RotatedProjection.apply(x, merged, rotation)


def split_heads(rotated: Tensor, values: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [1, A, R, D], keys and values [1, K, R, D] as attention functions take them."""
    halves = rotated.view(len(rotated), 2, heads.queries + heads.keys, -1)
    whole = halves.permute(2, 0, 1, 3).flatten(2)[None]
    return (
        whole[:, : heads.queries],
        whole[:, heads.queries :],
        values.view(1, len(values), heads.keys, -1).transpose(1, 2),
    )


@dataclass(frozen=True)
class PackedShape:
    """The shape of a packed batch.

    Attributes:
        prompts: N; 1 without prompts.
        texts: E.
        length: T.
        prompt_length: P of the prompts in the rows; 0 for recorded prompts.
        rows: [text rows], the position in [N E T] of each text row; None without padding.
        places: [N E T], the text row of each position; None without padding.
    """

    prompts: int
    texts: int
    length: int
    prompt_length: int
    rows: Tensor | None
    places: Tensor | None

    @property
    def start(self) -> int:
        """The first row of the texts."""
        return self.prompts * self.prompt_length

    def padded(self, states: Tensor) -> Tensor:
        """Return text states [K, text rows, ...] at all positions: [K, N E T, ...]."""
        return states if self.places is None else states.index_select(1, self.places)

    def packed(self, states: Tensor) -> Tensor:
        """Return states at all positions [K, N E T, ...] without padding: [K, text rows, ...]."""
        return states if self.rows is None else states.index_select(1, self.rows)

    def spread(self, states: Tensor) -> Tensor:
        """Return text states [K, text rows, ...] at all positions, zero for padding: [K, N E T, ...]."""
        if self.rows is None:
            return states
        whole = states.new_zeros(len(states), self.prompts * self.texts * self.length, *states.shape[2:])
        return whole.index_copy_(1, self.rows, states)


def _add_causal(scores: Tensor, length: int) -> None:
    """Mask the later keys in scores [..., T G, T]."""
    mask = torch.full((length, length), torch.finfo(scores.dtype).min, dtype=scores.dtype).triu_(1)
    scores.view(-1, length, scores.shape[-2] // length, length).add_(mask[:, None])


def _softmax_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)


def _per_key_head(rotated: Tensor, values: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [K, R, G D], keys and values [K, R, D] of rows [R, (A + K) D] and [R, K D]."""
    count, half = len(rotated), heads.width // 2
    halves = rotated.view(count, 2, heads.queries + heads.keys, half)
    queries = halves[:, :, : heads.queries].unflatten(2, (heads.keys, -1)).permute(2, 0, 3, 1, 4)
    keys = halves[:, :, heads.queries :].permute(2, 0, 1, 3)
    return (
        queries.reshape(heads.keys, count, -1),
        keys.reshape(heads.keys, count, -1),
        values.view(count, heads.keys, -1).transpose(0, 1).contiguous(),
    )


def _write(
    gradients: tuple[Tensor, Tensor, Tensor], rotated: Tensor, values: Tensor, heads: Heads
) -> None:  # fmt: skip
    """Write the gradients of `_per_key_head`'s results into those of its rows."""
    queries, keys, own = gradients
    count, k, half = len(rotated), heads.keys, heads.width // 2
    halves = rotated.view(count, 2, heads.queries + k, half)
    halves[:, :, : heads.queries].unflatten(2, (k, -1)).copy_(
        queries.view(k, count, -1, 2, half).permute(1, 3, 0, 2, 4)
    )
    halves[:, :, heads.queries :].copy_(keys.view(k, count, 2, half).permute(1, 2, 0, 3))
    values.view(count, k, -1).copy_(own.view(k, count, -1).transpose(0, 1))


class _Texts:
    """The texts' queries, keys and values, and their attention to a prompt and themselves.

    Args:
        states: queries [K, text rows, G D], keys and values [K, text rows, D].
        heads: the layer's heads.
        shape: the batch.
    """

    def __init__(self, states: tuple[Tensor, Tensor, Tensor], heads: Heads, shape: PackedShape) -> None:
        self.states, self.shape, self.heads = states, shape, heads
        queries, keys, values = (shape.padded(each) for each in states)
        self.queries, self.keys, self.values = self.by_text(queries), self.by_text(keys), self.by_text(values)
        self.all_queries = self.by_prompt(states[0])

    def by_prompt(self, states: Tensor) -> Tensor:
        """View text rows [K, text rows, C D] as one matrix per key head and prompt: [K N, C text rows / N, D]."""
        return states.view(self.heads.keys * self.shape.prompts, -1, self.heads.width)

    def by_text(self, states: Tensor) -> Tensor:
        """View positions [K, N E T, C D] as one matrix per key head and text: [K N E, T C, D]."""
        return states.view(self.heads.keys * self.shape.prompts * self.shape.texts, -1, self.heads.width)

    def joined(self, first: Tensor, own: Tensor) -> Tensor:
        """Join scores of the prompt [K N, rows G, P] and of the texts [K N E, T G, T] to [K N, rows G, P + T]."""
        k, length = self.heads.keys, self.shape.length
        packed = self.shape.packed(own.view(k, self.shape.prompts * self.shape.texts * length, -1))
        return torch.cat([first, packed.view(*first.shape[:2], length)], dim=-1)

    def parts(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Split what `joined` joins; zero for padding."""
        k, length = self.heads.keys, self.shape.length
        count = weights.shape[0] * weights.shape[1] // (k * (self.heads.queries // k))
        own = self.shape.spread(weights[..., -length:].reshape(k, count, -1))
        return weights[..., :-length].contiguous(), own.view(len(self.keys), -1, length)

    def packed(self, states: Tensor) -> Tensor:
        """Return [K N E, T C, D] as packed rows [K, text rows, C D]."""
        k = self.heads.keys
        return self.shape.packed(states.view(k, self.shape.prompts * self.shape.texts * self.shape.length, -1))

    def attend(self, prompt_keys: Tensor, prompt_values: Tensor, output: Tensor) -> Tensor:
        """Write the attention to prompts [K N, P, D] and texts into text rows [text rows, A D]; return its weights."""
        own = torch.bmm(self.queries, self.keys.transpose(1, 2))
        _add_causal(own, self.shape.length)
        scores = self.joined(torch.bmm(self.all_queries, prompt_keys.transpose(1, 2)), own)
        weights = torch.softmax(scores, dim=-1)
        first, own = self.parts(weights)
        mixed = self.by_prompt(self.packed(torch.bmm(own, self.values))).baddbmm_(first, prompt_values)
        k = self.heads.keys
        output.view(len(output), k, -1).copy_(mixed.view(k, len(output), -1).transpose(0, 1))
        return weights

    def gradients(
        self, gradient: Tensor, weights: Tensor, prompt_keys: Tensor, prompt_values: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the gradients of `states`, and functions of the prompt's: those of its scores and of its output.

        Args:
            gradient: of the output, [K, text rows, G D].
            weights, prompt_keys, prompt_values: those of `attend`.
        """
        out, each = self.by_prompt(gradient), self.by_text(self.shape.spread(gradient))
        own = torch.bmm(each, self.values.transpose(1, 2))
        joined = self.joined(torch.bmm(out, prompt_values.transpose(1, 2)), own)
        first, own = self.parts(_softmax_gradient(joined, weights))
        w_first, w_own = self.parts(weights)
        queries = self.by_prompt(self.packed(torch.bmm(own, self.keys))).baddbmm_(first, prompt_keys)
        keys = self.packed(torch.bmm(own.transpose(1, 2), self.queries))
        values = self.packed(torch.bmm(w_own.transpose(1, 2), each))
        to_prompt = torch.bmm(first.transpose(1, 2), self.all_queries), torch.bmm(w_first.transpose(1, 2), out)
        return (queries, keys, values), to_prompt


class _PackedAttention(torch.autograd.Function):
    """Attention of prompts to themselves and of texts to their prompt and themselves."""

    @staticmethod
    def forward(ctx: Any, rotated: Tensor, values: Tensor, heads: Heads, shape: PackedShape) -> Tensor:
        k, p, start = heads.keys, shape.prompt_length, shape.start
        output = rotated.new_empty(len(rotated), heads.queries * heads.width)
        states = _per_key_head(rotated[:start], values[:start], heads)
        queries, keys, own = (each.view(k * shape.prompts, -1, heads.width) for each in states)
        scores = torch.bmm(queries, keys.transpose(1, 2))
        _add_causal(scores, p)
        weights = torch.softmax(scores, dim=-1)
        mixed = torch.bmm(weights, own).view(k, start, -1)
        output[:start].view(start, k, -1).copy_(mixed.transpose(0, 1))
        texts = _per_key_head(rotated[start:], values[start:], heads)
        text_weights = _Texts(texts, heads, shape).attend(keys, own, output[start:])
        ctx.save_for_backward(queries, keys, own, weights, *texts, text_weights)
        ctx.heads, ctx.shape = heads, shape
        return output[None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        queries, keys, own, weights, *texts, text_weights = ctx.saved_tensors
        heads, shape = ctx.heads, ctx.shape
        k, start = heads.keys, shape.start
        g = gradient[0].view(gradient.shape[1], k, -1).transpose(0, 1)
        rotated = gradient.new_empty(gradient.shape[1], heads.rotated)
        values = gradient.new_empty(gradient.shape[1], k * heads.width)
        to_texts, (to_keys, to_values) = _Texts(tuple(texts), heads, shape).gradients(
            g[:, start:].contiguous(), text_weights, keys, own
        )
        _write(to_texts, rotated[start:], values[start:], heads)
        out = g[:, :start].contiguous().view(queries.shape)
        scores = _softmax_gradient(torch.bmm(out, own.transpose(1, 2)), weights)
        to_prompts = (
            torch.bmm(scores, keys),
            to_keys.baddbmm_(scores.transpose(1, 2), queries),
            to_values.baddbmm_(weights.transpose(1, 2), out),
        )
        _write(to_prompts, rotated[:start], values[:start], heads)
        return rotated, values, None, None


def packed_attention(rotated: Tensor, values: Tensor, heads: Heads, shape: PackedShape) -> Tensor:
    """Compute causal attention of prompts and the texts that follow them.

    Args:
        rotated, values: from `rotated_projection`; the queries include the factor of the scores.
        heads: the layer's heads.
        shape: the batch, with prompts as rows.

    Returns:
        [1, R, A D]
    """
    output: Tensor = _PackedAttention.apply(rotated, values, heads, shape)
    return output


def recorded_attention(
    rotated: Tensor, values: Tensor, heads: Heads, shape: PackedShape, prompt: tuple[Tensor, Tensor]
) -> Tensor:
    """Compute causal attention of texts that follow recorded prompts, without gradients.

    Args:
        rotated, values: from `rotated_projection`, of texts alone.
        heads: the layer's heads.
        shape: the batch, with P = 0: no prompts as rows.
        prompt: keys and values [N, K, P, D] of the prompts.

    Returns:
        [1, R, A D]
    """
    output = rotated.new_empty(len(rotated), heads.queries * heads.width)
    keys, prompt_values = (states.transpose(0, 1).flatten(0, 1).to(rotated.dtype) for states in prompt)
    _Texts(_per_key_head(rotated, values, heads), heads, shape).attend(keys, prompt_values, output)
    return output[None]
