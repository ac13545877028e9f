"""`analyze projection`: scores of projected prompts and their controls."""

from __future__ import annotations

import warnings

from prompt_transfer.commands.lightning import quiet, show_warning
from prompt_transfer.commands.parsing import split_list
from prompt_transfer.studies.projection.study import CLOSED_FORMS, ProjectionStudy
from prompt_transfer.studies.projection.study import projection as run_study
from prompt_transfer.studies.targets import EvaluationData
from prompt_transfer.utils import results

DATA = EvaluationData()
SHOWN = ("task", "what", "value", "ahead", "ahead_low", "ahead_high")


def projection(
    projectors: list[str],
    sources: list[str] | str,
    own: list[str] | str,
    tasks: str,
    output: str,
    data: EvaluationData = DATA,
    split: str = "test",
    random_prompts: int = 3,
    shuffles: int = 3,
    closed_forms: str = ",".join(CLOSED_FORMS),
    seed: int = 0,
    accelerator: str = "auto",
) -> None:
    """compare projected prompts with target, random and control prompts: projection FILE... --sources DIR --own DIR

    Writes projection.parquet, projection.csv and projection.png to the output folder. An interrupted command resumes
    when run again.

    Args:
        projectors: projector files or runs of one pair of backbones.
        sources: folder with the source backbone's prompts, or a list of folders.
        own: folder with the target backbone's prompts, or a list of folders.
        tasks: target tasks, comma-separated names or paths of YAML files.
        output: folder for table and figure.
        data: source and number of examples.
        split: test or validation.
        random_prompts: number of random prompts of each kind, and of source prompts of the constant-source control.
        shuffles: number of other tasks whose source prompts replace the task's own in the shuffled-source control.
        closed_forms: comma-separated baselines without training.
        seed: seed of the task order in that control.
        accelerator: auto, cpu or cuda.
    """
    quiet()
    warnings.showwarning = show_warning
    frame = run_study(
        ProjectionStudy(
            projectors=projectors,
            sources=[sources] if isinstance(sources, str) else sources,
            own=[own] if isinstance(own, str) else own,
            tasks=split_list(tasks),
            output=output,
            data=data,
            split=split,
            random_prompts=random_prompts,
            shuffles=shuffles,
            closed_forms=split_list(closed_forms),
            seed=seed,
            accelerator=accelerator,
        )
    )
    for name, mine in frame.groupby("projector", sort=False):
        facts = mine.iloc[0]
        rows = mine[mine["tasks"].notna()] if "tasks" in mine else mine
        shown = [{key: None if row[key] != row[key] else row[key] for key in SHOWN} for row in rows.to_dict("records")]
        title = (
            f"{name}: {facts['kind']}, mean cosine between projections of different tasks {facts['cosine']:.3f} "
            f"(source prompts {facts['source_cosine']:.3f}); ahead: projected minus this, 95 % interval"
        )
        results.show(shown, title, SHOWN)
    print(output)
