"""Early stopping of the single prompts of an ensemble."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from prompt_transfer.modules.prompt_ensemble import PromptEnsemble
from prompt_transfer.utils.errors import UserError


class StopEach(Callback):
    """Early stopping per prompt after `patience` evaluations in a row without a better score.

    Equals Lightning's EarlyStopping in separate runs. Stopped prompts are no longer trained or scored; the run ends
    with the last of them.

    Args:
        patience: number of evaluations, at least 1.
    """

    def __init__(self, patience: int) -> None:
        if patience < 1:
            raise UserError(
                f"--early_stopping is {patience}: give the evaluations to wait for a better score, 1 or more"
            )
        self.patience = patience
        # Name of the prompt -> its best score, and evaluations since.
        self.waits: dict[str, tuple[float, int]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, PromptEnsemble)
        for name, scores in pl_module.named_scores(trainer.callback_metrics, "validation").items():
            best, waited = self.waits.get(name, (float("-inf"), 0))
            better = scores["score"] > best
            self.waits[name] = (scores["score"], 0) if better else (best, waited + 1)
            if self.waits[name][1] >= self.patience:
                pl_module.stop(pl_module.files.index(name))
        if not pl_module.active:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"waits": {name: list(found) for name, found in self.waits.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.waits = {name: (best, waited) for name, (best, waited) in state_dict["waits"].items()}
