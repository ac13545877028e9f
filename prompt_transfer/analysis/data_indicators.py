"""Indicators that need task data, inputs or a few labelled examples; computed from the neuron files.

Conventions as in `indicators.py`: one entry per prompt in, `[N, N]` out, row = target, column = source.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prompt_transfer.analysis.pairwise import accept_arrays, cosines, symmetric

# Share of each layer; Wang et al. 2022 use 0 to 20 %.
SKILL_SHARE = 0.2


@accept_arrays(3)
def neuron_overlap_inputs(active: Tensor) -> Tensor:
    """Return ON over real inputs: cosine of the shares of inputs that activate each neuron, `[N, L, F]` in [0, 1].

    Equals ON for a single input, where shares are 0 or 1. Symmetric, in [0, 1], 1 with itself. Introduced here.
    """
    return cosines(active.flatten(1).double())


@accept_arrays(4)
def neuron_overlap_target_inputs(active: Tensor, own: Tensor) -> Tensor:
    """Return `neuron_overlap_inputs` with both prompts evaluated on the target's texts only.

    Not symmetric: row = target, column = source; in [0, 1]. Needs unlabelled texts of the target. Introduced here.

    Args:
        active: `[N, T, L, F]`, shares over the inputs of each of T tasks; NaN for a task that was not captured.
        own: `[N]`, index of the task that each prompt was trained on.
    """
    flat = torch.nn.functional.normalize(active.double().flatten(2), dim=2)
    rows = [flat[:, int(task)] @ flat[target, int(task)] for target, task in enumerate(own.tolist())]
    return torch.stack(rows).clamp(-1, 1)


@accept_arrays(3)
def neuron_overlap_skill(neurons: Tensor, predictivity: Tensor) -> Tensor:
    """Return ON on skill neurons only: the top 20 % of each layer by predictivity for either task.

    Symmetric, in [0, 1], 1 with itself. Source: proposed by Wang et al. 2022.

    Args:
        neurons: `[N, L, F]`, active where > 0.
        predictivity: `[N, L, F]`, for each prompt's own task.
    """
    count = max(1, round(SKILL_SHARE * neurons.shape[2]))
    top = torch.zeros_like(predictivity, dtype=torch.double)
    chosen = predictivity.sort(dim=2, descending=True, stable=True).indices[:, :, :count]
    skill = top.scatter_(2, chosen, 1.0).flatten(1)
    active = (neurons > 0).double().flatten(1)
    both = active * skill
    # Sums over the union of two sets of skill neurons, by inclusion-exclusion.
    common = both @ active.T + active @ both.T - both @ both.T
    sizes = both.sum(dim=1)[:, None] + active @ skill.T - both @ skill.T
    root = (sizes * sizes.T).sqrt()
    return symmetric(torch.where(root > 0, common / root.clamp(min=1e-300), 0.0)).clamp(0, 1)


@accept_arrays(3)
def fisher_cosine(fisher: Tensor) -> Tensor:
    """Return the cosine of two Fisher information diagonals in prompt space, mean squared gradients `[N, P, H]`.

    Symmetric, in [0, 1], 1 with itself. Source: Task2Vec (Achille et al. 2019), applied to the prompt, not the weights.
    """
    return cosines(fisher.double().flatten(1))


@accept_arrays(3)
def gradient_cosine(gradient: Tensor) -> Tensor:
    """Return the cosine of two tasks' loss gradients at the same prompt, `[N, P, H]`; symmetric, in [-1, 1]."""
    return cosines(gradient.double().flatten(1))


@accept_arrays(2)
def leep(values: Tensor, own: Tensor) -> Tensor:
    """Return LEEP of each source (column) on each target (row), in nats, at most 0; NaN for generation tasks.

    See `studies.neurons.probing.leep`. Source: Nguyen et al. 2020.

    Args:
        values: `[N, T]`, LEEP of each prompt as source on each of T tasks.
        own: `[N]`, index of the task that each prompt was trained on.
    """
    return values[:, own.long()].T
