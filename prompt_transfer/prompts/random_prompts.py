"""Prompts that were never trained: the baseline of every score of a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from prompt_transfer.prompts.initializers import Vocabulary
from prompt_transfer.prompts.prompt import Backbone

# Of the prompt before the first; far from the seeds that people give to runs.
RANDOM_SEED = 1_000_003
DRAWS = ("vocabulary", "uniform")


def random_prompt(backbone: Backbone, shape: tuple[int, int], number: int, draw: str = "vocabulary") -> Tensor:
    """Random prompt `number` (1, 2, ...) for a backbone; one number gives one prompt on every machine.

    Args:
        backbone: the backbone it is for.
        shape: (P, H).
        number: which one.
        draw: `vocabulary`, as the default initializer draws (embeddings of tokens), or `uniform`, numbers of U[0, 1)
            as in release 1.0 of Su et al.

    Returns:
        float32 `[P, H]` on the CPU.
    """
    generator = torch.Generator().manual_seed(RANDOM_SEED + number)
    if draw == "uniform":
        return torch.rand(shape, generator=generator)
    return Vocabulary()(backbone, shape, generator, [])
