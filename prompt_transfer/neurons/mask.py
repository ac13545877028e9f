"""Neuron masks: selection of neurons, and replacement of their values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prompt_transfer.backbones.answers import AnswerSlot
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.neurons.choices import METHODS, SCOPES
from prompt_transfer.neurons.hooks import FfnHooks, Visit
from prompt_transfer.utils.errors import UserError


class NeuronMask(FfnHooks):
    """Context that masks neurons at every position of every forward pass.

    States that `FrozenBackbone.record` computed before are not masked: record prompts inside the context.

    Args:
        backbone: the backbone to mask.
        mask: bool `[L, F]`, True for masked neurons.
        method: `zero` sets neurons to 0, `mean` to their entry in `means`, `noise` adds Gaussian noise.
        means: `[L, F]`, for `mean`.
        deviation: standard deviation of the noise per layer, `[L]`, for `noise`. Noise is drawn once per position and
            neuron and therefore does not depend on batching.
        seed: random seed of the noise.

    Raises:
        UserError: an unknown method, or a mask whose shape does not fit the backbone.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        mask: Tensor,
        method: str = "zero",
        means: Tensor | None = None,
        deviation: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone)
        if method not in METHODS:
            raise UserError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
        if (method == "mean") != (means is not None) or (method == "noise") != (deviation is not None):
            raise ValueError("give means only for the method `mean`, and a deviation only for `noise`")
        if mask.ndim != 2 or len(mask) != len(backbone.ffn_sites()):
            shape = " x ".join(map(str, mask.shape))
            raise UserError(f"a mask is [L, F] with L {len(backbone.ffn_sites())} for {backbone.id}; this is {shape}")
        self.mask, self.method, self.means, self.deviation, self.seed = mask.bool(), method, means, deviation, seed
        self._noise: dict[int, Tensor] = {}

    def visits(self) -> dict[str, Visit]:
        return {"activations": self._masked}

    def _masked(self, layer: int, neurons: Tensor, slot: AnswerSlot | None) -> Tensor | None:
        mask = self.mask[layer]
        if neurons.shape[-1] != len(mask):
            raise UserError(
                f"{self.backbone.id} has {neurons.shape[-1]} neurons in layer {layer}, the mask {len(mask)}: it "
                "belongs to another backbone"
            )
        if not mask.any():
            return None
        here = mask.to(neurons.device)
        if self.method == "zero":
            return neurons.masked_fill(here, 0)
        if self.method == "mean":
            assert self.means is not None
            return torch.where(here, self.means[layer].to(neurons), neurons)
        return neurons + self._noise_of(layer, neurons.shape[-2]).to(neurons)

    def _noise_of(self, layer: int, length: int) -> Tensor:
        """Return noise `[length, F]`, 0 for unmasked neurons; a prefix of the same draw for every length."""
        known = self._noise.get(layer)
        if known is None or len(known) < length:
            assert self.deviation is not None
            rows, mask = max(length, 64 if known is None else 2 * len(known)), self.mask[layer].cpu()
            # Shorter draws of numpy are prefixes of longer ones; those of torch are not always.
            drawn = np.random.default_rng([self.seed, layer]).standard_normal((rows, int(mask.sum())))
            known = torch.zeros(rows, len(mask))
            known[:, mask] = torch.from_numpy(drawn).float() * float(self.deviation[layer])
            self._noise[layer] = known
        return known[:length]


def most_activated(values: Tensor, ratio: float, scope: str = "layer") -> Tensor:
    """Select the fraction `ratio` of neurons with the highest values, bool `[L, F]`.

    Args:
        values: `[L, F]`, such as activations or predictivity.
        ratio: 0 to 1.
        scope: `layer` selects the same number in each layer; `all` selects over all layers, and more from layers with
            larger values (release 2.0 of Su et al.).

    Raises:
        UserError: an invalid ratio or an unknown scope.
    """
    if not 0 <= ratio <= 1:
        raise UserError(f"the ratio of masked neurons is {ratio:g}: give a number between 0 and 1")
    if scope not in SCOPES:
        raise UserError(f"unknown scope {scope!r}: choose one of {', '.join(SCOPES)}")
    rows = values if scope == "layer" else values.reshape(1, -1)
    mask = torch.zeros(rows.shape, dtype=torch.bool)
    count = round(ratio * rows.shape[1])
    # A stable sort breaks ties equally on every machine.
    chosen = rows.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return mask.scatter(1, chosen, True).view(values.shape)


def random_like(mask: Tensor, seed: int) -> Tensor:
    """Select random neurons, as many per layer as in `mask` `[L, F]`."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros_like(mask)
    for layer, count in enumerate(mask.sum(dim=1).tolist()):
        found[layer, torch.randperm(mask.shape[1], generator=generator)[: int(count)]] = True
    return found


def layer_deviation(activations: Sequence[Tensor]) -> Tensor:
    """Return each layer's standard deviation `[L]` over the neurons and prompts of N tensors `[L, F]`."""
    return torch.stack(list(activations)).transpose(0, 1).flatten(1).std(dim=1)
