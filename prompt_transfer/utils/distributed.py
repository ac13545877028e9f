"""Which of the processes that torchrun started this one is."""

from __future__ import annotations

import os
from typing import NamedTuple


class TorchrunRank(NamedTuple):
    """`rank` of this process, and how many there are (`world`)."""

    rank: int
    world: int


def torchrun_rank() -> TorchrunRank:
    """This process among those that torchrun started; the only one where it started none."""
    return TorchrunRank(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
