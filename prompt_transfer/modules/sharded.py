"""The training strategy `fsdp`: a sharded backbone, a replicated prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy

from prompt_transfer.backbones import sharding
from prompt_transfer.backbones.frozen import FrozenBackbone


class ShardedStrategy(DDPStrategy):
    """Data parallel training whose frozen backbones are sharded, layer by layer, over all processes (FSDP2).

    The trained parameters are replicated and their gradients averaged by DDP, and checkpoints are DDP's: prompt and
    optimizer, written by the first process. With `trainer.init_module()` around the module's construction each process
    reads its share of the backbone from the files; otherwise it loads the whole backbone first.
    """

    strategy_name = "fsdp"

    def setup_environment(self) -> None:
        super().setup_environment()
        for _, backbone in self._backbones():
            sharding.shard(backbone, self.root_device)

    def setup(self, trainer: L.Trainer) -> None:
        # DDP would broadcast the backbone, whose shares differ.
        self.lightning_module._ddp_params_and_buffers_to_ignore = [
            f"{path}.{name}"
            for path, backbone in self._backbones()
            for found in (backbone.named_parameters(), backbone.named_buffers())
            for name, _ in found
        ]
        super().setup(trainer)

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Load backbones without their layers' weights, until `setup_environment`."""
        with sharding.deferred():
            yield

    def _backbones(self) -> list[tuple[str, FrozenBackbone]]:
        module: Any = self.lightning_module
        return [(path, part) for path, part in module.named_modules() if isinstance(part, FrozenBackbone)]
