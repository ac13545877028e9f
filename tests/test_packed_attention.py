"""Attention of packed batches, rotary projections and merged layers, against the library's functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from prompt_transfer.backbones.kernels import merged_linear as merged_module
from prompt_transfer.backbones.kernels.gated_mlp import swiglu
from prompt_transfer.backbones.kernels.merged_linear import MergedLinear, merged_linear
from prompt_transfer.backbones.kernels.packed_attention import (
    Heads,
    Rotation,
    packed_attention,
    rotated_projection,
    split_heads,
)
from prompt_transfer.backbones.packing import PackedRows

HEADS = Heads(queries=6, keys=2, width=8)
H, P = 12, 5


@pytest.fixture(autouse=True)
def _plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute merged products without oneDNN, in any dtype."""
    monkeypatch.setattr(merged_module, "linear_product", functional.linear)
    monkeypatch.setattr(merged_module, "reordered", lambda weight: weight)


def layers(bias: bool, sizes: tuple[int, ...] = (48, 16, 16)) -> list[nn.Linear]:
    torch.manual_seed(0)
    made = [nn.Linear(H, size, bias=bias).double() for size in sizes]
    for layer in made:
        layer.requires_grad_(False)
    return made


def positions(rows: int) -> tuple[Tensor, Tensor]:
    """Return `cos` and `sin` [1, R, D] of arbitrary positions, as a Llama has them."""
    angles = torch.rand(rows, HEADS.width // 2, generator=torch.Generator().manual_seed(1)).double() * 6
    angles = torch.cat([angles, angles], dim=1)[None]
    return angles.cos(), angles.sin()


def packed_inputs(lengths: list[list[int]]) -> tuple[PackedRows, Tensor | None, int]:
    """Return the rows of texts of some lengths, per prompt, their prompt ids, and R."""
    flat = torch.tensor([length for texts in lengths for length in texts])
    mask = (torch.arange(int(flat.max())) < flat[:, None]).long()
    ids = torch.arange(len(lengths)).repeat_interleave(len(lengths[0])) if len(lengths) > 1 else None
    return PackedRows(mask, len(lengths), P), ids, len(lengths) * P + int(flat.sum())


@pytest.mark.parametrize("bias", [False, True])
def test_projection_is_that_of_a_llama(bias: bool) -> None:
    q, k, v = layers(bias)
    x = torch.randn(1, 7, H, dtype=torch.float64, requires_grad=True)
    cos, sin = positions(7)
    merged = MergedLinear([q, k, v], HEADS.order())
    ours = split_heads(*rotated_projection(x, merged, Rotation.of(cos, sin, HEADS, 0.3)), HEADS)
    heads = [layer(x).view(1, 7, -1, HEADS.width).transpose(1, 2) for layer in (q, k, v)]
    query, key = apply_rotary_pos_emb(heads[0], heads[1], cos, sin)
    for found, expected in zip(ours, (query * 0.3, key, heads[2]), strict=True):
        torch.testing.assert_close(found, expected)
    scales = [torch.linspace(-1, 1, each.numel(), dtype=each.dtype).view_as(each) for each in ours]
    gradients = [
        torch.autograd.grad(sum((a * b).sum() for a, b in zip(states, scales, strict=True)), x)[0]
        for states in (ours, (query * 0.3, key, heads[2]))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("lengths", [[[4, 4, 4]], [[4, 1, 3]], [[3, 3], [3, 3]], [[2, 4], [5, 1], [3, 3]]])
def test_attention_is_that_of_each_example_alone(lengths: list[list[int]]) -> None:
    rows, ids, count = packed_inputs(lengths)
    shape = rows.packed_shape(ids)
    assert shape is not None
    torch.manual_seed(0)
    rotated = torch.randn(count, HEADS.rotated, dtype=torch.float64, requires_grad=True)
    values = torch.randn(count, HEADS.keys * HEADS.width, dtype=torch.float64, requires_grad=True)
    output = packed_attention(rotated, values, HEADS, shape)
    query, key, value = split_heads(rotated, values, HEADS)
    key, value = (states.repeat_interleave(3, dim=1) for states in (key, value))
    expected, start = torch.empty_like(output), rows.start
    for prompt, texts in enumerate(lengths):
        own = slice(prompt * P, (prompt + 1) * P)
        for length in texts:
            whole = torch.cat([torch.arange(count)[own], torch.arange(start, start + length)])
            parts = (states[:, :, whole] for states in (query, key, value))
            alone = functional.scaled_dot_product_attention(*parts, is_causal=True, scale=1.0)
            alone = alone.transpose(1, 2).flatten(2)
            expected = expected.index_copy(1, whole[P:], alone[:, P:]).index_copy(1, whole[:P], alone[:, :P])
            start += length
    torch.testing.assert_close(output, expected)
    scale = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    found, wanted = (torch.autograd.grad((each * scale).sum(), (rotated, values)) for each in (output, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_prompts_do_not_mix() -> None:
    rows, ids, count = packed_inputs([[2, 4], [5, 1]])
    shape = rows.packed_shape(ids)
    assert shape is not None
    rotated, values = torch.randn(count, HEADS.rotated), torch.randn(count, HEADS.keys * HEADS.width)
    # The first prompt and its texts.
    broken = torch.cat([torch.arange(P), torch.arange(2 * P, 2 * P + 6)])
    rotated[broken] = torch.nan
    values[broken] = torch.nan
    finite = packed_attention(rotated.requires_grad_(), values, HEADS, shape)
    kept = torch.ones(count, dtype=torch.bool)
    kept[broken] = False
    assert finite[0, kept].isfinite().all()
    (gradient,) = torch.autograd.grad(finite[0, kept].sum(), rotated)
    assert gradient[kept].isfinite().all()


def test_unequal_counts_and_other_orders_have_no_shape() -> None:
    mask = torch.ones(4, 3, dtype=torch.long)
    assert PackedRows(mask, 2, P).packed_shape(torch.tensor([0, 1, 0, 1])) is None
    assert PackedRows(mask, 2, P).packed_shape(torch.tensor([0, 0, 0, 1])) is None
    assert PackedRows(mask, 2, P).packed_shape(torch.tensor([1, 1, 0, 0])) is None
    assert PackedRows(mask, 2, P).packed_shape(torch.tensor([1, 1, 1, 1])) is None
    assert PackedRows(mask, 2, P).packed_shape(None) is None
    unequal = PackedRows(torch.tensor([[1, 1], [1, 0], [1, 0], [1, 0]]), 2, P)
    assert unequal.packed_shape(torch.tensor([0, 0, 1, 1])) is None
    recorded = PackedRows(mask, 0, P).packed_shape(torch.tensor([1, 1, 0, 0]))
    assert recorded is not None
    assert (recorded.prompts, recorded.texts, recorded.start) == (2, 2, 0)


@pytest.mark.parametrize("bias", [False, True])
def test_gated_activation_and_merged_layers(bias: bool) -> None:
    gate, up = layers(bias, (20, 20))
    x = torch.randn(1, 6, H, dtype=torch.float64, requires_grad=True)
    found = swiglu(x, MergedLinear([gate, up]))
    expected = functional.silu(gate(x)) * up(x)
    torch.testing.assert_close(found, expected)
    scale = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    torch.testing.assert_close(*(torch.autograd.grad((each * scale).sum(), x)[0] for each in (found, expected)))
    both = merged_linear(x, MergedLinear([gate, up]))
    torch.testing.assert_close(both, torch.cat([gate(x), up(x)], dim=-1))


def test_changed_and_replaced_weights_are_read_again() -> None:
    (layer,) = layers(True, (16,))
    merged = MergedLinear([layer])
    x = torch.randn(2, H, dtype=torch.float64)
    before = merged.product(x)
    layer.weight.mul_(2)
    assert not torch.equal(merged.product(x), before)
    torch.testing.assert_close(merged.product(x), layer(x))
    layer.weight = nn.Parameter(torch.ones(16, H, dtype=torch.float64), requires_grad=False)
    torch.testing.assert_close(merged.product(x), layer(x))
    torch.testing.assert_close(
        merged.input_gradient(torch.ones(2, 16, dtype=torch.float64)), torch.full((2, H), 16.0).double()
    )
