"""Reporting a transfer study: merged answers, tables, figures and provenance."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from prompt_transfer.analysis import plots
from prompt_transfer.analysis.heatmaps import transfer_heatmap
from prompt_transfer.analysis.matrix import Matrix, from_results, to_table
from prompt_transfer.studies.backbones import choose_device, describe_backbone
from prompt_transfer.studies.scoring import AnswerFile
from prompt_transfer.studies.targets import digests_of
from prompt_transfer.studies.transfer.load import TransferInputs, read_answers
from prompt_transfer.studies.transfer.table import LAST_COLUMNS, target_rows, tidy
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic
from prompt_transfer.utils.provenance import write_provenance

if TYPE_CHECKING:
    from prompt_transfer.studies.transfer.study import TransferStudy


@dataclass
class ResultsTable:
    """`results.parquet` of a study, rewritten whenever a target is complete.

    Attributes:
        backbone: name of the backbone.
        rows: rows of each complete target, kept because their bootstrap intervals are costly.
    """

    backbone: str
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def write(self, inputs: TransferInputs, answers: list[AnswerFile]) -> pd.DataFrame:
        """Write and return the table of all targets whose answers are complete."""
        settings = describe_backbone(inputs.backbone)
        common = {"backbone": self.backbone, **{key: settings[key] for key in LAST_COLUMNS}}
        for target, file in zip(inputs.targets, answers, strict=True):
            values = file.matrix(inputs.entries)
            more = {"calibrated": True} if target.calibrated else {}
            if target.task.name not in self.rows and not np.isnan(values).any():
                self.rows[target.task.name] = target_rows(target, inputs.entries, values, {**common, **more})
        tasks = [target.task for target in inputs.targets if target.task.name in self.rows]
        frame = tidy([row for task in tasks for row in self.rows[task.name]], {task.name: task.type for task in tasks})
        results.write(frame, inputs.folder / "results.parquet")
        return frame


def record_provenance(study: TransferStudy, inputs: TransferInputs) -> None:
    """Write `provenance.json`; earlier processes whose answers are reused stay in it."""
    device = str(choose_device(study.accelerator))
    data = digests_of(inputs.targets)
    write_provenance(inputs.folder, "transfer", _config(study), data, goes_on=True, device=device)


def report(study: TransferStudy, inputs: TransferInputs, table: ResultsTable) -> pd.DataFrame:
    """Merge the answers of all processes and write tables and figures.

    Returns:
        The tidy table of `results.parquet`.

    Raises:
        UserError: answers are missing.
    """
    answers = _merge_answers(inputs)
    pairs = zip(inputs.targets, answers, strict=True)
    unfinished = [target.task.name for target, file in pairs if np.isnan(file.matrix(inputs.entries)).any()]
    if unfinished:
        raise UserError(
            f"scores are missing on {', '.join(unfinished)} (did two commands use {inputs.folder} at once?); run the "
            "same command again to compute the missing scores"
        )
    frame = table.write(inputs, answers)
    matrix = from_results(frame)
    results.write(to_table(matrix), inputs.folder / "matrix.csv")
    draw(matrix, inputs.folder)
    write_text_atomic(inputs.folder / "config.yaml", yaml.safe_dump(_config(study), sort_keys=False))
    return frame


def _merge_answers(inputs: TransferInputs) -> list[AnswerFile]:
    """Read the answers of all processes and replace their files by one per target."""
    answers = read_answers(inputs.folder, inputs.targets, inputs.backbone)
    for file in answers:
        paths = file.paths()
        file.save()
        for path in paths:
            if path.name != f"{file.name}.0.npz":
                path.unlink()
    return answers


def draw(matrix: Matrix, folder: Path) -> None:
    """Draw `matrix.png`, ordered by type, and `matrix_clustered.png` for three or more targets."""
    plots.save(transfer_heatmap(matrix), folder / "matrix.png")
    # Two rows can only be clustered one way.
    if len(matrix.scores) > 2:
        plots.save(transfer_heatmap(matrix, clustered=True), folder / "matrix_clustered.png")


def _config(study: TransferStudy) -> dict[str, Any]:
    """Return the settings as plain values."""
    return asdict(study) | {"tasks": list(study.tasks)}
