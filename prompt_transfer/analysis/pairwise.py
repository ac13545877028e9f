"""What indicators share: checked inputs, and products of all pairs in blocks. Shapes as in `indicators.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.utils.errors import UserError

# Rows of prompts in one block of inner products: a million numbers, which stay near the processor.
_BLOCK_ROWS = 1024


def accept_arrays(dimensions: int) -> Callable[[Callable[..., Tensor]], Callable[..., Any]]:
    """Arrays or tensors in, the same out; the first argument is checked to have `dimensions` (0: any, from 2)."""

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(first: Any, *others: Any, **options: Any) -> Any:
            values = [torch.as_tensor(value) for value in (first, *others)]
            values = [value if value.dtype in (torch.float32, torch.float64) else value.float() for value in values]
            found = values[0].ndim
            if found != dimensions if dimensions else found < 2:
                shape = " x ".join(map(str, values[0].shape))
                what = f"{dimensions} dimensions" if dimensions else "at least two dimensions"
                raise UserError(f"{function.__name__} takes {what}, one entry a prompt first; this is {shape}")
            matrix = function(*values, **options).to(values[0].dtype)
            return matrix if isinstance(first, Tensor) else matrix.cpu().numpy()

        return wrapped

    return decorate


def row_distances(flat: Tensor) -> Tensor:
    """Euclidean distances of rows, exactly symmetric and exactly 0 on the diagonal."""
    products = flat @ flat.T
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0).sqrt()
    return symmetric(distances).fill_diagonal_(0)


def cosines(flat: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(flat, dim=1)
    products = unit @ unit.T
    return symmetric(products).clamp(-1, 1)


def symmetric(matrix: Tensor) -> Tensor:
    """Without the last digit by which A with B may differ from B with A, which would break ties of ranks at random."""
    return (matrix + matrix.T) / 2


def overlap_of_groups(neurons: Tensor, size: int) -> Tensor:
    return torch.stack([cosines((group > 0).flatten(1).double()) for group in neurons.split(size, dim=1)])


def row_products(prompts: Tensor, others: Tensor | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Inner products of all rows, block by block on and above the diagonal: `[b, P, c, P]` for two slices of prompts.

    All at once would be `[N, P, N, P]`: 10 GB for 500 prompts of 100 rows.

    Args:
        prompts: `[N, P, H]`.
        others: of the second slice, `[N, P, H]`; default: the same.
    """
    number, length, width = prompts.shape
    others = prompts if others is None else others
    size = max(1, _BLOCK_ROWS // length)
    blocks = [slice(start, min(start + size, number)) for start in range(0, number, size)]
    for index, left in enumerate(blocks):
        for right in blocks[index:]:
            products = prompts[left].reshape(-1, width) @ others[right].reshape(-1, width).T
            yield left, right, products.view(left.stop - left.start, length, right.stop - right.start, length)
