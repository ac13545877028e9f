"""Collapse: measures and regularization losses, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from prompt_transfer.modules.collapse import contrastive, distance, mean_cosine, spread, variance
from prompt_transfer.modules.distillation import NO_CLASS, distillation, divergence

# Three prompts of one token: along x, along y, and between them.
PROMPTS = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]], [[1.0, 1.0]]])


def test_mean_cosine_is_over_pairs_of_different_tasks() -> None:
    # Tasks 0, 1, 0: pair (0, 1) has cosine 0, pair (1, 2) has 1 / sqrt 2.
    assert float(mean_cosine(PROMPTS, torch.tensor([0, 1, 0]))) == pytest.approx(0.5 / math.sqrt(2))
    assert float(mean_cosine(torch.ones(3, 2, 2), torch.arange(3))) == pytest.approx(1.0)
    assert math.isnan(float(mean_cosine(PROMPTS, torch.zeros(3))))


def test_distance_is_relative_to_the_size_of_the_targets() -> None:
    assert float(distance(torch.zeros(3, 1, 2), PROMPTS)) == pytest.approx(1.0)
    assert float(distance(PROMPTS, PROMPTS)) == 0.0
    # Squared differences 4 + 9 + 1 + 1 between doubled and original prompts, over the same sum.
    assert float(distance(2 * PROMPTS, PROMPTS)) == pytest.approx(1.0)


def test_contrastive_by_hand() -> None:
    same = torch.ones(2, 1, 2)
    # Equal prompts of two tasks: -log(1 / 2) each.
    assert float(contrastive(same, torch.tensor([0, 1]), 0.1)) == pytest.approx(math.log(2))
    assert float(contrastive(same, torch.tensor([0, 0]), 0.1)) == pytest.approx(0.0)
    # Orthogonal prompts at temperature 1: -log(e / (e + 1)).
    assert float(contrastive(PROMPTS[:2], torch.tensor([0, 1]), 1.0)) == pytest.approx(math.log(1 + math.exp(-1)))


def test_spread_and_variance_by_hand() -> None:
    assert float(spread(torch.ones(4, 2, 3))) == pytest.approx(0.0, abs=1e-6)
    pair = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    # The mean (1/2, 1/2) has half the square of each; (1 - cosine 0) (2 - 1) / 2.
    assert float(spread(pair)) == pytest.approx(0.5)
    assert float(variance(pair, 0.3)) == 0.0
    assert float(variance(pair, 0.8)) == pytest.approx(0.375)
    assert float(variance(torch.ones(4, 2, 3), 0.3)) == pytest.approx(1.0)


def test_distillation_by_hand() -> None:
    source, target = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    # KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 log 3/2 + 1/4 log 1/2
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(divergence(target, source, 1.0)) == pytest.approx(expected)
    # Doubled logits at temperature 2: the same value times four.
    assert float(divergence(2 * target, 2 * source, 2.0)) == pytest.approx(4 * expected)
    mask = torch.tensor([[True, True]])
    assert float(distillation(target, source, None, None, mask, 0.0, 1.0)) == pytest.approx(expected)
    # With equal shifts only the logits count, weighted by 1 - alpha.
    alone = torch.tensor([[0.5, -0.5]])
    found = distillation(target, source, target - alone, source - alone, mask, 0.25, 1.0)
    assert float(found) == pytest.approx(0.75 * expected)


def test_classes_that_a_task_lacks_count_nothing() -> None:
    source, target = torch.tensor([[math.log(3.0), 0.0, NO_CLASS]]), torch.tensor([[0.0, 0.0, -math.inf]])
    alone = torch.tensor([[0.1, 0.2, NO_CLASS]])
    mask = torch.tensor([[True, True, False]])
    whole = distillation(target, source, alone, alone, mask, 0.5, 2.0)
    pair = distillation(target[:, :2], source[:, :2], alone[:, :2], alone[:, :2], mask[:, :2], 0.5, 2.0)
    torch.testing.assert_close(whole, pair)
