"""Measures of how similar projections of different prompts are, and losses that keep them apart.

The published projectors of Su et al. map prompts of different tasks to one vector (cosine 1.0000): they transfer a
single learned prompt. All measures are scale-free: they depend on directions and shares, not on the size of prompts.

Shape letters: N prompts, P prompt tokens, H hidden, D = P H.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cosines(prompts: Tensor) -> Tensor:
    """Return the pairwise cosines [N, N] of prompts [N, P, H] as flat vectors."""
    flat = functional.normalize(prompts.flatten(1), dim=1)
    return flat @ flat.T


def mean_cosine(prompts: Tensor, tasks: Tensor) -> Tensor:
    """Return the mean cosine over pairs of prompts of different tasks; NaN for a single task.

    Args:
        prompts: [N, P, H].
        tasks: [N], the task of each prompt.
    """
    apart = tasks[:, None] != tasks[None, :]
    return cosines(prompts)[apart].mean()


def distance(prompts: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of `prompts` [N, P, H], relative to that of zeros: 1 is no better than zeros."""
    return (prompts - targets).square().mean() / targets.square().mean()


def contrastive(prompts: Tensor, tasks: Tensor, temperature: float) -> Tensor:
    """Return a supervised contrastive loss in nats, which pulls prompts of a task together and those of others apart.

    -log(e^(p / t) / (e^(p / t) + sum over prompts of other tasks of e^(cos / t))), p the mean cosine with the other
    prompts of its task, 1 if there are none. The loss is 0 for a single task.

    Args:
        prompts: [N, P, H].
        tasks: [N].
        temperature: t.
    """
    same = tasks[:, None] == tasks[None, :]
    found = cosines(prompts)
    others = same & ~torch.eye(len(tasks), dtype=torch.bool, device=tasks.device)
    count = others.sum(dim=1)
    near = torch.where(count > 0, (found * others).sum(dim=1) / count.clamp_min(1), torch.ones_like(found[0]))
    apart = (found / temperature).masked_fill(same, float("-inf"))
    logits = torch.cat([(near / temperature)[:, None], apart], dim=1)
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


def spread(prompts: Tensor) -> Tensor:
    """Return 1 minus the share of the mean in the prompts' mean square [N, P, H]: 0 if all are equal, at most 1.

    For prompts of equal norm it is (1 - mean cosine) (N - 1) / N.
    """
    whole = prompts.square().sum(dim=(1, 2)).mean()
    return 1 - prompts.mean(dim=0).square().sum() / whole


def variance(prompts: Tensor, floor: float) -> Tensor:
    """Return how far `spread` is below `floor`, relative to it: 1 if all prompts are equal, 0 at the floor or above."""
    return functional.relu(floor - spread(prompts)) / floor
