"""Detection of non-finite values on the device, without a host synchronization at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Larger than any place of a run.
NEVER = 2**62


class FirstNonFinite:
    """The first place (step or example, from 0) at which each of N prompts had a NaN or Inf.

    The state stays on the device: a few small kernels a step, and no synchronization before `found`.

    Shape letters: B batch, N prompts.

    Args:
        prompts: N, the number of prompts.
    """

    def __init__(self, prompts: int = 1) -> None:
        self.prompts = prompts
        self._first: dict[str, Tensor] = {}

    def observe(self, what: str, values: Tensor, place: int) -> None:
        """Check values [N], one per prompt, that all belong to one place."""
        self._merge(what, torch.where(torch.isfinite(values), NEVER, place))

    def observe_rows(self, what: str, values: Tensor, places: Tensor, prompt: int = 0) -> None:
        """Check values [B] of one prompt, each with its own place [B]."""
        first = torch.where(torch.isfinite(values), NEVER, places).amin()
        whole = torch.full((self.prompts,), NEVER, device=first.device)
        whole[prompt] = first
        self._merge(what, whole)

    def _merge(self, what: str, places: Tensor) -> None:
        known = self._first.get(what)
        self._first[what] = places if known is None else torch.minimum(known, places)

    def found(self, gather: Callable[[Tensor], Tensor] | None = None) -> dict[int, tuple[str, int]]:
        """Return prompt index -> (name of the first non-finite value, its place). Synchronizes with the device.

        Args:
            gather: [..] -> [processes, ..]; None for a single process. All processes must call this.
        """
        if not self._first:
            return {}
        places = torch.stack(list(self._first.values()))
        if gather is not None:
            places = gather(places).amin(dim=0)
        broken: dict[int, tuple[str, int]] = {}
        for prompt, own in enumerate(places.T.tolist()):
            place = min(own)
            if place < NEVER:
                # Ties go to the value observed first: a loss before its gradient.
                broken[prompt] = (list(self._first)[own.index(place)], place)
        return broken

    def reset(self) -> None:
        """Forget all observations."""
        self._first = {}


def largest(gradients: Sequence[Tensor]) -> Tensor:
    """Return the largest absolute value over some tensors, a scalar; NaN if one of them contains NaN."""
    return torch.stack([torch.linalg.vector_norm(gradient, float("inf")) for gradient in gradients]).amax()
