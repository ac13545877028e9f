"""Reporting a projection study: the table and its figure."""

from __future__ import annotations

import pandas as pd

from prompt_transfer.analysis import captions, plots
from prompt_transfer.analysis.projection import scores_figure
from prompt_transfer.studies.backbones import describe_backbone
from prompt_transfer.studies.projection.load import ProjectionInputs
from prompt_transfer.studies.projection.plan import ProjectionPlan
from prompt_transfer.studies.projection.table import Answers, rows
from prompt_transfer.utils import results


def report(inputs: ProjectionInputs, planned: ProjectionPlan, answers: Answers) -> pd.DataFrame:
    """Write `projection.parquet`, `projection.csv` and `projection.png`; return the table."""
    settings = describe_backbone(inputs.backbone)
    common = {
        "backbone": inputs.backbone.id,
        "source_backbone": inputs.source.id,
        **{key: settings[key] for key in ("layout", "attention", "dtype")},
    }
    found = []
    for name, projected in planned.projected.items():
        cells = {**projected.cells, **planned.common}
        found += rows(name, projected, cells, planned.targets, answers, planned.notes, common)
    frame = results.table(found)
    frame["learned"] = frame["learned"].astype("boolean")
    for suffix in ("parquet", "csv"):
        results.write(frame, inputs.folder / f"projection.{suffix}")
    plots.save(scores_figure(frame), inputs.folder / "projection.png", captions.PROJECTION)
    return frame
