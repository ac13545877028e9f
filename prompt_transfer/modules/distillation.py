"""Distillation from a frozen source backbone whose answers with fixed prompts are computed once.

No labels are used. Answers are compared over the label words, so the vocabularies of the backbones may differ.
Shape letters: B batch, n examples, K prompts, S most prompts of a task, P prompt tokens, H hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prompt_transfer.data.batches import collate
from prompt_transfer.data.tables import Tables
from prompt_transfer.modules.objectives import Classification
from prompt_transfer.utils.progress import steps

# Examples in a forward pass.
ROWS = 128
# Replaces -inf for missing classes, because the difference of two must be 0 and not NaN.
NO_CLASS = -1e4


class AnswerTable:
    """Class logits of a split, conditioned on fixed prompts.

    Args:
        objective: of the backbone that is asked, on its device.
        data: a TaskDataModule; its examples are tokenized for this backbone.
        split: train, validation or test.
        prompts: [K, P, H]; P may be 0.
        of_task: for each task the numbers of the prompts that its examples are scored with.
        asked: for each of these numbers the task whose label words are compared; default: the task of the example.
    """

    def __init__(
        self,
        objective: Classification,
        data: Any,
        split: str,
        prompts: Tensor,
        of_task: Sequence[Sequence[int]],
        asked: Sequence[Sequence[int]] | None = None,
    ) -> None:
        backbone = objective.backbone
        device = backbone.device
        encoder = backbone.encoder(prompts.shape[1])
        options = (data.max_length, data.cache_dir, data.special_tokens)
        table = Tables(data.selection, encoder, *options).split(split)
        slots, classes = max(map(len, of_task)), objective.class_mask.shape[1]
        values = torch.zeros(len(table), slots, classes)
        prompts = prompts.to(device)
        bank = backbone.record(prompts)
        work = []
        for task in range(len(of_task)):
            rows = np.flatnonzero(table.task_ids == task)
            rows = rows[np.argsort(-table.lengths[rows], kind="stable")]
            work += [(task, rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
        with torch.inference_mode():
            for task, chosen in steps(work, f"answers of {backbone.id}", len(work)):
                batch = {k: v.to(device) for k, v in collate(table, chosen, encoder.pad_token_id).items()}
                words = [task] * len(of_task[task]) if asked is None else asked[task]
                for number in dict.fromkeys(of_task[task]):
                    batch["prompt_ids"] = torch.full_like(batch["task_ids"], number)
                    mine = [slot for slot, other in enumerate(of_task[task]) if other == number]
                    found = objective.logits_of_tasks(bank, batch, [words[slot] for slot in mine])
                    for slot, logits in zip(mine, found, strict=True):
                        values[chosen, slot] = logits.clamp_min(NO_CLASS).cpu()
        order = np.argsort(table.ids)
        self.ids = torch.from_numpy(table.ids[order]).to(device)
        self.values = values[torch.from_numpy(order)].to(device)

    def look(self, ids: Tensor, slots: Tensor) -> Tensor:
        """Return logits [B, C] of the examples `ids` [B], each with prompt `slots` [B] of its task."""
        return self.values[torch.searchsorted(self.ids, ids), slots]


def divergence(target: Tensor, source: Tensor, temperature: float) -> Tensor:
    """Return KL(source || target) of softened class logits [B, C], times the temperature squared: [B] in nats."""
    log_p = (source / temperature).log_softmax(dim=1)
    log_q = (target / temperature).log_softmax(dim=1)
    return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1) * temperature**2


def distillation(
    target: Tensor,
    source: Tensor,
    target_alone: Tensor | None,
    source_alone: Tensor | None,
    mask: Tensor,
    alpha: float,
    temperature: float,
) -> Tensor:
    """Return (1 - alpha) D(z_target, z_source) + alpha D(shift_target, shift_source), [B] in nats (Wang et al. 2025).

    The loss of POST: z are logits with the prompt, a shift is their difference from the logits without one.

    Args:
        target, source: z, [B, C].
        target_alone, source_alone: logits without a prompt, [B, C]; None with alpha 0.
        mask: bool [B, C], the classes that the task has.
        alpha: weight of the shifts.
        temperature: of D, the `divergence`.
    """

    def term(one: Tensor, other: Tensor) -> Tensor:
        return divergence(one.masked_fill(~mask, NO_CLASS), other.masked_fill(~mask, NO_CLASS), temperature)

    loss = (1 - alpha) * term(target, source)
    if target_alone is not None and source_alone is not None:
        loss = loss + alpha * term(target.clamp_min(NO_CLASS) - target_alone, source - source_alone)
    return loss


class Teacher:
    """Answers of the source backbone with its own prompts, which the target learns to match.

    Args:
        source: objective of the source backbone, on its device.
        data: a TaskDataModule.
        prompts: the source prompts [K, P, H].
        of_task: for each task the numbers of its prompts.
        across: number of a prompt -> its task: training examples of every task are scored with all of these prompts;
            default: with the prompts of their own task.
        target: objective of the target backbone; None: no training, only comparison on the validation split.
        alpha, temperature: of `distillation`.
    """

    def __init__(
        self,
        source: Classification,
        data: Any,
        prompts: Tensor,
        of_task: Sequence[Sequence[int]],
        across: Mapping[int, int] | None = None,
        target: Classification | None = None,
        alpha: float = 0.5,
        temperature: float = 2.0,
    ) -> None:
        self.alpha, self.temperature = alpha, temperature
        self.validation = AnswerTable(source, data, "validation", prompts, of_task)
        self.alone: list[AnswerTable] = []
        if target is None:
            return
        self.target = target
        tasks = len(of_task)
        self.across = across is not None
        asked = None if across is None else [list(across.values())] * tasks
        numbers = of_task if across is None else [list(across)] * tasks
        self.train = AnswerTable(source, data, "train", prompts, numbers, asked)
        for objective in (target, source) if alpha else ():
            nothing = torch.zeros(1, 0, objective.backbone.hidden_size)
            slots = [[0] * (tasks if self.across else 1)] * tasks
            words = [range(tasks)] * tasks if self.across else None
            self.alone.append(AnswerTable(objective, data, "train", nothing, slots, words))

    def losses(self, logits: Tensor, batch: dict[str, Tensor], slots: Tensor) -> Tensor:
        """Return the loss [B] of the target's class logits [B, C] on training examples.

        Args:
            logits: of the target.
            batch: `ids`, and `task_ids`, the tasks whose label words are compared.
            slots: [B], which prompt of its task, or of `across`, each example is scored with.
        """
        ids, first = batch["ids"], batch["task_ids"] if self.across else torch.zeros_like(slots)
        mine, its = (table.look(ids, first) for table in self.alone) if self.alone else (None, None)
        mask = self.target.class_mask[batch["task_ids"]]
        return distillation(logits, self.train.look(ids, slots), mine, its, mask, self.alpha, self.temperature)

    def agrees(self, predictions: Tensor, ids: Tensor, slots: Tensor) -> Tensor:
        """Return 1.0 for each validation example [B] whose predicted class is the source's, else 0.0."""
        return (predictions == self.validation.look(ids, slots).argmax(dim=1)).float()
