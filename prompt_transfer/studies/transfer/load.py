"""Loading a transfer study: prompts, backbone, tasks and known answers, all checked before anything is scored."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.studies.backbones import backbone_options, describe_backbone
from prompt_transfer.studies.entries import (
    Entry,
    check_all,
    common_value,
    make_entries,
    read_folder,
    warn_of_other_words,
    with_formats,
)
from prompt_transfer.studies.scoring import AnswerFile
from prompt_transfer.studies.targets import Target, load_target, warn_of_shared_rows
from prompt_transfer.studies.transfer.table import check_names, is_own
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir

if TYPE_CHECKING:
    from prompt_transfer.studies.transfer.study import TransferStudy

ANSWERS = "answers"


@dataclass(frozen=True)
class TransferInputs:
    """The checked inputs of a study.

    Attributes:
        folder: output folder.
        backbone: the backbone, on the CPU until `plan` moves it to its device.
        entries: N prompts: those of the folder, then random ones.
        targets: the target tasks.
        answers: known answers to each target.
        rank: number of this process.
    """

    folder: Path
    backbone: FrozenBackbone
    entries: list[Entry]
    targets: list[Target]
    answers: list[AnswerFile]
    rank: int = 0

    @property
    def distinct(self) -> list[Entry]:
        """One entry per distinct prompt: answers depend on the embeddings only, so equal prompts are scored once."""
        return list({entry.digest: entry for entry in self.entries}.values())


def load(study: TransferStudy, rank: int = 0) -> TransferInputs:
    """Read and check everything that a study needs.

    Args:
        study: the settings.
        rank: number of this process; only the first one warns.

    Raises:
        UserError: prompts, backbone, tasks, data or output folder are invalid or do not fit together.
    """
    tasks = [get_task(name) for name in study.tasks]
    if not tasks or len({task.name for task in tasks}) < len(tasks):
        raise UserError("--tasks needs target tasks, each once")
    prompts = read_folder(study.prompts, study.attention, study.layout)
    options = backbone_options(prompts, study.attention, study.layout, study.dtype)
    folder = check_writable_dir(study.output)
    backbone = FrozenBackbone(study.backbone, **options)
    check_all(prompts, backbone)
    entries = make_entries(prompts, backbone, study.random_prompts)
    check_names(entries)
    policy = common_value(prompts, "label_words_policy", study.label_words_policy)
    words = common_value(prompts, "data_label_words", study.data.label_words) or "default"
    study.data = with_formats(prompts, study.data)
    encoder = backbone.encoder(max(len(entry.embeddings) for entry in entries))
    with_keys = rank == 0 and len(tasks) > 1
    targets = [
        load_target(task.with_policy(policy), study.data, words, study.split, encoder, with_keys) for task in tasks
    ]
    if study.calibrate:
        targets = [target.calibrate() for target in targets]
    if rank == 0:
        warn_of_other_words(prompts, [target.task for target in targets], backbone)
        _warn_of_targets_without_own([target.task for target in targets], entries)
        warn_of_shared_rows(targets, {entry.source for entry in entries if entry.kind == "trained"})
    return TransferInputs(folder, backbone, entries, targets, read_answers(folder, targets, backbone, rank), rank)


def read_answers(folder: Path, targets: Sequence[Target], backbone: FrozenBackbone, rank: int = 0) -> list[AnswerFile]:
    """Read the known answers to each target from an output folder, merged over processes."""
    return [AnswerFile.read(folder / ANSWERS, target, describe_backbone(backbone), rank) for target in targets]


def _warn_of_targets_without_own(tasks: Sequence[Task], entries: Sequence[Entry]) -> None:
    without = [task.name for task in tasks if not any(is_own(entry, task.name) for entry in entries)]
    if without:
        warnings.warn(
            f"no prompt was trained on {', '.join(without)}: relative scores are missing there; add a prompt trained "
            "on the task to --prompts",
            stacklevel=2,
        )
