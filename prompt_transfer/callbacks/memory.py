"""Freed memory goes back to the system where the process has grown (`allocation.py`)."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

from prompt_transfer.allocation import Growth


class GiveBack(Callback):
    """After batches of all loops; it does nothing in processes that do not keep what they free."""

    def __init__(self) -> None:
        self._growth = Growth()

    def _check(self, *_: Any, **__: Any) -> None:
        self._growth.check()

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _check
