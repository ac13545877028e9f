"""Attention as two matrix products with a softmax between them: training in bf16 on a CPU.

PyTorch's kernel for CPUs computes in blocks, which saves memory that short texts do not need, and in bf16 its backward
pass is slow: with 32 texts of 114 positions and 12 heads of 64 numbers forward and backward take 147 ms on two cores
with AMX and this 34 ms; with 13 queries over 113 keys 38 ms and 9 ms. Its forward pass alone is the faster one (13 ms
and 18 ms), and in float32 the kernel is as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import repeat_kv


def matmul_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As `sdpa_attention_forward` of transformers.

    Args:
        module: the attention layer; says whether it is causal and how many heads share a key.
        query: [B, heads, T, D].
        key, value: [B, key heads, S, D].
        attention_mask: [B or 1, heads or 1, T, S], True where a query may look, or numbers to be added, to which no
            gradient flows.
        scaling: of the scores; None: 1 / sqrt(D).
        is_causal: None: as the module says. Counts without a mask only.
        position_bias: [B or 1, heads, T, S], added to the scores; no gradient flows to it.

    Returns:
        [B, T, heads, D], and no attention weights.
    """
    key, value = repeat_heads(module, key), repeat_heads(module, value)
    length = query.shape[2]
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if causal and length > 1 and attention_mask is None:
        # Keys behind the last query are seen by nobody.
        key, value = key[:, :, :length], value[:, :, :length]
        if position_bias is not None:
            position_bias = position_bias[..., :length]
        attention_mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()[None, None]
    added = additive_mask(query.dtype, attention_mask, position_bias)
    output: Tensor = _MatmulAttention.apply(query, key, value, added, softmax_scale(query, scaling), dropout)
    return output, None


def softmax_scale(query: Tensor, scaling: float | None) -> float:
    """Of the scores of queries [..., D]: 1 / sqrt(D) where nothing else is said."""
    return query.shape[-1] ** -0.5 if scaling is None else scaling


def repeat_heads(module: nn.Module, states: Tensor) -> Tensor:
    """Keys or values [B, key heads, S, D] for all heads of the layer."""
    return repeat_kv(states, getattr(module, "num_key_value_groups", 1))


def additive_mask(dtype: torch.dtype, attention_mask: Tensor | None, position_bias: Tensor | None) -> Tensor | None:
    """What is added to the scores for a mask (bool or numbers) and a bias; None where there is neither."""
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        # Adding is several times as fast as filling in. Not minus infinity: a query that may look nowhere would become
        # NaN.
        lowest = torch.finfo(dtype).min
        if position_bias is not None:
            return torch.where(attention_mask, position_bias, lowest)
        return torch.zeros_like(attention_mask, dtype=dtype).masked_fill_(~attention_mask, lowest)
    if position_bias is None or attention_mask is None:
        return attention_mask if position_bias is None else position_bias
    return position_bias + attention_mask


class _MatmulAttention(torch.autograd.Function):
    """The two products and what is between them, with a backward pass that copies each tensor at most once."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, scale: float, dropout: float
    ) -> Tensor:
        size, heads, queries, width = query.shape
        keys = key.shape[2]
        q = (query * scale).reshape(-1, queries, width)
        k, v = (states.reshape(-1, keys, states.shape[-1]) for states in (key, value))
        scores = torch.bmm(q, k.transpose(1, 2)).view(size, heads, queries, keys)
        if added is not None:
            scores.add_(added)
        shares = torch.softmax(scores, dim=-1).view(-1, queries, keys)
        kept = None if dropout == 0 else torch.empty_like(shares).bernoulli_(1 - dropout).div_(1 - dropout)
        used = shares if kept is None else shares * kept
        ctx.save_for_backward(q, k, v, shares, kept)
        ctx.scale, ctx.heads = scale, heads
        return torch.bmm(used, v).view(size, heads, queries, -1).transpose(1, 2).contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shares, kept = ctx.saved_tensors
        g = gradient.transpose(1, 2).reshape(*q.shape[:2], -1)
        to_shares = torch.bmm(g, v.transpose(1, 2))
        used = shares
        if kept is not None:
            to_shares, used = to_shares.mul_(kept), shares * kept
        # As the softmax of torch does it.
        to_scores = torch._softmax_backward_data(to_shares, shares, -1, shares.dtype)
        found = (
            torch.bmm(to_scores, k).mul_(ctx.scale),
            torch.bmm(to_scores.transpose(1, 2), q),
            torch.bmm(used.transpose(1, 2), g),
        )
        return *(each.unflatten(0, (-1, ctx.heads)) for each in found), None, None, None
