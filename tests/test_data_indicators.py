"""Indicators from inputs and labelled rows: values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prompt_transfer.analysis import data_indicators
from prompt_transfer.analysis.indicators import neuron_overlap
from prompt_transfer.neurons.skill import ClassSums, baselines, predictivity, subtasks
from prompt_transfer.studies.neurons.probing import leep_of


def flat(matrix: Tensor) -> list[float]:
    return matrix.flatten().tolist()


def test_shares_of_one_input_are_the_overlap() -> None:
    active = (torch.randn(4, 2, 30, generator=torch.Generator().manual_seed(0)) > 0).float()
    assert flat(data_indicators.neuron_overlap_inputs(active)) == pytest.approx(flat(neuron_overlap(active)))
    # (1, 1/2) and (1/2, 1): (1/2 + 1/2) / (5/4).
    shares = torch.tensor([[[1, 0.5]], [[0.5, 1]]])
    assert flat(data_indicators.neuron_overlap_inputs(shares)) == pytest.approx([1, 0.8, 0.8, 1])


def test_overlap_on_the_inputs_of_the_target() -> None:
    first, second = [[[1.0, 0]], [[1, 1]]], [[[0.0, 1]], [[0, 1]]]  # tasks, layers, neurons
    active, own = torch.tensor([first, second]), torch.tensor([0, 1])
    found = data_indicators.neuron_overlap_target_inputs(active, own)
    assert flat(found) == pytest.approx([1, 0, 0.5**0.5, 1])
    active[:, 1] = torch.nan
    lost = data_indicators.neuron_overlap_target_inputs(active, own)
    assert flat(lost)[:2] == pytest.approx([1, 0])
    assert lost[1].isnan().all()


def test_overlap_on_skill_neurons_by_hand() -> None:
    # 20 % of 10 neurons: two per prompt. A is active in 0, 1, 2 with skill neurons 0 and 5, B in 0, 2, 5 with 2 and 5.
    neurons, skill = torch.full((2, 1, 10), -1.0), torch.full((2, 1, 10), 0.5)
    for prompt, (active, skilled) in enumerate((([0, 1, 2], [0, 5]), ([0, 2, 5], [2, 5]))):
        neurons[prompt, 0, active] = 2
        skill[prompt, 0, skilled] = 0.9
    # Of the skill neurons 0, 2, 5, A activates 0 and 2, B all.
    assert flat(data_indicators.neuron_overlap_skill(neurons, skill)) == pytest.approx([1, *[2 / 6**0.5] * 2, 1])
    # B has overlap 0 with itself if it has no active skill neuron.
    neurons[1] = -1
    assert flat(data_indicators.neuron_overlap_skill(neurons, skill)) == pytest.approx([1, 0, 0, 0])


def test_fisher_and_gradients_are_cosines() -> None:
    values = torch.tensor([[[3.0, 0], [0, 4]], [[0, 0], [0, 2]]])
    assert flat(data_indicators.fisher_cosine(values)) == pytest.approx([1, 0.8, 0.8, 1])
    assert flat(data_indicators.gradient_cosine(values * torch.tensor([[[-1]], [[1]]]))) == pytest.approx(
        [1, -0.8, -0.8, 1]
    )


def test_leep_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert leep_of(torch.eye(2)[labels], labels) == pytest.approx(0)
    # A source that predicts the same for every row: minus the entropy of the labels.
    nothing = torch.tensor([[0.3, 0.7]]).expand(4, -1)
    assert leep_of(nothing, labels) == pytest.approx(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    # Neither swapped labels nor three source labels lose anything.
    assert leep_of(torch.eye(3)[2 - labels], labels) == pytest.approx(0)


def test_leep_of_pairs() -> None:
    # Two prompts of task 1 and one of task 0; rows are targets, columns sources.
    values = torch.tensor([[-1.0, -2], [-3, -4], [-5, -6]])
    found = data_indicators.leep(values, torch.tensor([1, 0, 1]))
    assert found.tolist() == [[-2, -4, -6], [-1, -3, -5], [-2, -4, -6]]


# Skill neurons -------------------------------------------------------------------------------------------------------


def summed(values: list[list[float]], labels: list[int], classes: int, thresholds: Tensor | None = None) -> ClassSums:
    """Sum over examples for one layer and one position; `values` has one list of neurons per example."""
    sums = ClassSums(classes, 1, thresholds)
    for row, label in zip(values, labels, strict=True):
        sums.next(torch.tensor([label]))
        sums.add(0, torch.tensor([[row]]))
    return sums


def test_predictivity_by_hand() -> None:
    thresholds = baselines(summed([[0, 5, 1], [2, 5, 0]], [0, 1], 2))
    assert thresholds.flatten().tolist() == [1, 5, 0.5]
    development = [[0, 6, 9], [3, 4, 9], [2, 6, 0], [2, 4, 0]]
    found = predictivity(summed(development, [0, 0, 1, 1], 2, thresholds))
    # Neuron 0 is right for both of class 1 and one of class 0, neuron 1 is uninformative, neuron 2 is always wrong.
    assert found.tolist() == [[0.75, 0.5, 1.0]]


def test_classes_are_balanced() -> None:
    # Three examples of class 0 at 0, one of class 1 at 4: the threshold is 2, not 1.
    assert baselines(summed([[0.0]] * 3 + [[4.0]], [0, 0, 0, 1], 2)).item() == 2
    # Above the threshold: 1 of 4 and 1 of 1, so (1 + 3/4) / 2.
    sums = summed([[0.0]] * 3 + [[3.0]] + [[3.0]], [0, 0, 0, 0, 1], 2, torch.full((1, 1, 1, 1), 2.0))
    assert predictivity(sums).item() == pytest.approx(0.875)


def test_a_neuron_for_one_of_three_classes_is_found() -> None:
    assert subtasks(2) == [1]
    assert subtasks(3) == [0, 1, 2]
    values, labels = [[1.0, 0], [0, 0], [0, 0]], [0, 1, 2]
    thresholds = baselines(summed(values, labels, 3))
    assert predictivity(summed(values, labels, 3, thresholds)).tolist() == [[1, 0.5]]


def test_the_best_place_counts() -> None:
    sums = ClassSums(2, 1, torch.zeros(1, 1, 2, 1))
    sums.next(torch.tensor([0, 1]))
    # At position 0 the neuron is on for both classes, at position 1 for class 1 only.
    sums.add(0, torch.tensor([[[1.0], [-1]], [[1], [1]]]))
    assert predictivity(sums).tolist() == [[1]]
