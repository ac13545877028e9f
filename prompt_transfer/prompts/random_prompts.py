"""Untrained random prompts: the baseline of every prompt's score."""

from __future__ import annotations

import torch
from torch import Tensor

from prompt_transfer.prompts.initializers import Vocabulary
from prompt_transfer.prompts.prompt import Backbone

# Prompt n uses RANDOM_SEED + n, far from the seeds that users give to runs.
RANDOM_SEED = 1_000_003
DRAWS = ("vocabulary", "uniform")


def random_prompt(backbone: Backbone, shape: tuple[int, int], number: int, draw: str = "vocabulary") -> Tensor:
    """Return random prompt `number` for a backbone; the same on every machine.

    Args:
        backbone: the backbone that the prompt is for.
        shape: (P, H).
        number: 1, 2, ...
        draw: `vocabulary` for token embeddings, as the default initializer draws them, or `uniform` for U[0, 1), as
            in release 1.0 of Su et al.

    Returns:
        float32 `[P, H]` on the CPU.
    """
    generator = torch.Generator().manual_seed(RANDOM_SEED + number)
    if draw == "uniform":
        return torch.rand(shape, generator=generator)
    return Vocabulary()(backbone, shape, generator, [])
