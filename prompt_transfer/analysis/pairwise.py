"""Shared parts of the indicators: input checks, and blockwise products of all pairs. Shapes as in `indicators.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.utils.errors import UserError

# Prompt tokens per block of inner products: a million numbers, which fit in cache.
_BLOCK_ROWS = 1024


def accept_arrays(dimensions: int) -> Callable[[Callable[..., Tensor]], Callable[..., Any]]:
    """Decorate a tensor function to accept and return arrays too, and check the dimensions of its first argument.

    Args:
        dimensions: required number of dimensions; 0: any, at least 2.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(first: Any, *others: Any, **options: Any) -> Any:
            values = [torch.as_tensor(value) for value in (first, *others)]
            values = [value if value.dtype in (torch.float32, torch.float64) else value.float() for value in values]
            found = values[0].ndim
            if found != dimensions if dimensions else found < 2:
                shape = " x ".join(map(str, values[0].shape))
                needed = f"{dimensions} dimensions" if dimensions else "at least two dimensions"
                raise UserError(f"{function.__name__} takes {needed}, the first over prompts; this is {shape}")
            matrix = function(*values, **options).to(values[0].dtype)
            return matrix if isinstance(first, Tensor) else matrix.cpu().numpy()

        return wrapped

    return decorate


def row_distances(flat: Tensor) -> Tensor:
    """Return Euclidean distances between rows, exactly symmetric and exactly 0 on the diagonal."""
    products = flat @ flat.T
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0).sqrt()
    return symmetric(distances).fill_diagonal_(0)


def cosines(flat: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(flat, dim=1)
    products = unit @ unit.T
    return symmetric(products).clamp(-1, 1)


def symmetric(matrix: Tensor) -> Tensor:
    """Symmetrize a matrix: rounding differences between (A, B) and (B, A) would break rank ties at random."""
    return (matrix + matrix.T) / 2


def overlap_of_groups(neurons: Tensor, size: int) -> Tensor:
    return torch.stack([cosines((group > 0).flatten(1).double()) for group in neurons.split(size, dim=1)])


def row_products(prompts: Tensor, others: Tensor | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield inner products of all prompt tokens, `[b, P, c, P]` for two slices of prompts, on and above the diagonal.

    Blockwise, because the full `[N, P, N, P]` takes 10 GB for 500 prompts of 100 tokens.

    Args:
        prompts: `[N, P, H]`.
        others: prompts of the second slice, `[N, P, H]`; None: the same.
    """
    number, length, width = prompts.shape
    others = prompts if others is None else others
    size = max(1, _BLOCK_ROWS // length)
    blocks = [slice(start, min(start + size, number)) for start in range(0, number, size)]
    for index, left in enumerate(blocks):
        for right in blocks[index:]:
            products = prompts[left].reshape(-1, width) @ others[right].reshape(-1, width).T
            yield left, right, products.view(left.stop - left.start, length, right.stop - right.start, length)
