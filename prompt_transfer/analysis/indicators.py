"""Indicators: predictors of transfer that need no score of the source prompt on the target task.

Each function takes one entry per prompt, `[N, ...]`, and returns a matrix `[N, N]` of the input's kind (tensor or
array) and dtype, at least float32: row = target, column = source, larger = more similar or better expected transfer.
Shape letters: N prompts, P prompt tokens, H hidden, L layers, F neurons a layer.

Sources: "paper" is Su et al. 2022 (code of release 1.0, caculate_metric_value_for_correlation.py:20-130).

To add an indicator, write the function and add a row to `_ROWS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prompt_transfer.analysis.data_indicators import (
    fisher_cosine,
    gradient_cosine,
    leep,
    neuron_overlap_inputs,
    neuron_overlap_skill,
    neuron_overlap_target_inputs,
)
from prompt_transfer.analysis.pairwise import (
    accept_arrays,
    cosines,
    overlap_of_groups,
    row_distances,
    row_products,
    symmetric,
)

# Embeddings of the paper -------------------------------------------------------------------------------------------


@accept_arrays(3)
def euclidean_concat(prompts: Tensor) -> Tensor:
    """Return E_concat: 1 / (1 + |vec(A) - vec(B)|), prompts `[N, P, H]`; symmetric, in (0, 1], 1 with itself.

    Source: paper, section 6 ("EuclideanDistances").
    """
    # Double precision: inner products of equal prompts cancel, and a copy must have distance 0.
    flat = prompts.flatten(1).double()
    return 1 / (1 + row_distances(flat - flat.mean(dim=0)))


@accept_arrays(3)
def euclidean_average(prompts: Tensor) -> Tensor:
    """Return E_average: 1 / (1 + mean over all i, j of |A_i - B_j|), prompts `[N, P, H]`; symmetric, in (0, 1].

    The mean is over all P x P pairs of prompt tokens: a prompt's similarity to itself is below 1, and token order has
    no effect. Source: paper, section 6 ("EuclideanDistances_per_token").
    """
    # Centring reduces rounding errors and leaves distances unchanged.
    rows = prompts - prompts.mean(dim=(0, 1))
    # Augmented vectors give squared distances, -2 <a, b> + |a|^2 + |b|^2, in a single matrix product.
    squares, ones = rows.square().sum(dim=2, keepdim=True), torch.ones_like(rows[:, :, :1])
    left_rows, right_rows = torch.cat([-2 * rows, squares, ones], dim=2), torch.cat([rows, ones, squares], dim=2)
    total = prompts.new_zeros(len(prompts), len(prompts))
    for left, right, products in row_products(left_rows, right_rows):
        distances = products.clamp_(min=0).sqrt_()
        if left == right:
            # Zero self-distances exactly; rounding leaves a residue.
            distances.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).zero_()
        block = distances.mean(dim=3).mean(dim=1)
        total[left, right] = block
        total[right, left] = block.T
    return 1 / (1 + symmetric(total))


@accept_arrays(3)
def cosine_concat(prompts: Tensor) -> Tensor:
    """Return C_concat: cos(vec(A), vec(B)), prompts `[N, P, H]`; symmetric, in [-1, 1], 1 with itself.

    A prompt of zeros has cosine 0 with every prompt. Source: paper, section 6 ("CosineSimilarity").
    """
    return cosines(prompts.flatten(1).double())


@accept_arrays(3)
def cosine_average(prompts: Tensor) -> Tensor:
    """Return C_average: mean over i, j of cos(A_i, B_j), prompts `[N, P, H]`; symmetric, in [-1, 1], < 1 with itself.

    The mean of P x P cosines is the inner product of two means of unit vectors, so no pairs are formed.
    Source: paper, section 6 ("CosineSimilarity_per_token").
    """
    means = torch.nn.functional.normalize(prompts.double(), dim=2).mean(dim=1)
    return symmetric(means @ means.T)


# Embeddings of later work ------------------------------------------------------------------------------------------


@accept_arrays(3)
def max_pairwise(prompts: Tensor) -> Tensor:
    """Return MAX: mean over target tokens i of max over source tokens j of <T_i, S_j>, prompts `[N, P, H]`.

    Not symmetric: row = target, column = source. Unbounded, invariant to token order, grows with the norm.
    Source: Lin et al. 2024, the best indicator in their comparison.
    """
    matrix = prompts.new_zeros(len(prompts), len(prompts))
    for left, right, products in row_products(prompts):
        matrix[left, right] = products.amax(dim=3).mean(dim=1)
        matrix[right, left] = products.amax(dim=1).mean(dim=2).T
    return matrix


@accept_arrays(3)
def task_vector_dot(prompts: Tensor, initial: Tensor) -> Tensor:
    """Return <mean token of A - A_0, mean token of B - B_0>, prompts and their initializations `[N, P, H]`.

    Symmetric, unbounded, invariant to token order; needs no data, like `max_pairwise`. Source: DTVG (task
    vectors of prompts).
    """
    means = (prompts.double() - initial.double()).mean(dim=1)
    return symmetric(means @ means.T)


@accept_arrays(3)
def task_vector_cosine(prompts: Tensor, initial: Tensor) -> Tensor:
    """Return cos(vec(A - A_0), vec(B - B_0)), prompts and their initializations `[N, P, H]`; symmetric, in [-1, 1].

    `cosine_concat` without the similarity due to a shared initialization. Source: task prompt vectors (Belanec et al.
    2024).
    """
    return cosines((prompts.double() - initial.double()).flatten(1))


@accept_arrays(3)
def linear_cka(prompts: Tensor) -> Tensor:
    """Return linear CKA: |A'B|^2 / (|A'A| |B'B|), Frobenius norms of centred prompts `[N, P, H]`, A' the transpose.

    Symmetric, in [0, 1], 1 with itself; invariant to rotation and scale, but not to the token order. For P < H
    unrelated prompts have high values: only differences are meaningful. Source: Kornblith et al. 2019.
    """
    centred = prompts.double() - prompts.double().mean(dim=1, keepdim=True)
    # |A'B|^2 is the inner product of AA' and BB', which are only P x P.
    return cosines((centred @ centred.mT).flatten(1))


# Neurons -----------------------------------------------------------------------------------------------------------


@accept_arrays(0)
def neuron_overlap(neurons: Tensor) -> Tensor:
    """Return ON: |A and B| / sqrt(|A| |B|) of the sets of active neurons (> 0); neurons `[N, L, F]` or `[N, L * F]`.

    Equals the cosine of 0/1 vectors. Symmetric, in [0, 1], 1 with itself; 0 for a prompt without active neurons.
    Source: paper, section 6 ("ActivatedNeurons"), all layers.
    """
    return cosines((neurons > 0).flatten(1).double())


@accept_arrays(3)
def neuron_overlap_per_layer(neurons: Tensor) -> Tensor:
    """Return ON per layer: neurons `[N, L, F]` -> `[L, N, N]`, layer 0 closest to the input; see `neuron_overlap`."""
    return overlap_of_groups(neurons, 1)


@accept_arrays(3)
def neuron_overlap_per_group(neurons: Tensor) -> Tensor:
    """Return ON per group of three layers, the last may be smaller: `[N, L, F]` -> `[ceil(L / 3), N, N]`.

    Source: paper, section 6 ("ActivatedNeurons_k", layers k, k + 1 and k + 2).
    """
    return overlap_of_groups(neurons, 3)


@accept_arrays(3)
def neuron_overlap_bottom(neurons: Tensor) -> Tensor:
    """Return ON in the three layers closest to the input, neurons `[N, L, F]`; see `neuron_overlap`."""
    return cosines((neurons[:, :3] > 0).flatten(1).double())


@accept_arrays(3)
def neuron_overlap_top(neurons: Tensor) -> Tensor:
    """Return ON in the last three layers, neurons `[N, L, F]`; see `neuron_overlap`. The paper's choice for T5-XXL."""
    return cosines((neurons[:, -3:] > 0).flatten(1).double())


@accept_arrays(0)
def neuron_overlap_rare(neurons: Tensor) -> Tensor:
    """Return ON with neurons weighted by log(N / n), n the number of prompts that activate a neuron.

    Neurons `[N, L, F]` or `[N, L * F]`. The sum of weights over A and B, divided by the root of the product of the sums
    over A and over B. Symmetric, in [0, 1], 1 with itself; neurons that all prompts activate have weight 0, and a
    prompt that activates only those has overlap 0 with every prompt. Introduced here; weights are inverse document
    frequencies.
    """
    active = (neurons > 0).flatten(1).double()
    weights = (len(active) / active.sum(dim=0).clamp(min=1)).log()
    return cosines(active * weights.sqrt())


# Confounders, which an indicator must beat -------------------------------------------------------------------------


@accept_arrays(3)
def norm_similarity(prompts: Tensor) -> Tensor:
    """Return 1 / (1 + | |A| - |B| |), Frobenius norms of prompts `[N, P, H]`; symmetric, in (0, 1], 1 with itself.

    The part of `euclidean_concat` that depends on norms only.
    """
    norms = prompts.double().flatten(1).norm(dim=1)
    return 1 / (1 + (norms[:, None] - norms[None, :]).abs())


@accept_arrays(3)
def source_norm(prompts: Tensor) -> Tensor:
    """Return the Frobenius norm of the source, prompts `[N, P, H]`; constant over rows, non-negative."""
    return prompts.double().flatten(1).norm(dim=1).expand(len(prompts), -1)


def data_size(sizes: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return log10(1 + training examples of the source), `[N]` -> `[N, N]`; constant over rows, non-negative."""
    return np.tile(np.log10(1 + np.asarray(sizes, dtype=np.float64)), (len(sizes), 1))


def label_word_overlap(words: Sequence[Collection[str]]) -> np.ndarray:
    """Return |A and B| / |A or B| of the label words of two tasks, N collections -> `[N, N]`; symmetric, in [0, 1].

    Ignores case and surrounding whitespace. A task without label words scores 0 with every task.
    """
    sets = [{word.strip().lower() for word in entry} for entry in words]
    return np.array([[len(a & b) / max(len(a | b), 1) for b in sets] for a in sets], dtype=np.float64)


class Indicator(NamedTuple):
    """A registered indicator.

    Attributes:
        function: called with the inputs named by `needs`, in that order.
        needs: any of `prompts` `[N, P, H]`, `initial` `[N, P, H]`, `neurons` `[N, L, F]`, `label_words` (N
            collections), `data_sizes` `[N]`, and further tensors of neuron files (`data_indicators.py`): `active`,
            `task_active`, `leep` and `own_task`, `predictivity`, `fisher`, `gradient`.
        group: `embeddings`, `neurons`, `labels` (of the target) or `confounder`.
    """

    function: Callable[..., Any]
    needs: tuple[str, ...]
    group: str


_ROWS = (
    *(
        Indicator(function, ("prompts",), "embeddings")
        for function in (
            *(euclidean_concat, euclidean_average, cosine_concat, cosine_average),
            *(max_pairwise, linear_cka),
        )
    ),
    Indicator(task_vector_dot, ("prompts", "initial"), "embeddings"),
    Indicator(task_vector_cosine, ("prompts", "initial"), "embeddings"),
    *(
        Indicator(function, ("neurons",), "neurons")
        for function in (
            *(neuron_overlap, neuron_overlap_rare, neuron_overlap_bottom, neuron_overlap_top),
            *(neuron_overlap_per_group, neuron_overlap_per_layer),
        )
    ),
    Indicator(neuron_overlap_inputs, ("active",), "neurons"),
    Indicator(neuron_overlap_target_inputs, ("task_active", "own_task"), "neurons"),
    Indicator(neuron_overlap_skill, ("neurons", "predictivity"), "neurons"),
    Indicator(fisher_cosine, ("fisher",), "labels"),
    Indicator(gradient_cosine, ("gradient",), "labels"),
    Indicator(leep, ("leep", "own_task"), "labels"),
    Indicator(norm_similarity, ("prompts",), "confounder"),
    Indicator(source_norm, ("prompts",), "confounder"),
    Indicator(label_word_overlap, ("label_words",), "confounder"),
    Indicator(data_size, ("data_sizes",), "confounder"),
)
INDICATORS: dict[str, Indicator] = {row.function.__name__: row for row in _ROWS}


def compute(inputs: Mapping[str, Any], names: Collection[str] = tuple(INDICATORS)) -> dict[str, np.ndarray]:
    """Compute every indicator that the inputs allow.

    Args:
        inputs: values by the names in `Indicator.needs`; None counts as missing.
        names: the indicators to compute.

    Returns:
        name -> `[N, N]`; an indicator that returns `[K, N, N]` yields `name/00`, `name/01`, ...
    """
    matrices: dict[str, np.ndarray] = {}
    for name, row in INDICATORS.items():
        values = [inputs.get(need) for need in row.needs]
        if name not in names or any(value is None for value in values):
            continue
        matrix = np.asarray(row.function(*values))
        parts = {name: matrix} if matrix.ndim == 2 else {f"{name}/{i:02d}": part for i, part in enumerate(matrix)}
        matrices |= parts
    return matrices
