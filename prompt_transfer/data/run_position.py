"""The position of a run in the order of its training batches, for resuming."""

from __future__ import annotations

from typing import Any

import lightning as L

from prompt_transfer.data.tokens import TokenTable


class RunPosition:
    """State of a data module: the number of trained batches, and everything that determines the batches' order.

    Attributes:
        position: number of trained batches.
    """

    position: int
    seed: int
    batch_size: int
    trainer: L.Trainer | None
    _saved_order: dict[str, Any] | None

    def tokens(self, split: str) -> TokenTable:
        """Return the token columns of a split, over all tasks."""
        raise NotImplementedError

    def batch_done(self, position: int) -> None:
        """Record that the training batch at `position` is trained; call it before a checkpoint can be written."""
        self.position = int(position)

    def _start(self) -> int:
        if self.position == 0 and self.trainer is not None and self.trainer.global_step > 0:
            raise RuntimeError(
                f"{self.trainer.global_step} steps are done and no position is known: training_step must call "
                "datamodule.batch_done(batch['position']), and a checkpoint must come from such a run"
            )
        return self.position

    def _order(self) -> dict[str, Any]:
        """Return everything that determines the order of the training batches."""
        table = self.tokens("train")
        return {"seed": self.seed, "batch_size": self.batch_size, "rows": len(table), "examples": table.digest}

    def state_dict(self) -> dict[str, Any]:
        """Return the position (number of trained batches) and everything that determines the batches' order."""
        return {"position": self.position, "order": self._saved_order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume after the batch at which `state_dict` was taken; the order is checked when training starts."""
        self.position = int(state_dict["position"])
        self._saved_order = state_dict["order"]
