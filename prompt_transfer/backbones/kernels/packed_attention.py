"""Attention of a packed batch with rotary positions, in bf16 on a CPU: queries, keys and values in one product.

Rows are those of N prompts and of the texts that follow them, the same number for each (`packing.py`). Per key head, the
queries of all texts of a prompt form one matrix, which is multiplied with the prompt's keys once; heads that share keys
(grouped queries) are more rows of that matrix, so keys and values are not repeated.

Rotary positions (Su et al. 2021) rotate the pairs (i, i + D / 2) of a head. The merged weights have the first halves of
all heads first, then the second halves, so that the rotation is three kernels over long rows (`Rotation`).

Shape letters: N prompts, E texts of a prompt, T text tokens, P prompt tokens, R rows, A heads, K key heads, G = A / K, D
head width, F = D / 2.
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
    return _RotatedProjection.apply(x, merged, rotation)  # type: ignore[no-any-return]


def split_heads(rotated: Tensor, values: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [1, A, R, D], keys and values [1, K, R, D] as attention functions take them."""
    halves = rotated.view(len(rotated), 2, heads.queries + heads.keys, -1)
    whole = halves.permute(2, 0, 1, 3).flatten(2)[None]
    return whole[:, : heads.queries], whole[:, heads.queries :], values.view(1, len(values), heads.keys, -1).transpose(1, 2)


@dataclass(frozen=True)
class PackedShape:
    """The shape of a packed batch.

    Attributes:
        prompts: N; 1 without prompts.
        texts: E.
        length: T.
        prompt_length: P, of prompts in the rows.
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

    def texts_of(self, states: Tensor) -> Tensor:
        """Return the text rows of states [R, ...] with padding: [N, E, T, ...]."""
        rows = states[self.start :]
        padded = rows if self.places is None else rows.index_select(0, self.places)
        return padded.view(self.prompts, self.texts, self.length, *states.shape[1:])

    def prompts_of(self, states: Tensor) -> Tensor:
        """Return the prompts' rows of states [R, ...]: [N, P, ...]."""
        return states[: self.start].view(self.prompts, self.prompt_length, *states.shape[1:])

    def fill(self, packed: Tensor, texts: Tensor) -> None:
        """Write text states [N, E, T, ...] into the text rows of a packed tensor [R, C], without the padding."""
        rows = packed[self.start :]
        if self.rows is None:
            rows.view(texts.shape).copy_(texts)
        else:
            torch.index_select(texts.reshape(-1, packed.shape[1]), 0, self.rows, out=rows)

    def spread(self, packed: Tensor) -> Tensor:
        """Return the text rows of a gradient [R, ...] as [N, E, T, ...], zero for padding."""
        rows = packed[self.start :]
        if self.rows is not None:
            count = self.prompts * self.texts * self.length
            rows = rows.new_zeros(count, *rows.shape[1:]).index_copy_(0, self.rows, rows)
        return rows.view(self.prompts, self.texts, self.length, *packed.shape[1:])


def _causal(length: int, dtype: torch.dtype) -> Tensor:
    return torch.full((length, length), torch.finfo(dtype).min, dtype=dtype).triu_(1)


def _softmax_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)


class _Texts:
    """Queries, keys and values of the texts per key head: [N K, E G T, D], [N K E, T, D], [N K E, T, D]."""

    def __init__(self, rotated: Tensor, values: Tensor, heads: Heads, shape: PackedShape) -> None:
        n, k, width = shape.prompts, heads.keys, heads.width
        halves = shape.texts_of(rotated).unflatten(3, (2, heads.queries + k, width // 2))
        queries = halves[..., : heads.queries, :].unflatten(4, (k, -1))
        # [N, E, T, 2, K, G, F] -> [N, K, E, G, T, 2, F]
        self.queries = queries.permute(0, 4, 1, 5, 2, 3, 6).reshape(n * k, -1, width)
        self.keys = halves[..., heads.queries :, :].permute(0, 4, 1, 2, 3, 5).reshape(-1, shape.length, width)
        own = shape.texts_of(values).unflatten(3, (k, width))
        self.values = own.permute(0, 3, 1, 2, 4).reshape(-1, shape.length, width)
        self.heads, self.shape = heads, shape

    def attend(self, prompt_keys: Tensor, prompt_values: Tensor, output: Tensor) -> Tensor:
        """Write the attention to prompts [N K, P, D] and texts into rows [R, A D]; return its weights."""
        n, k, width, length = self.shape.prompts, self.heads.keys, self.heads.width, self.shape.length
        p, group = prompt_keys.shape[1], self.heads.queries // k
        each = self.queries.view(-1, group * length, width)
        own = torch.bmm(each, self.keys.transpose(1, 2))
        own.view(-1, group, length, length).add_(_causal(length, own.dtype))
        first = torch.bmm(self.queries, prompt_keys.transpose(1, 2))
        weights = torch.softmax(torch.cat([first, own.view(n * k, -1, length)], dim=-1), dim=-1)
        first, own = weights[..., :p].contiguous(), weights[..., p:].reshape(-1, group * length, length)
        mixed = torch.bmm(own, self.values).view(n * k, -1, width).baddbmm_(first, prompt_values)
        # [N, K, E, G, T, D] -> [N, E, T, K, G, D]
        mixed = mixed.view(n, k, -1, group, length, width).permute(0, 2, 4, 1, 3, 5)
        self.shape.fill(output, mixed)
        return weights


class _PromptRows:
    """Queries, keys and values of the prompts per key head: [N K, G P, D], [N K, P, D], [N K, P, D]."""

    def __init__(self, rotated: Tensor, values: Tensor, heads: Heads, shape: PackedShape) -> None:
        n, k, width = shape.prompts, heads.keys, heads.width
        halves = shape.prompts_of(rotated).unflatten(2, (2, heads.queries + k, width // 2))
        queries = halves[..., : heads.queries, :].unflatten(3, (k, -1))
        # [N, P, 2, K, G, F] -> [N, K, G, P, 2, F]
        self.queries = queries.permute(0, 3, 4, 1, 2, 5).reshape(n * k, -1, width)
        self.keys = halves[..., heads.queries :, :].permute(0, 3, 1, 2, 4).reshape(n * k, -1, width)
        self.values = shape.prompts_of(values).unflatten(2, (k, width)).transpose(1, 2).reshape(n * k, -1, width)


class _PackedAttention(torch.autograd.Function):
    """Attention of prompts to themselves and of texts to their prompt and themselves."""

    @staticmethod
    def forward(ctx: Any, rotated: Tensor, values: Tensor, heads: Heads, shape: PackedShape) -> Tensor:
        n, k, width, p = shape.prompts, heads.keys, heads.width, shape.prompt_length
        group = heads.queries // k
        output = rotated.new_empty(len(rotated), heads.queries * width)

        prompts = _PromptRows(rotated, values, heads, shape)
        scores = torch.bmm(prompts.queries, prompts.keys.transpose(1, 2))
        scores.view(n * k, group, p, p).add_(_causal(p, scores.dtype))
        to_prompts = torch.softmax(scores, dim=-1)
        mixed = torch.bmm(to_prompts, prompts.values).view(n, k, group, p, width)
        shape.prompts_of(output).view(n, p, k, group, width).copy_(mixed.permute(0, 3, 1, 2, 4))

        texts = _Texts(rotated, values, heads, shape)
        weights = texts.attend(prompts.keys, prompts.values, output)

        ctx.save_for_backward(
            prompts.queries, prompts.keys, prompts.values, to_prompts, texts.queries, texts.keys, texts.values, weights
        )
        ctx.heads, ctx.shape = heads, shape
        return output[None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        pq, pk, pv, to_prompts, tq, tk, tv, weights = ctx.saved_tensors
        heads, shape = ctx.heads, ctx.shape
        n, k, width, length, p = shape.prompts, heads.keys, heads.width, shape.length, shape.prompt_length
        group, g = heads.queries // heads.keys, gradient[0]
        # Texts: gradients of the queries' outputs [N K, E G T, D], of weights and of scores.
        out = shape.spread(g).unflatten(3, (k, group, width)).permute(0, 3, 1, 4, 2, 5).reshape(n * k, -1, width)
        each = out.view(-1, group * length, width)
        own = torch.bmm(each, tv.transpose(1, 2)).view(n * k, -1, length)
        scores = _softmax_gradient(torch.cat([torch.bmm(out, pv.transpose(1, 2)), own], dim=-1), weights)
        first, own = scores[..., :p].contiguous(), scores[..., p:].reshape(-1, group * length, length)
        w_first, w_own = weights[..., :p].contiguous(), weights[..., p:].reshape(-1, group * length, length)
        each_q = tq.view(-1, group * length, width)
        to_tq = torch.bmm(own, tk).view(n * k, -1, width).baddbmm_(first, pk)
        to_tk, to_tv = torch.bmm(own.transpose(1, 2), each_q), torch.bmm(w_own.transpose(1, 2), each)
        # Prompts: from their own queries and from those of the texts.
        pg = shape.prompts_of(g).unflatten(2, (k, group, width)).permute(0, 2, 3, 1, 4).reshape(n * k, -1, width)
        p_scores = _softmax_gradient(torch.bmm(pg, pv.transpose(1, 2)), to_prompts)
        to_pq = torch.bmm(p_scores, pk)
        to_pk = torch.bmm(p_scores.transpose(1, 2), pq).baddbmm_(first.transpose(1, 2), tq)
        to_pv = torch.bmm(to_prompts.transpose(1, 2), pg).baddbmm_(w_first.transpose(1, 2), out)

        rotated, values = g.new_empty(len(g), heads.rotated), g.new_empty(len(g), k * width)
        halves = shape.prompts_of(rotated).view(n, p, 2, heads.queries + k, width // 2)
        halves[..., : heads.queries, :].unflatten(3, (k, -1)).copy_(
            to_pq.view(n, k, group, p, 2, width // 2).permute(0, 3, 4, 1, 2, 5)
        )
        halves[..., heads.queries :, :].copy_(to_pk.view(n, k, p, 2, width // 2).permute(0, 2, 3, 1, 4))
        shape.prompts_of(values).view(n, p, k, width).copy_(to_pv.view(n, k, p, width).transpose(1, 2))
        size = (n, shape.texts, length)
        text = rotated[shape.start :].view(*size, -1) if shape.rows is None else g.new_empty(*size, heads.rotated)
        halves = text.view(*size, 2, heads.queries + k, width // 2)
        halves[..., : heads.queries, :].unflatten(4, (k, -1)).copy_(
            to_tq.view(n, k, shape.texts, group, length, 2, width // 2).permute(0, 2, 4, 5, 1, 3, 6)
        )
        halves[..., heads.queries :, :].copy_(
            to_tk.view(n, k, shape.texts, length, 2, width // 2).permute(0, 2, 3, 4, 1, 5)
        )
        if shape.rows is not None:
            shape.fill(rotated, text)
        shape.fill(values, to_tv.view(n, k, shape.texts, length, width).permute(0, 2, 3, 1, 4))
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
    keys, prompt_values = (states.flatten(0, 1).to(rotated.dtype) for states in prompt)
    _Texts(rotated, values, heads, shape).attend(keys, prompt_values, output)
    return output[None]
