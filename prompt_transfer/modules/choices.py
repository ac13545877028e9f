"""Multiple choice: cross-entropy over the options of a row, each scored by its log-likelihood.

Shape letters: B batch, T text tokens, O options, S tokens of an option, M metrics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prompt_transfer.backbones.answers import PromptBank
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.options import option_log_probs
from prompt_transfer.modules.objective import Objective, References
from prompt_transfer.tasks.registry import Task

IGNORED = -100


class ChoiceScoring(Objective):
    """Cross-entropy over the options of each row, scored by the sum or mean of their tokens' log-probabilities."""

    means: Tensor

    def __init__(self, backbone: FrozenBackbone, tasks: list[Task]) -> None:
        super().__init__(backbone, tasks)
        means = torch.tensor([task.choice_score == "mean" for task in tasks])
        self.register_buffer("means", means, persistent=False)

    def logits(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> Tensor:
        """Return the score of each option [B, O]; -inf beyond a row's options."""
        options = batch["option_ids"]
        there = (options != IGNORED).any(dim=2)
        rows = there.nonzero()[:, 0]
        texts = batch["text_ids"] if "text_ids" in batch else torch.arange(len(options), device=options.device)
        repeated = {"target_ids": options[there], "text_ids": texts[rows]}
        repeated |= {name: batch[name] for name in ("input_ids", "attention_mask")}
        if "prompt_ids" in batch:
            repeated["prompt_ids"] = batch["prompt_ids"][rows]
        found = option_log_probs(self.backbone, prompt, repeated)
        lengths = (repeated["target_ids"] != IGNORED).sum(dim=1)
        scores = found.sum(dim=1) / torch.where(self.means[batch["task_ids"]][rows], lengths, 1)
        return torch.full(there.shape, float("-inf"), device=scores.device).masked_scatter(there, scores)

    @staticmethod
    def _losses(logits: Tensor, right: Tensor) -> Tensor:
        """Return -log of the probability of the right options [B]; 0 for rows without one, which are never trained."""
        known = right.any(dim=1, keepdim=True)
        of_right = logits.masked_fill(~right & known, float("-inf")).logsumexp(dim=1)
        return torch.where(known[:, 0], logits.logsumexp(dim=1) - of_right, 0.0)

    def losses(self, prompt: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return self._losses(self.logits(prompt, batch), batch["option_right"])

    def predict(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Return `ids`, `task_ids` [B] and `options`, a list of B lists of probabilities, one per option."""
        logits = self.logits(prompt, batch)
        counts = (batch["option_ids"] != IGNORED).any(dim=2).sum(dim=1).tolist()
        probabilities = logits.softmax(dim=1)
        return {
            "ids": batch["ids"],
            "task_ids": batch["task_ids"],
            "options": [row[:count] for row, count in zip(probabilities.tolist(), counts, strict=True)],
            "answered": probabilities.sum(dim=1),
        }

    def choices(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> Tensor:
        """Return the chosen option of each row [B]; -1 if a score is NaN or +Inf (invalid argmax)."""
        logits = self.logits(prompt, batch)
        return logits.argmax(dim=1).masked_fill((logits.isnan() | logits.isposinf()).any(dim=1), -1)

    @staticmethod
    def scores_of(batch: dict[str, Tensor], chosen: Tensor) -> Tensor:
        """Return the scores [B, M] of the chosen options [B]."""
        table = batch["option_scores"]
        return table.gather(1, chosen.clamp_min(0)[:, None, None].expand(-1, 1, table.shape[2]))[:, 0]

    def outputs(self, prompt: Tensor, batch: dict[str, Tensor]) -> dict[str, Any]:
        return {"logits": self.logits(prompt, batch)}

    def count(
        self, outputs: dict[str, Any], batch: dict[str, Tensor], split: str, references: References, keep: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        logits = outputs["logits"]
        predictions = logits.argmax(dim=1)
        scores = self.scores_of(batch, predictions)
        for index, metrics in enumerate(self.task_metrics(split)):
            rows = batch["task_ids"] == index
            if rows.any():
                metrics.update(scores[rows])
        losses = self._losses(logits, batch["option_right"])
        self.mean_loss.update(losses)
        # A NaN score spreads to the loss, also where no option is right.
        losses = losses + 0 * logits.masked_fill(logits.isneginf(), 0.0).sum(dim=1)
        return losses, {
            "ids": batch["ids"],
            "task_ids": batch["task_ids"],
            "scores": scores,
            "predictions": predictions,
        }
