"""`analyze projection`: what projectors are worth, beside all controls."""

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
    """projected prompts beside own, random and control prompts: projection FILE... --sources DIR --own DIR

    Leaves projection.parquet, projection.csv and projection.png in the output folder; stopped, it goes on there.

    Args:
        projectors: projector files or runs of one pair of backbones, given without the option's name.
        sources: folder with the source backbone's prompts, or a list of them.
        own: folder with the target backbone's prompts, or a list of them.
        tasks: target tasks, separated by commas: names, or paths of YAML files.
        output: folder for table and figure.
        data: where the rows come from and how many are used.
        split: test or validation.
        random_prompts: random prompts of each kind, and random source prompts of the constant-source control.
        shuffles: other tasks whose source prompts stand for the task's own in the shuffled-source control.
        closed_forms: baselines without training, separated by commas.
        seed: of the order of tasks in that control.
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
