"""Masks of neurons: which ones, and what they do in place of what they would do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prompt_transfer.backbones.answers import AnswerSlot
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.neurons.hooks import FfnHooks, Visit
from prompt_transfer.utils.errors import UserError

METHODS = ("zero", "mean", "noise")
SCOPES = ("layer", "all")


class NeuronMask(FfnHooks):
    """Inside `with`, some neurons do something else, at every position of every forward pass.

    A prompt whose states were recorded before (`FrozenBackbone.record`) keeps what it was then: record it inside.

    Args:
        backbone: whose neurons.
        mask: bool [L, F], True for neurons that are masked.
        method: `zero`; `mean`: the neuron's entry in `means`; `noise`: Gaussian noise is added.
        means: [L, F], for `mean`.
        deviation: standard deviation of the noise in each layer, [L], for `noise`. Noise is drawn once for each
            position and neuron, so that it does not depend on how examples are put into batches.
        seed: of the noise.

    Raises:
        UserError: an unknown method, or a mask of another shape than the backbone.
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
            raise ValueError("the method `mean` takes means, `noise` takes a deviation, `zero` neither")
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
                f"{self.backbone.id} has {neurons.shape[-1]} neurons in layer {layer}, the mask {len(mask)}: it was "
                "made for another backbone"
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
        """[length, F], 0 where nothing is masked; the head of one draw for all lengths."""
        known = self._noise.get(layer)
        if known is None or len(known) < length:
            assert self.deviation is not None
            rows, mask = max(length, 64 if known is None else 2 * len(known)), self.mask[layer].cpu()
            # numpy's longer draws begin with its shorter ones; torch's do not always.
            drawn = np.random.default_rng([self.seed, layer]).standard_normal((rows, int(mask.sum())))
            known = torch.zeros(rows, len(mask))
            known[:, mask] = torch.from_numpy(drawn).float() * float(self.deviation[layer])
            self._noise[layer] = known
        return known[:length]


def most_activated(values: Tensor, ratio: float, scope: str = "layer") -> Tensor:
    """The share `ratio` of neurons with the highest values, bool [L, F].

    Args:
        values: [L, F], as activations or predictivity.
        ratio: 0 to 1, of the neurons of each layer, or of all.
        scope: `layer`: the same number in each layer; `all`: over all layers, where those with larger values lose
            more (the code of release 2.0 of Su et al.).

    Raises:
        UserError: a ratio that is none, or an unknown scope.
    """
    if not 0 <= ratio <= 1:
        raise UserError(f"a ratio of masked neurons lies between 0 and 1, not {ratio:g}")
    if scope not in SCOPES:
        raise UserError(f"unknown scope {scope!r}: choose one of {', '.join(SCOPES)}")
    rows = values if scope == "layer" else values.reshape(1, -1)
    mask = torch.zeros(rows.shape, dtype=torch.bool)
    count = round(ratio * rows.shape[1])
    # Stable, so that ties fall alike everywhere.
    chosen = rows.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return mask.scatter(1, chosen, True).view(values.shape)


def random_like(mask: Tensor, seed: int) -> Tensor:
    """Random neurons, in each layer as many as `mask` [L, F] has there."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros_like(mask)
    for layer, count in enumerate(mask.sum(dim=1).tolist()):
        found[layer, torch.randperm(mask.shape[1], generator=generator)[: int(count)]] = True
    return found


def layer_deviation(activations: Sequence[Tensor]) -> Tensor:
    """Standard deviation [L] of the neurons of each layer over neurons and prompts, N tensors [L, F]."""
    return torch.stack(list(activations)).transpose(0, 1).flatten(1).std(dim=1)
