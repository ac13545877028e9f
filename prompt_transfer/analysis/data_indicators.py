"""Indicators that need data of the tasks: inputs, or a few labelled rows; made from the files of neurons.

As those of `indicators.py`: one entry a prompt in, `[N, N]` out, row = target, column = source.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prompt_transfer.analysis.pairwise import accept_arrays, cosines, symmetric

# Of each layer; Wang et al. 2022 look at 0 to 20 %.
SKILL_SHARE = 0.2


@accept_arrays(3)
def neuron_overlap_inputs(active: Tensor) -> Tensor:
    """ON over real inputs: cosine of the shares of inputs in which each neuron is active, `[N, L, F]`, in 0 to 1.

    With a single input shares are 0 and 1, and this is ON. Symmetric, in [0, 1], 1 with itself. Ours.
    """
    return cosines(active.flatten(1).double())


@accept_arrays(4)
def neuron_overlap_target_inputs(active: Tensor, own: Tensor) -> Tensor:
    """`neuron_overlap_inputs` on the target's inputs alone: both prompts before the texts of the target.

    Not symmetric: row = target, column = source; in [0, 1]. Needs unlabelled texts of the target. Ours.

    Args:
        active: `[N, T, L, F]`, shares over the inputs of each of T tasks; NaN for a task that was not looked at.
        own: `[N]`, number of the task that a prompt was trained on.
    """
    flat = torch.nn.functional.normalize(active.double().flatten(2), dim=2)
    rows = [flat[:, int(task)] @ flat[target, int(task)] for target, task in enumerate(own.tolist())]
    return torch.stack(rows).clamp(-1, 1)


@accept_arrays(3)
def neuron_overlap_skill(neurons: Tensor, predictivity: Tensor) -> Tensor:
    """ON on skill neurons alone: those that are among the most predictive of their layer for either of the two tasks.

    Symmetric, in [0, 1], 1 with itself. Source: Wang et al. 2022 propose it; the share of a layer is 20 %.

    Args:
        neurons: `[N, L, F]`, active where > 0.
        predictivity: `[N, L, F]`, of the own task of each prompt.
    """
    count = max(1, round(SKILL_SHARE * neurons.shape[2]))
    top = torch.zeros_like(predictivity, dtype=torch.double)
    chosen = predictivity.sort(dim=2, descending=True, stable=True).indices[:, :, :count]
    skill = top.scatter_(2, chosen, 1.0).flatten(1)
    active = (neurons > 0).double().flatten(1)
    both = active * skill
    # Over the union of two sets of skill neurons: a sum over one, plus that over the other, less that over both.
    common = both @ active.T + active @ both.T - both @ both.T
    sizes = both.sum(dim=1)[:, None] + active @ skill.T - both @ skill.T
    root = (sizes * sizes.T).sqrt()
    return symmetric(torch.where(root > 0, common / root.clamp(min=1e-300), 0.0)).clamp(0, 1)


@accept_arrays(3)
def fisher_cosine(fisher: Tensor) -> Tensor:
    """Cosine of the diagonals of two Fisher informations in prompt space, `[N, P, H]`: mean squared gradients.

    Symmetric, in [0, 1], 1 with itself. Source: Task2Vec (Achille et al. 2019) with the prompt in place of the weights.
    """
    return cosines(fisher.double().flatten(1))


@accept_arrays(3)
def gradient_cosine(gradient: Tensor) -> Tensor:
    """Cosine of the gradients of two tasks' losses at one and the same prompt, `[N, P, H]`; symmetric, in [-1, 1]."""
    return cosines(gradient.double().flatten(1))


@accept_arrays(2)
def leep(values: Tensor, own: Tensor) -> Tensor:
    """LEEP of each source (column) on each target (row), nats, at most 0; NaN where one has no classes.

    See `studies.probing.leep`. Source: Nguyen et al. 2020.

    Args:
        values: `[N, T]`, of each prompt as a source on each of T tasks.
        own: `[N]`, number of the task that a prompt was trained on.
    """
    return values[:, own.long()].T
