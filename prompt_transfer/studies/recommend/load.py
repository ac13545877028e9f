"""Loading `prompts recommend`: candidate prompts, backbone and targets, all checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.studies.backbones import backbone_options
from prompt_transfer.studies.entries import (
    Entry,
    check_all,
    common_value,
    make_entries,
    warn_of_other_words,
    with_formats,
)
from prompt_transfer.studies.inputs import PromptSet, load_prompts, read_matrix
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import prove_writable_dir

if TYPE_CHECKING:
    from prompt_transfer.studies.recommend.study import RecommendStudy


@dataclass(frozen=True)
class RecommendInputs:
    """The checked inputs of a study.

    Attributes:
        folder: output folder.
        found: the N prompts of the folder.
        entries: the same prompts as entries, in the same order.
        own: [T, N], whether a prompt is the target's own.
        tasks: the T target tasks.
        matrix: transfer matrix for judging the rankings; None if not given.
        policy: shared `label_words_policy` of the prompts.
        words: label words of the target data (default or paper).
        module: module for short tuning; its backbone is used for scoring too and is loaded once.
    """

    folder: Path
    found: PromptSet
    entries: list[Entry]
    own: NDArray[np.bool_]
    tasks: list[Task]
    matrix: pd.DataFrame | None
    policy: str | None
    words: str
    module: PromptTuning

    @property
    def backbone(self) -> FrozenBackbone:
        """The backbone of the module."""
        return self.module.backbone

    @property
    def targets(self) -> list[str]:
        """Names of the target tasks."""
        return [task.name for task in self.tasks]

    @property
    def sources(self) -> list[str]:
        """Matrix column of each prompt: the task of a trained prompt, otherwise the prompt's name."""
        return [entry.source for entry in self.entries]

    @property
    def number(self) -> int:
        """N, the number of prompts."""
        return len(self.entries)


def load(study: RecommendStudy) -> RecommendInputs:
    """Read and check prompts, matrix, targets and backbone.

    Raises:
        UserError: prompts, matrix, targets, backbone or output folder are invalid or do not fit together.
    """
    if Path(study.output).resolve().is_relative_to(Path(study.prompts).resolve()):
        raise UserError(
            f"--output {study.output} lies in --prompts {study.prompts}: prompts written there would be taken for "
            "sources; give a folder outside"
        )
    remedy = f"only prompts of one backbone can be recommended: put those for {study.backbone} into a separate folder"
    found = load_prompts(study.prompts, at_least=1, remedy=remedy)
    named = dict(zip(found.names, found.prompts, strict=True))
    tasks = [get_task(name) for name in study.tasks]
    targets = [task.name for task in tasks]
    if len(set(targets)) < len(targets):
        raise UserError("--task names a target task twice")
    matrix = None if study.matrix is None else read_matrix(study.matrix)
    if matrix is not None and not set(targets) & set(matrix.index):
        raise UserError(
            f"{study.matrix} has rows for {', '.join(map(str, matrix.index))}, none for {', '.join(targets)}: without "
            "--matrix the sources are ranked, but the rankings are not judged"
        )
    policy = common_value(named, "label_words_policy")
    words = study.data.label_words or common_value(named, "data_label_words") or "default"
    study.data = with_formats(named, study.data)
    tasks = [task.with_format(study.data.template, study.data.chat_template) for task in tasks]
    prove_writable_dir(study.output)
    module = PromptTuning(
        study.backbone,
        prompt_length=len(found.prompts[0].embeddings),
        label_words_policy=policy,
        **backbone_options(named, dtype=study.dtype),
    )
    check_all(named, module.backbone)
    by_name = {entry.name: entry for entry in make_entries(named, module.backbone, 0)}
    entries = [by_name[name] for name in found.names]
    own = np.array([[e.kind == "trained" and e.source == name for e in entries] for name in targets], dtype=bool)
    for name, mine in zip(targets, own, strict=True):
        if mine.all():
            raise UserError(f"{study.prompts} holds only prompts of {name}: add prompts of other tasks")
    tasks = [task.paper_variant() if words == "paper" else task for task in tasks]
    warn_of_other_words(named, tasks, module.backbone)
    return RecommendInputs(Path(study.output), found, entries, own, tasks, matrix, policy, words, module)
