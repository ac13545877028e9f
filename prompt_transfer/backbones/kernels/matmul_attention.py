"""Attention as two matrix products with a softmax between them, for training in bf16 on a CPU.

PyTorch's SDPA kernel for CPUs computes in blocks, which saves memory that short texts do not need, and its backward
pass is slow in bf16. Forward plus backward for 32 texts and 12 heads of width 64, on two cores with AMX: 34 ms here and
147 ms with SDPA for 114 positions, 9 ms and 38 ms for 13 queries over 113 keys. SDPA is faster for the forward pass
alone (13 ms instead of 18 ms) and as fast in float32.
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
    """Compute attention as `sdpa_attention_forward` of transformers does.

    Args:
        module: the attention layer; gives the default of `is_causal` and the number of heads per key head.
        query: [B, heads, T, D].
        key, value: [B, key heads, S, D].
        attention_mask: [B or 1, heads or 1, T, S], bool (True: attend) or additive, without a gradient.
        scaling: factor of the scores; None for 1 / sqrt(D).
        is_causal: None for the module's own setting; ignored with a mask.
        position_bias: [B or 1, heads, T, S], added to the scores, without a gradient.

    Returns:
        Output [B, T, heads, D], and None for the attention weights.
    """
    key, value = repeat_heads(module, key), repeat_heads(module, value)
    length = query.shape[2]
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if causal and length > 1 and attention_mask is None:
        # No query sees the keys after the last query.
        key, value = key[:, :, :length], value[:, :, :length]
        if position_bias is not None:
            position_bias = position_bias[..., :length]
        attention_mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()[None, None]
    added = additive_mask(query.dtype, attention_mask, position_bias)
    output: Tensor = _MatmulAttention.apply(query, key, value, added, softmax_scale(query, scaling), dropout)
    return output, None


def softmax_scale(query: Tensor, scaling: float | None) -> float:
    """Return `scaling`, or 1 / sqrt(D) for queries [..., D] if it is None."""
    return query.shape[-1] ** -0.5 if scaling is None else scaling


def repeat_heads(module: nn.Module, states: Tensor) -> Tensor:
    """Repeat keys or values [B, key heads, S, D] for all heads of the layer: [B, heads, S, D]."""
    return repeat_kv(states, getattr(module, "num_key_value_groups", 1))


def additive_mask(dtype: torch.dtype, attention_mask: Tensor | None, position_bias: Tensor | None) -> Tensor | None:
    """Combine a mask (bool or additive) and a position bias to one additive mask; None if both are None."""
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        # Adding is several times faster than `masked_fill`. Minus infinity would give NaN for fully masked queries.
        lowest = torch.finfo(dtype).min
        if position_bias is not None:
            return torch.where(attention_mask, position_bias, lowest)
        return torch.zeros_like(attention_mask, dtype=dtype).masked_fill_(~attention_mask, lowest)
    if position_bias is None or attention_mask is None:
        return attention_mask if position_bias is None else position_bias
    return position_bias + attention_mask


class _MatmulAttention(torch.autograd.Function):
    """Matrix products and softmax, with a backward pass that copies each tensor at most once."""

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
        weights = torch.softmax(scores, dim=-1).view(-1, queries, keys)
        keep = None if dropout == 0 else torch.empty_like(weights).bernoulli_(1 - dropout).div_(1 - dropout)
        dropped = weights if keep is None else weights * keep
        ctx.save_for_backward(q, k, v, weights, keep)
        ctx.scale, ctx.heads = scale, heads
        return torch.bmm(dropped, v).view(size, heads, queries, -1).transpose(1, 2).contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, keep = ctx.saved_tensors
        g = gradient.transpose(1, 2).reshape(*q.shape[:2], -1)
        to_weights = torch.bmm(g, v.transpose(1, 2))
        dropped = weights
        if keep is not None:
            to_weights, dropped = to_weights.mul_(keep), weights * keep
        # The backward pass of torch.softmax.
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        gradients = (
            torch.bmm(to_scores, k).mul_(ctx.scale),
            torch.bmm(to_scores.transpose(1, 2), q),
            torch.bmm(dropped.transpose(1, 2), g),
        )
        return *(each.unflatten(0, (-1, ctx.heads)) for each in gradients), None, None, None
