"""What projectors are worth: projected prompts on their tasks, beside all that could explain their scores."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from prompt_transfer.analysis import plots
from prompt_transfer.analysis.projection import scores_figure
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.modules.collapse import mean_cosine
from prompt_transfer.projectors.closed_form import ClosedForm, LeastSquares, LinearCombination, Relative
from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.projectors.pairs import PromptsByTask, load_by_task
from prompt_transfer.prompts.prompt import UNKNOWN
from prompt_transfer.prompts.random_prompts import DRAWS, random_prompt
from prompt_transfer.studies.entries import Entry, common_value
from prompt_transfer.studies.projection.table import Cell, ProjectorCells, rows
from prompt_transfer.studies.scoring import MAX_TOKENS, AnswerFile, Scorer
from prompt_transfer.studies.targets import EvaluationData, Target, digests_of, load_target
from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir, exclusive_lock
from prompt_transfer.utils.progress import steps
from prompt_transfer.utils.provenance import write_provenance

CLOSED_FORMS: dict[str, type[ClosedForm]] = {
    "least_squares": LeastSquares,
    "linear_combination": LinearCombination,
    "relative": Relative,
}
# What projectors of one table have in common.
SOURCE = ("fingerprint", "hidden_size")
TARGET = (*SOURCE, "layout", "attention", "dtype", "head")


@dataclass
class ProjectionStudy:
    """What is scored and how.

    Args:
        projectors: projector files, or folders of the runs that trained them; of one pair of backbones.
        sources: folders or files with the source backbone's prompts: one for each task and seed.
        own: the same of the target backbone.
        tasks: target tasks: names, or paths of YAML files.
        output: folder for table, figure and the answers so far; a study that was stopped goes on there.
        data: where the rows come from and how many.
        split: test or validation.
        random_prompts: random prompts of each kind, and random source prompts for the constant-source control.
        shuffles: how many other tasks' source prompts stand for the task's own in the shuffled-source control.
        closed_forms: names of `CLOSED_FORMS`, as baselines.
        seed: of the order of tasks in that control.
        accelerator: auto, cpu or cuda.
    """

    projectors: Sequence[str]
    sources: Sequence[str]
    own: Sequence[str]
    tasks: Sequence[str]
    output: str
    data: EvaluationData = field(default_factory=EvaluationData)
    split: str = "test"
    random_prompts: int = 3
    shuffles: int = 3
    closed_forms: Sequence[str] = tuple(CLOSED_FORMS)
    seed: int = 0
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        if self.split not in ("test", "validation"):
            raise UserError(f"--split is {self.split!r}: choose test or validation")
        if self.random_prompts < 1 or self.shuffles < 1:
            raise UserError("--random_prompts and --shuffles are controls, without which there is no table: 1 or more")
        unknown = [name for name in self.closed_forms if name not in CLOSED_FORMS]
        if unknown or not self.closed_forms:
            raise UserError(
                f"--closed_forms {', '.join(unknown) or 'is empty'}: one at least of {', '.join(CLOSED_FORMS)}"
            )
        if self.accelerator not in ("auto", "cpu", "cuda"):
            raise UserError(f"--accelerator is {self.accelerator!r}: choose auto, cpu or cuda")
        if not self.projectors:
            raise UserError("give projector files: analyze projection FILE... --sources DIR --own DIR --tasks a,b")


class ProjectionRun:
    """A study whose files, backbones and data have been read and checked, with all prompts that are scored.

    Raises:
        UserError: anything that does not fit, before any score is computed.
    """

    def __init__(self, study: ProjectionStudy) -> None:
        self.study = study
        self.files = {_name(file): file for file in map(ProjectorFile.load, study.projectors)}
        if len(self.files) < len(study.projectors):
            raise UserError("two projectors have one name: rename a file, or the folder of a run")
        first = self._check_one_pair()
        tasks = [get_task(name) for name in study.tasks]
        names = [task.name for task in tasks]
        if len(set(names)) < max(len(names), 2):
            raise UserError("--tasks needs two tasks at least, each once: the shuffled-source control is between tasks")
        self.sources = load_by_task(study.sources, "--sources")
        self.sources.need(names, "source")
        self.own = load_by_task(study.own, "--own")
        self.own.need(names, "own (target)")
        for file in self.files.values():
            for prompt in self.sources.prompts:
                file.check(prompt)
        self.folder = check_writable_dir(study.output)
        self.backbone = FrozenBackbone(
            first.target.backbone,
            attention=first.target.attention or "full",
            dtype=first.target.dtype or "float32",
            head=first.target.head or "lm",
            layout=first.target.layout or None,
            revision=first.target.revision or None,
        )
        if first.target.fingerprint not in (UNKNOWN, self.backbone.fingerprint):
            raise UserError(
                f"{self.backbone.id} is not the backbone that {first.path} knows under this name: another tokenizer, "
                "configuration or other embeddings"
            )
        for prompt in self.own.prompts:
            prompt.check(self.backbone, self.backbone.layout, self.backbone.attention)
        self.source = self.sources.backbone(None if first.source.backbone == UNKNOWN else first.source.backbone)
        known = {str(prompt.path): prompt for prompt in self.own.prompts}
        policy = common_value(known, "label_words_policy")
        if policy is not None:
            tasks = [task if task.is_generation else replace(task, label_words_policy=policy) for task in tasks]
        words = common_value(known, "data_label_words", study.data.label_words) or "default"
        self.notes: dict[str, str] = {}
        self.common, self.projected = self._common(names), {n: self._projected(f, names) for n, f in self.files.items()}
        everything = [entry for cell in self._cells() for entry in cell]
        self.entries = list({entry.digest: entry for entry in everything}.values())
        encoder = self.backbone.encoder(max(len(entry.embeddings) for entry in self.entries))
        self.targets = [load_target(task, study.data, words, study.split, encoder) for task in tasks]

    def _check_one_pair(self) -> ProjectorFile:
        first = next(iter(self.files.values()))
        for file in self.files.values():
            for side, keys in (("source", SOURCE), ("target", TARGET)):
                one, other = ({key: getattr(getattr(which, side), key) for key in keys} for which in (first, file))
                if one != other:
                    what = ", ".join(f"{key} {one[key]} and {other[key]}" for key in keys if one[key] != other[key])
                    raise UserError(
                        f"{first.path} and {file.path} have different {side}s ({what}): one table is of one pair"
                    )
        return first

    # The prompts -----------------------------------------------------------------------------------------------

    def _common(self, names: Sequence[str]) -> dict[str, Cell]:
        """What does not depend on a projector: own prompts, random ones, closed forms."""
        found: dict[str, Cell] = {"own": {name: self._of(self.own, name, "own") for name in names}}
        # As long as the longest that they are compared with.
        longest = [self.own.embeddings.shape[1], *(file.target.prompt_length or 0 for file in self.files.values())]
        shape = (max(longest), self.backbone.hidden_size)
        for draw in DRAWS:
            entries = [
                Entry(
                    f"random {draw} {number}",
                    "random",
                    "random",
                    number,
                    random_prompt(self.backbone, shape, number, draw),
                )
                for number in range(1, self.study.random_prompts + 1)
            ]
            found[f"random_{draw}"] = dict.fromkeys(names, entries)
        for name in self.study.closed_forms:
            projector = CLOSED_FORMS[name]()
            try:
                projector.fit(self.source, self.backbone)
            except UserError as error:
                self.notes[name] = str(error)
                warnings.warn(f"no {name} baseline: {error}", stacklevel=2)
                found[name] = {task: [] for task in names}
                continue
            used = [number for task in names for number in self.sources.numbers[task]]
            with torch.no_grad():
                made = dict(zip(used, projector(self.sources.embeddings[used]).float(), strict=True))
            found[name] = {task: self._made(name, task, made) for task in names}
        return found

    def _of(self, prompts: PromptsByTask, task: str, kind: str) -> list[Entry]:
        chosen = [prompts.prompts[number] for number in prompts.numbers[task]]
        return [
            Entry(str(prompt.path), kind, task, _seed(prompt.metadata.get("seed", "")), prompt.embeddings)
            for prompt in chosen
        ]

    def _made(self, kind: str, task: str, made: dict[int, Tensor]) -> list[Entry]:
        """Entries of projections (number of the source prompt -> rows) for the source prompts of a task."""
        return [
            Entry(
                f"{kind} {self.sources.prompts[number].path}",
                kind,
                task,
                _seed(self.sources.prompts[number].metadata.get("seed", "")),
                made[number],
            )
            for number in self.sources.numbers[task]
        ]

    def _projected(self, file: ProjectorFile, names: Sequence[str]) -> ProjectorCells:
        """Projections of a projector, and of what controls it."""
        # All source tasks of the folder may stand in for another; those of the study come in their order.
        tasks = list(dict.fromkeys([*names, *self.sources.numbers]))
        rows_of = dict(enumerate(file.rows(self.sources.embeddings)))
        own = {task: self._made("projected", task, rows_of) for task in tasks}
        order = [tasks[index] for index in np.random.default_rng(self.study.seed).permutation(len(tasks))]
        shifts = range(1, min(self.study.shuffles, len(order) - 1) + 1)
        shuffled = {
            task: [entry for shift in shifts for entry in own[order[(order.index(task) + shift) % len(order)]]]
            for task in names
        }
        shape = (self.sources.embeddings.shape[1], self.source.hidden_size)
        drawn = [random_prompt(self.source, shape, number) for number in range(1, self.study.random_prompts + 1)]
        constant = [
            Entry(f"constant {number}", "constant", "constant", number, rows)
            for number, rows in enumerate(file.rows(torch.stack(drawn)), start=1)
        ]
        mean = file.rows(self.sources.embeddings.mean(dim=0, keepdim=True))[0]
        of_task = torch.tensor([tasks.index(prompt.metadata["task"]) for prompt in self.sources.prompts])
        return ProjectorCells(
            file=file,
            cells={
                "projected": {task: own[task] for task in names},
                "shuffled_source": shuffled,
                "constant_source": dict.fromkeys(names, constant),
                "mean_source": {name: [Entry("mean source", "constant", "constant", None, mean)] for name in names},
            },
            cosine=float(mean_cosine(torch.stack(list(rows_of.values())), of_task)),
            source_cosine=float(mean_cosine(self.sources.embeddings, of_task)),
            types={_type(task, self.study.tasks) for task in file.metadata.get("tasks", "").split(",") if task},
        )

    def _cells(self) -> list[Sequence[Entry]]:
        """The prompts of each cell, those of each task together."""
        every = [*self.common.values(), *(c for one in self.projected.values() for c in one.cells.values())]
        return [list(entries) for cell in every for entries in cell.values()]

    # Scores ----------------------------------------------------------------------------------------------------

    def needed(self, target: Target) -> set[str]:
        """Digests of the prompts that are scored on a task."""
        every = [*self.common.values(), *(c for one in self.projected.values() for c in one.cells.values())]
        return {entry.digest for cell in every for entry in cell[target.task.name]}

    def compute(self) -> pd.DataFrame:
        """Score what is missing; the table."""
        device = torch.device("cuda" if self.study.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
        if self.study.accelerator == "cuda" and device.type == "cpu":
            raise UserError("--accelerator cuda: there is no such device here; use cpu")
        self.backbone.to(device)
        scorer = Scorer(self.backbone, self.entries)
        found: list[dict[str, Any]] = []
        facts = {
            "backbone": self.backbone.fingerprint,
            "layout": self.backbone.layout.name,
            "attention": self.backbone.attention,
            "dtype": self.backbone.dtype_name,
            "head": self.backbone.head,
        }
        answers: dict[str, dict[str, np.ndarray]] = {}
        for target in self.targets:
            file = AnswerFile.read(self.folder / "answers", target, facts)
            wanted = self.needed(target)
            mine = np.array([entry.digest in wanted for entry in self.entries])
            missing = np.isnan(file.matrix(self.entries)) & mine[:, None]
            batches = scorer.batches(target, missing, self.study.data.max_tokens or MAX_TOKENS[device.type])
            filled = file.fill(self.entries, scorer.answers(target, batches), [0] * len(batches))
            for _ in steps(filled, target.task.name, len(batches)):
                pass
            answers[target.task.name] = {digest: file.values[digest] for digest in wanted}
        shared = {key: facts[key] for key in ("layout", "attention", "dtype")}
        for name, projected in self.projected.items():
            cells = {**projected.cells, **self.common}
            found += rows(name, projected, cells, self.targets, answers, self.notes, {
                "backbone": self.backbone.id, "source_backbone": self.source.id, **shared,
            })  # fmt: skip
        frame = results.table(found)
        frame["learned"] = frame["learned"].astype("boolean")
        return frame


def projection(study: ProjectionStudy) -> pd.DataFrame:
    """Score projectors with all their controls and write `projection.parquet`, `projection.csv` and `projection.png`.

    Returns:
        The table (`prompt_transfer.studies.projection.table.rows`).

    Raises:
        UserError: see `ProjectionRun`.
    """
    with exclusive_lock(study.output):
        ready = ProjectionRun(study)
        write_provenance(ready.folder, "analyze projection", asdict(study), digests_of(ready.targets), goes_on=True)
        frame = ready.compute()
        for suffix in ("parquet", "csv"):
            results.write(frame, ready.folder / f"projection.{suffix}")
        plots.save(scores_figure(frame), ready.folder / "projection.png")
    return frame


def _name(file: ProjectorFile) -> str:
    assert file.path is not None
    return file.path.resolve().parent.name if file.path.stem == "projector" else file.path.stem


def _seed(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _type(task: str, paths: Sequence[str]) -> str:
    if task in task_names():
        return get_task(task).type
    own = {known.name: known.type for known in map(get_task, paths)}
    return own.get(task, UNKNOWN)
