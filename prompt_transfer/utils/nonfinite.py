"""Numbers that are no longer finite: noticed on the device at every step, told where the host waits for it anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# A place that no run reaches.
NEVER = 2**62


class FirstNonFinite:
    """For each of N prompts the first place at which a number was NaN or Inf; a place is a number from 0.

    What is seen stays on the device: a few small kernels a step, and no waiting before `found` is called.

    Shape letters: B batch, N prompts.

    Args:
        prompts: N.
    """

    def __init__(self, prompts: int = 1) -> None:
        self.prompts = prompts
        self._first: dict[str, Tensor] = {}

    def observe(self, what: str, values: Tensor, place: int) -> None:
        """Take numbers [N], one a prompt, that all belong to one place."""
        self._merge(what, torch.where(torch.isfinite(values), NEVER, place))

    def observe_rows(self, what: str, values: Tensor, places: Tensor, prompt: int = 0) -> None:
        """Take numbers [B] of one prompt, each with its own place [B]."""
        first = torch.where(torch.isfinite(values), NEVER, places).amin()
        whole = torch.full((self.prompts,), NEVER, device=first.device)
        whole[prompt] = first
        self._merge(what, whole)

    def _merge(self, what: str, places: Tensor) -> None:
        known = self._first.get(what)
        self._first[what] = places if known is None else torch.minimum(known, places)

    def found(self, gather: Callable[[Tensor], Tensor] | None = None) -> dict[int, tuple[str, int]]:
        """Number of the prompt -> what broke first, and its place. The host waits for the device here.

        Args:
            gather: [..] -> [processes, ..]; None where there is one process. All processes must call this.
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
                # Of several things at one place the one that is seen first: a loss before its gradient.
                broken[prompt] = (list(self._first)[own.index(place)], place)
        return broken

    def reset(self) -> None:
        """Begin anew."""
        self._first = {}


def largest(gradients: Sequence[Tensor]) -> Tensor:
    """The largest absolute number of some tensors, a scalar; NaN where one of them holds NaN."""
    return torch.stack([torch.linalg.vector_norm(gradient, float("inf")) for gradient in gradients]).amax()
