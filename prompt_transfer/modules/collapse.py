"""How far projections of different prompts are the same prompt, and what keeps them apart.

The published projectors of Su et al. map prompts of different tasks to one vector (cosine 1.0000): what was transferred
was one learnt prompt. All of these are free of scale: they see directions and shares, not the size of the prompts.

Shape letters: N prompts, P prompt tokens, H hidden, D = P H.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cosines(prompts: Tensor) -> Tensor:
    """Cosine of every two prompts [N, P, H] as flat vectors, [N, N]."""
    flat = functional.normalize(prompts.flatten(1), dim=1)
    return flat @ flat.T


def mean_cosine(prompts: Tensor, tasks: Tensor) -> Tensor:
    """Mean cosine over the pairs of prompts of different tasks; NaN where there is one task alone.

    Args:
        prompts: [N, P, H].
        tasks: [N], numbers that tell the tasks apart.
    """
    apart = tasks[:, None] != tasks[None, :]
    return cosines(prompts)[apart].mean()


def distance(prompts: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of prompts [N, P, H] from others, over the mean square of those: 1 is that of nothing."""
    return (prompts - targets).square().mean() / targets.square().mean()


def contrastive(prompts: Tensor, tasks: Tensor, temperature: float) -> Tensor:
    """A supervised contrastive loss in nats: each prompt nearer to those of its task than to those of others.

    -log(e^(p / t) / (e^(p / t) + sum over prompts of other tasks of e^(cos / t))), p the mean cosine with the other
    prompts of its task, 1 where there is none. With one task alone it is 0.

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
    """Share of the prompts' mean square [N, P, H] that is not their mean's: 0 where all are equal, at most 1.

    For prompts of one length it is (1 - mean cosine) (N - 1) / N.
    """
    whole = prompts.square().sum(dim=(1, 2)).mean()
    return 1 - prompts.mean(dim=0).square().sum() / whole


def variance(prompts: Tensor, floor: float) -> Tensor:
    """How far the `spread` is below `floor`, as a part of it: 1 where all prompts are equal, 0 from the floor on."""
    return functional.relu(floor - spread(prompts)) / floor
