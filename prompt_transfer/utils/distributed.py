"""Rank and world size as torchrun sets them."""

from __future__ import annotations

import os
from typing import NamedTuple


class TorchrunRank(NamedTuple):
    """The `rank` of this process and the number of processes, `world`."""

    rank: int
    world: int


def torchrun_rank() -> TorchrunRank:
    """Return this process's rank under torchrun; rank 0 of 1 without torchrun."""
    return TorchrunRank(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
