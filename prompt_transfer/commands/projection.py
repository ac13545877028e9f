"""`analyze projection`: scores of projected prompts and their controls."""

from __future__ import annotations

import warnings

from prompt_transfer.commands.messages import quiet, show_warning
from prompt_transfer.studies.projection.study import ProjectionStudy
from prompt_transfer.studies.projection.study import projection as run_study
from prompt_transfer.utils import results

SHOWN = ("task", "what", "value", "ahead", "ahead_low", "ahead_high")


def projection(study: ProjectionStudy) -> None:
    """compare projected prompts with target, random and control prompts: projection FILE... --sources DIR --own DIR

    Writes projection.parquet, projection.csv and projection.png to the output folder. An interrupted command resumes
    when run again.
    """
    quiet()
    warnings.showwarning = show_warning
    frame = run_study(study)
    for name, mine in frame.groupby("projector", sort=False):
        facts = mine.iloc[0]
        rows = mine[mine["tasks"].notna()] if "tasks" in mine else mine
        shown = [{key: None if row[key] != row[key] else row[key] for key in SHOWN} for row in rows.to_dict("records")]
        title = (
            f"{name}: {facts['kind']}, mean cosine between projections of different tasks {facts['cosine']:.3f} "
            f"(source prompts {facts['source_cosine']:.3f}); ahead: projected minus this, 95 % interval"
        )
        results.show(shown, title, SHOWN)
    print(study.output)
