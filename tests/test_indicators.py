"""Indicators: values worked out by hand, and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from prompt_transfer.analysis import indicators, pairwise
from prompt_transfer.analysis.indicators import INDICATORS, compute
from prompt_transfer.utils.errors import UserError

DIRECTED = ("max_pairwise", "source_norm", "data_size", "neuron_overlap_target_inputs", "leep")
SYMMETRIC = [name for name in INDICATORS if name not in DIRECTED]
# Two prompts of two tokens: A is (3, 4) and (0, 0), B is (0, 4) and (0, 3).
A, B = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 3.0]])
PAIR = torch.stack([A, B])


def some(number: int = 5, length: int = 4, width: int = 6) -> Tensor:
    return torch.randn(number, length, width, generator=torch.Generator().manual_seed(0))


def inputs() -> dict[str, object]:
    return {
        "prompts": some(),
        "initial": some().flip(0),
        "neurons": some(5, 7, 50),
        "active": some(5, 7, 50).sigmoid(),
        "task_active": some(5, 4, 7 * 50).sigmoid().view(5, 4, 7, 50),
        "own_task": torch.tensor([2, 0, 1, 1, 3]),
        "predictivity": some(5, 7, 50).flip(0),
        "fisher": some().square(),
        "gradient": some(),
        "leep": some(5, 4, 1)[:, :, 0],
        "label_words": [["bad", "good"], ["no", "yes"], ["bad", "fine", "good"], [], ["No ", "yes"]],
        "data_sizes": [9, 99, 999, 0, 99],
    }


def test_euclidean_concat_by_hand() -> None:
    # The differences are (3, 0) and (0, -3): the distance is sqrt(18).
    expected = 1 / (1 + math.sqrt(18))
    assert indicators.euclidean_concat(PAIR) == pytest.approx(np.array([[1, expected], [expected, 1]]))


def test_euclidean_average_by_hand() -> None:
    # A with B: 3, sqrt(9 + 1), 4, 3. A with itself: 0, 5, 5, 0. B with itself: 0, 1, 1, 0.
    across = 1 / (1 + (3 + math.sqrt(10) + 4 + 3) / 4)
    expected = np.array([[1 / 3.5, across], [across, 1 / 1.5]])
    assert indicators.euclidean_average(PAIR) == pytest.approx(expected)


def test_cosine_concat_by_hand() -> None:
    expected = 16 / (5 * 5)
    assert indicators.cosine_concat(PAIR) == pytest.approx(np.array([[1, expected], [expected, 1]]))


def test_cosine_average_by_hand() -> None:
    # Token 1 of A is zero, so its cosine with all is 0; token 0 has 4 / 5 with both tokens of B.
    assert indicators.cosine_average(PAIR) == pytest.approx(np.array([[1 / 4, 1.6 / 4], [1.6 / 4, 1]]))


def test_max_pairwise_by_hand() -> None:
    # Tokens of target A: 16 and 0. Tokens of target B: max(16, 0) and max(12, 0).
    assert indicators.max_pairwise(PAIR) == pytest.approx(np.array([[12.5, 8], [14, 14]]))


def test_task_vectors_by_hand() -> None:
    initial = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]]])
    # Means of A - A_0 and B - B_0: (1.5, 2) and (0, 2).
    assert indicators.task_vector_dot(PAIR, initial) == pytest.approx(np.array([[6.25, 4], [4, 4]]))
    # The vectors (3, 4, 0, 0) and (0, 4, 0, 0).
    assert indicators.task_vector_cosine(PAIR, initial) == pytest.approx(np.array([[1, 0.8], [0.8, 1]]))


def test_linear_cka_by_hand() -> None:
    # Centred: A has (1.5, 2) and its negative, B (0, 0.5) and its negative, so AA' and BB' are proportional.
    assert indicators.linear_cka(PAIR) == pytest.approx(np.ones((2, 2)))
    first = torch.tensor([[1.0], [-1.0], [0.0], [0.0]])
    other = torch.tensor([[0.0], [0.0], [1.0], [-1.0]])
    # First and other are orthogonal; first is half of the third: |A'C|^2 = 4, |A'A| = 2, |C'C| = sqrt(2^2 + 2^2).
    third = torch.cat([first, other], dim=1)
    stacked = torch.stack([torch.cat([first, first * 0], dim=1), torch.cat([other, other * 0], dim=1), third])
    half = 4 / (2 * math.sqrt(8))
    assert indicators.linear_cka(stacked) == pytest.approx(np.array([[1, 0, half], [0, 1, half], [half, half, 1]]))


def test_linear_cka_is_blind_to_rotation_and_scale() -> None:
    prompt = some(1, 8, 5)
    rotation = torch.linalg.qr(some(1, 5, 5)[0]).Q
    turned = torch.cat([prompt, 3 * prompt @ rotation + 2])
    assert indicators.linear_cka(turned)[0, 1] == pytest.approx(1, abs=1e-6)


# Three prompts, two layers of four neurons.
NEURONS = torch.tensor(
    [
        [[0.1, 2.0, -1.0, 0.0], [1.0, 1.0, 1.0, -0.1]],
        [[0.3, -2.0, -1.0, 0.0], [1.0, -1.0, 1.0, -0.1]],
        [[-1.0, -1.0, -1.0, -1.0], [0.0, 0.0, 0.0, 5.0]],
    ]
)


def test_neuron_overlap_by_hand() -> None:
    # Active: {0, 1; 4, 5, 6}, {0; 4, 6} and {7}. Exactly zero is inactive. The first two share three.
    shared = 3 / math.sqrt(5 * 3)
    expected = np.array([[1, shared, 0], [shared, 1, 0], [0, 0, 1]])
    assert indicators.neuron_overlap(NEURONS) == pytest.approx(expected)
    assert indicators.neuron_overlap(NEURONS.flatten(1)) == pytest.approx(expected)


def test_neuron_overlap_in_parts_by_hand() -> None:
    lower, upper = 1 / math.sqrt(2), 2 / math.sqrt(3 * 2)
    # The third prompt activates nothing in layer 0: no overlap with any prompt, itself included.
    layers = np.array([[[1, lower, 0], [lower, 1, 0], [0, 0, 0]], [[1, upper, 0], [upper, 1, 0], [0, 0, 1]]])
    assert indicators.neuron_overlap_per_layer(NEURONS) == pytest.approx(layers)
    whole = indicators.neuron_overlap(NEURONS)
    assert indicators.neuron_overlap_per_group(NEURONS) == pytest.approx(whole[None])
    seven = some(4, 7, 20)
    groups = indicators.neuron_overlap_per_group(seven)
    assert groups.shape == (3, 4, 4)
    assert groups[0] == pytest.approx(indicators.neuron_overlap(seven[:, :3]))
    assert groups[2] == pytest.approx(indicators.neuron_overlap(seven[:, 6:]))
    assert indicators.neuron_overlap_bottom(seven) == pytest.approx(groups[0])
    assert indicators.neuron_overlap_top(seven) == pytest.approx(indicators.neuron_overlap(seven[:, 4:]))


def test_rare_neurons_weigh_more() -> None:
    # Neurons 0, 4 and 6 are active in two of three prompts, 1, 5 and 7 in one: log(3 / 2) and log(3).
    common, rare = math.log(1.5), math.log(3)
    shared = 3 * common / math.sqrt((3 * common + 2 * rare) * (3 * common))
    expected = np.array([[1, shared, 0], [shared, 1, 0], [0, 0, 1]])
    assert indicators.neuron_overlap_rare(NEURONS) == pytest.approx(expected)
    assert indicators.neuron_overlap_rare(torch.ones(3, 2, 4)) == pytest.approx(np.zeros((3, 3)))


def test_confounders_by_hand() -> None:
    # Both have the norm 5.
    assert indicators.norm_similarity(torch.stack([A, 2 * B])) == pytest.approx(np.array([[1, 1 / 6], [1 / 6, 1]]))
    assert indicators.source_norm(torch.stack([A, 2 * B])) == pytest.approx(np.array([[5, 10], [5, 10]]))
    assert indicators.data_size([9, 999]) == pytest.approx(np.array([[1, 3], [1, 3]]))
    overlap = indicators.label_word_overlap([["Bad", "good"], [" bad", "fine", "good"], []])
    assert overlap == pytest.approx(np.array([[1, 2 / 3, 0], [2 / 3, 1, 0], [0, 0, 0]]))


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_to_the_last_digit(name: str) -> None:
    row = INDICATORS[name]
    given = inputs()
    matrix = np.asarray(row.function(*(given[need] for need in row.needs)))
    # A pair and its mirror image must be exactly equal; otherwise their ranks would differ.
    assert np.array_equal(matrix, matrix.swapaxes(-1, -2))


@pytest.mark.parametrize("name", INDICATORS)
def test_the_order_of_prompts_does_not_matter(name: str) -> None:
    row = INDICATORS[name]
    given, order = inputs(), [3, 0, 4, 1, 2]
    values = [given[need] for need in row.needs]
    mixed = [value[order] if isinstance(value, Tensor) else [value[i] for i in order] for value in values]  # type: ignore[index]
    matrix = np.asarray(row.function(*values))
    assert np.asarray(row.function(*mixed)) == pytest.approx(matrix[..., order, :][..., order], abs=1e-6)


@pytest.mark.parametrize("name", ["max_pairwise", "euclidean_average", "cosine_average"])
def test_free_of_the_order_of_rows(name: str) -> None:
    prompts = some()
    mixed = prompts.clone()
    mixed[1] = mixed[1].flip(0)
    mixed[3] = mixed[3].roll(1, 0)
    function = INDICATORS[name].function
    assert function(mixed) == pytest.approx(function(prompts).numpy(), abs=1e-6)
    assert indicators.cosine_concat(mixed) != pytest.approx(indicators.cosine_concat(prompts).numpy(), abs=1e-3)


def test_blocks_give_what_the_double_loop_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairwise, "_BLOCK_ROWS", 8)
    prompts = some(7)
    distances = torch.tensor([[torch.cdist(a, b).mean() for b in prompts] for a in prompts])
    assert indicators.euclidean_average(prompts) == pytest.approx((1 / (1 + distances)).numpy(), abs=1e-6)
    largest = torch.tensor([[(a @ b.T).amax(dim=1).mean() for b in prompts] for a in prompts])
    assert indicators.max_pairwise(prompts) == pytest.approx(largest.numpy(), abs=1e-5)


def test_copies_far_from_the_origin_are_still_copies() -> None:
    prompts = some(3, 100, 64) * 0.01 + 300
    prompts[1] = prompts[0]
    assert indicators.euclidean_concat(prompts)[0, 1] == 1
    assert indicators.cosine_concat(prompts)[0, 1] == pytest.approx(1)
    # Tokens differ by about 0.11; float32 inner products alone would have a larger error.
    assert 0.88 < indicators.euclidean_average(prompts)[0, 1] < 0.92


def test_arrays_stay_arrays_and_tensors_tensors() -> None:
    prompts = some()
    assert indicators.cosine_concat(prompts).dtype == torch.float32
    assert indicators.cosine_concat(prompts.double()).dtype == torch.float64
    assert indicators.cosine_concat(prompts.bfloat16()).dtype == torch.float32
    array = indicators.cosine_concat(prompts.numpy())
    assert isinstance(array, np.ndarray)
    assert array == pytest.approx(indicators.cosine_concat(prompts).numpy())
    assert isinstance(indicators.neuron_overlap(prompts.numpy() > 0), np.ndarray)


def test_other_shapes_are_refused() -> None:
    for function, shape in ((indicators.cosine_concat, (5, 4)), (indicators.neuron_overlap, (4,))):
        with pytest.raises(UserError, match=f"{function.__name__} takes .* this is {' x '.join(map(str, shape))}"):
            function(torch.zeros(shape))


def test_all_that_the_inputs_allow() -> None:
    given = inputs()
    found = compute(given)
    parts = {"neuron_overlap_per_layer": 7, "neuron_overlap_per_group": 3}
    expected = {name for name in INDICATORS if name not in parts}
    expected |= {f"{name}/{part:02d}" for name, count in parts.items() for part in range(count)}
    assert set(found) == expected
    assert all(matrix.shape == (5, 5) for matrix in found.values())
    assert "task_vector_dot" not in compute(given | {"initial": None})
    assert set(compute({"data_sizes": [1, 2]})) == {"data_size"}


def test_every_indicator_says_what_it_is() -> None:
    for name, row in INDICATORS.items():
        assert row.function.__name__ == name
        assert "[N" in (row.function.__doc__ or "")
        assert row.group in ("embeddings", "neurons", "labels", "confounder")
