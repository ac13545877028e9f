"""Planning a transfer study: the missing answers as batches, shared between processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prompt_transfer.studies.backbones import choose_device
from prompt_transfer.studies.scoring import MAX_TOKENS, Batch, Scorer
from prompt_transfer.studies.targets import Target
from prompt_transfer.studies.transfer.load import TransferInputs

if TYPE_CHECKING:
    from prompt_transfer.studies.transfer.study import TransferStudy


@dataclass(frozen=True)
class TransferPlan:
    """The batches that one process computes.

    Attributes:
        scorer: the distinct prompts on the backbone.
        batches: batches of each target.
        costs: positions of each batch, for progress.
    """

    scorer: Scorer
    batches: list[list[Batch]]
    costs: list[list[int]]


def plan(study: TransferStudy, inputs: TransferInputs, world: int = 1) -> TransferPlan:
    """Plan this process's share of the missing answers; moves the backbone to its device.

    Args:
        study: the settings.
        inputs: loaded inputs.
        world: number of processes.
    """
    device = choose_device(study.accelerator, inputs.rank)
    inputs.backbone.to(device)
    distinct = inputs.distinct
    scorer = Scorer(inputs.backbone, distinct)
    max_tokens = study.data.max_tokens or MAX_TOKENS[device.type]
    shares = [
        scorer.batches(target, np.isnan(file.matrix(distinct)), max_tokens)[inputs.rank :: world]
        for target, file in zip(inputs.targets, inputs.answers, strict=True)
    ]
    costs = [
        [_positions(batch, target, scorer.extra(target)) for batch in batches]
        for target, batches in zip(inputs.targets, shares, strict=True)
    ]
    return TransferPlan(scorer, shares, costs)


def _positions(batch: Batch, target: Target, extra: int) -> int:
    prompts, rows = batch
    return len(prompts) * int(target.table.copies[rows].sum()) * (int(target.table.lengths[rows].max()) + extra)
