"""Scoring a projection study: computes the missing answers of all prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prompt_transfer.studies.backbones import choose_device, describe_backbone
from prompt_transfer.studies.projection.load import ProjectionInputs
from prompt_transfer.studies.projection.plan import ProjectionPlan
from prompt_transfer.studies.projection.table import Answers
from prompt_transfer.studies.scoring import MAX_TOKENS, AnswerFile, Scorer
from prompt_transfer.utils.progress import steps

if TYPE_CHECKING:
    from prompt_transfer.studies.projection.study import ProjectionStudy


def score(study: ProjectionStudy, inputs: ProjectionInputs, planned: ProjectionPlan) -> Answers:
    """Compute the missing answers, saving them as they arrive.

    Returns:
        Task -> digest of a prompt -> its answers [n].
    """
    device = choose_device(study.accelerator)
    inputs.backbone.to(device)
    entries = planned.entries
    scorer = Scorer(inputs.backbone, entries)
    max_tokens = study.data.max_tokens or MAX_TOKENS[device.type]
    answers = {}
    for target in planned.targets:
        file = AnswerFile.read(inputs.folder / "answers", target, describe_backbone(inputs.backbone))
        needed = planned.needed(target)
        mine = np.array([entry.digest in needed for entry in entries])
        missing = np.isnan(file.matrix(entries)) & mine[:, None]
        batches = scorer.batches(target, missing, max_tokens)
        filled = file.fill(entries, scorer.answers(target, batches), [0] * len(batches))
        for _ in steps(filled, target.task.name, len(batches)):
            pass
        answers[target.task.name] = {digest: file.values[digest] for digest in needed}
    return answers
