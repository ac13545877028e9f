"""Planning a projection study: the projected prompts, their controls, and the tasks they are scored on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prompt_transfer.modules.collapse import mean_cosine
from prompt_transfer.projectors.closed_form import ClosedForm, LeastSquares, LinearCombination, Relative
from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.projectors.pairs import PromptsByTask
from prompt_transfer.prompts.prompt import UNKNOWN
from prompt_transfer.prompts.random_prompts import DRAWS, random_prompt
from prompt_transfer.studies.entries import Entry
from prompt_transfer.studies.projection.load import ProjectionInputs
from prompt_transfer.studies.projection.table import Cell, ProjectorCells
from prompt_transfer.studies.targets import Target, load_target
from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.studies.projection.study import ProjectionStudy

CLOSED_FORMS: dict[str, type[ClosedForm]] = {
    "least_squares": LeastSquares,
    "linear_combination": LinearCombination,
    "relative": Relative,
}


@dataclass(frozen=True)
class ProjectionPlan:
    """The prompts of a study and the tasks they are scored on.

    Attributes:
        common: cells that do not depend on a projector: own prompts, random prompts and closed forms.
        projected: cells of each projector.
        targets: the target tasks, tokenized with room for the longest prompt.
        notes: closed forms that cannot be fitted -> reason.
    """

    common: dict[str, Cell]
    projected: dict[str, ProjectorCells]
    targets: list[Target]
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def entries(self) -> list[Entry]:
        """All distinct prompts."""
        entries = [entry for cell in _cells(self.common, self.projected) for one in cell.values() for entry in one]
        return list({entry.digest: entry for entry in entries}.values())

    def needed(self, target: Target) -> set[str]:
        """Return the digests of the prompts scored on a task."""
        return {entry.digest for cell in _cells(self.common, self.projected) for entry in cell[target.task.name]}


def plan(study: ProjectionStudy, inputs: ProjectionInputs) -> ProjectionPlan:
    """Project the source prompts, make all controls, and read the target tasks.

    Raises:
        UserError: data that cannot be read.
    """
    notes: dict[str, str] = {}
    common = _common_cells(study, inputs, notes)
    projected = {name: _projector_cells(study, inputs, file) for name, file in inputs.files.items()}
    longest = max(len(entry.embeddings) for cell in _cells(common, projected) for one in cell.values() for entry in one)
    encoder = inputs.backbone.encoder(longest)
    targets = [load_target(task, study.data, inputs.words, study.split, encoder) for task in inputs.tasks]
    return ProjectionPlan(common, projected, targets, notes)


def _cells(common: dict[str, Cell], projected: dict[str, ProjectorCells]) -> Iterator[Cell]:
    yield from common.values()
    for cells in projected.values():
        yield from cells.cells.values()


def _common_cells(study: ProjectionStudy, inputs: ProjectionInputs, notes: dict[str, str]) -> dict[str, Cell]:
    """Return the cells that do not depend on a projector; `notes` gets the closed forms that cannot be fitted."""
    names = inputs.names
    found: dict[str, Cell] = {"own": {name: _entries_of(inputs.own, name, "own") for name in names}}
    # As long as the longest prompt they are compared with.
    lengths = [inputs.own.embeddings.shape[1], *(file.target.prompt_length or 0 for file in inputs.files.values())]
    shape = (max(lengths), inputs.backbone.hidden_size)
    for draw in DRAWS:
        entries = [
            Entry(f"random {draw} {number}", "random", "random", number,
                  random_prompt(inputs.backbone, shape, number, draw))
            for number in range(1, study.random_prompts + 1)
        ]  # fmt: skip
        found[f"random_{draw}"] = dict.fromkeys(names, entries)
    for name in study.closed_forms:
        projector = CLOSED_FORMS[name]()
        try:
            projector.fit(inputs.source, inputs.backbone)
        except UserError as error:
            notes[name] = str(error)
            warnings.warn(f"no {name} baseline: {error}", stacklevel=2)
            found[name] = {task: [] for task in names}
            continue
        used = [number for task in names for number in inputs.sources.numbers[task]]
        with torch.no_grad():
            projections = dict(zip(used, projector(inputs.sources.embeddings[used]).float(), strict=True))
        found[name] = {task: _projection_entries(inputs.sources, name, task, projections) for task in names}
    return found


def _entries_of(prompts: PromptsByTask, task: str, kind: str) -> list[Entry]:
    chosen = [prompts.prompts[number] for number in prompts.numbers[task]]
    return [
        Entry(str(prompt.path), kind, task, _seed(prompt.metadata.get("seed", "")), prompt.embeddings, file=prompt)
        for prompt in chosen
    ]


def _projection_entries(sources: PromptsByTask, kind: str, task: str, projections: dict[int, Tensor]) -> list[Entry]:
    """Return entries of a task's projections, given by the number of the source prompt."""
    return [
        Entry(
            f"{kind} {sources.prompts[number].path}",
            kind,
            task,
            _seed(sources.prompts[number].metadata.get("seed", "")),
            projections[number],
        )
        for number in sources.numbers[task]
    ]


def _projector_cells(study: ProjectionStudy, inputs: ProjectionInputs, file: ProjectorFile) -> ProjectorCells:
    """Return the projections of a projector and of its control sources."""
    sources, names = inputs.sources, inputs.names
    # Every source task can serve as a shuffled source; the study's tasks come first, in their order.
    tasks = list(dict.fromkeys([*names, *sources.numbers]))
    projections = dict(enumerate(file.rows(sources.embeddings)))
    own = {task: _projection_entries(sources, "projected", task, projections) for task in tasks}
    order = [tasks[index] for index in np.random.default_rng(study.seed).permutation(len(tasks))]
    shifts = range(1, min(study.shuffles, len(order) - 1) + 1)
    shuffled = {
        task: [entry for shift in shifts for entry in own[order[(order.index(task) + shift) % len(order)]]]
        for task in names
    }
    shape = (sources.embeddings.shape[1], inputs.source.hidden_size)
    drawn = [random_prompt(inputs.source, shape, number) for number in range(1, study.random_prompts + 1)]
    constant = [
        Entry(f"constant {number}", "constant", "constant", number, embeddings)
        for number, embeddings in enumerate(file.rows(torch.stack(drawn)), start=1)
    ]
    mean = file.rows(sources.embeddings.mean(dim=0, keepdim=True))[0]
    of_task = torch.tensor([tasks.index(prompt.metadata["task"]) for prompt in sources.prompts])
    return ProjectorCells(
        file=file,
        cells={
            "projected": {task: own[task] for task in names},
            "shuffled_source": shuffled,
            "constant_source": dict.fromkeys(names, constant),
            "mean_source": {name: [Entry("mean source", "constant", "constant", None, mean)] for name in names},
        },
        cosine=float(mean_cosine(torch.stack(list(projections.values())), of_task)),
        source_cosine=float(mean_cosine(sources.embeddings, of_task)),
        types={_type(task, study.tasks) for task in file.metadata.get("tasks", "").split(",") if task},
    )


def _seed(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _type(task: str, paths: Sequence[str]) -> str:
    if task in task_names():
        return get_task(task).type
    own = {known.name: known.type for known in map(get_task, paths)}
    return own.get(task, UNKNOWN)
