"""Loading a projection study: projectors, prompts of both backbones and the backbones, all checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.projectors.pairs import PromptsByTask, load_by_task
from prompt_transfer.prompts.prompt import UNKNOWN
from prompt_transfer.studies.entries import common_value, with_formats
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir

if TYPE_CHECKING:
    from prompt_transfer.studies.projection.study import ProjectionStudy

# Backbone facts that all projectors of a table must share, by side.
SOURCE = ("fingerprint", "hidden_size")
TARGET = (*SOURCE, "layout", "attention", "dtype", "head")


@dataclass(frozen=True)
class ProjectionInputs:
    """The checked inputs of a study.

    Attributes:
        folder: output folder.
        files: projectors by name.
        sources, own: prompts of the source and of the target backbone, by task.
        source, backbone: source and target backbone; `score` moves the latter to its device.
        tasks: the target tasks.
        words: label words of the target data (default or paper).
    """

    folder: Path
    files: dict[str, ProjectorFile]
    sources: PromptsByTask
    own: PromptsByTask
    source: FrozenBackbone
    backbone: FrozenBackbone
    tasks: list[Task]
    words: str

    @property
    def names(self) -> list[str]:
        """Names of the target tasks."""
        return [task.name for task in self.tasks]


def load(study: ProjectionStudy) -> ProjectionInputs:
    """Read and check projectors, prompts and backbones.

    Raises:
        UserError: projectors, prompts, tasks, backbones or output folder are invalid or do not fit together.
    """
    files = {_name(file): file for file in map(ProjectorFile.load, study.projectors)}
    if len(files) < len(study.projectors):
        raise UserError("two projectors share a name: rename a file, or the folder of a run")
    first = _check_one_pair(list(files.values()))
    tasks = [get_task(name) for name in study.tasks]
    names = [task.name for task in tasks]
    if len(set(names)) < max(len(names), 2):
        raise UserError("--tasks needs at least two tasks, each once: the shuffled-source control is between tasks")
    sources = load_by_task(study.sources, "--sources")
    sources.need(names, "source")
    own = load_by_task(study.own, "--own")
    own.need(names, "own (target)")
    for file in files.values():
        for prompt in sources.prompts:
            file.check(prompt)
    folder = check_writable_dir(study.output)
    backbone = _load_target_backbone(first)
    for prompt in own.prompts:
        prompt.check(backbone, backbone.layout, backbone.attention)
    source = sources.backbone(None if first.source.backbone == UNKNOWN else first.source.backbone)
    named = {str(prompt.path): prompt for prompt in own.prompts}
    policy = common_value(named, "label_words_policy")
    tasks = [task.with_policy(policy) for task in tasks]
    words = common_value(named, "data_label_words", study.data.label_words) or "default"
    study.data = with_formats(named, study.data)
    return ProjectionInputs(folder, files, sources, own, source, backbone, tasks, words)


def _load_target_backbone(file: ProjectorFile) -> FrozenBackbone:
    backbone = FrozenBackbone(
        file.target.backbone,
        attention=file.target.attention or "full",
        dtype=file.target.dtype or "float32",
        head=file.target.head or "lm",
        layout=file.target.layout or None,
        revision=file.target.revision or None,
    )
    if file.target.fingerprint not in (UNKNOWN, backbone.fingerprint):
        raise UserError(
            f"{backbone.id} is not the backbone that {file.path} was trained for: tokenizer, configuration or "
            "embeddings differ; use that backbone, or train the projector again"
        )
    return backbone


def _check_one_pair(files: Sequence[ProjectorFile]) -> ProjectorFile:
    """Raise UserError unless all projectors have the same pair of backbones; return the first."""
    first = files[0]
    for file in files:
        for side, keys in (("source", SOURCE), ("target", TARGET)):
            one, other = ({key: getattr(getattr(which, side), key) for key in keys} for which in (first, file))
            if one != other:
                differences = ", ".join(f"{key} {one[key]} and {other[key]}" for key in keys if one[key] != other[key])
                raise UserError(
                    f"{first.path} and {file.path} have different {side}s ({differences}): give projectors of one "
                    "pair of backbones"
                )
    return first


def _name(file: ProjectorFile) -> str:
    assert file.path is not None
    return file.path.resolve().parent.name if file.path.stem == "projector" else file.path.stem
