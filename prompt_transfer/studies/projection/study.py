"""Evaluation of projectors: scores of projected prompts, with all the controls that could explain them.

A study runs in four stages, one module each: `load`, `plan`, `score`, `report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated

from prompt_transfer.studies.data import EvaluationData, check_accelerator
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.fields import NAMES, Option, as_list
from prompt_transfer.utils.files import exclusive_lock
from prompt_transfer.utils.provenance import write_provenance

if TYPE_CHECKING:
    import pandas as pd

# Baselines without training; `plan.py` has their classes.
CLOSED_FORMS = ("least_squares", "linear_combination", "relative")
FOLDERS = Option(type=list[str] | str, read=as_list)


@dataclass
class ProjectionStudy:
    """Settings of a projection study, the options of `analyze projection`.

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

    Raises:
        UserError: a value is invalid.
    """

    projectors: Annotated[Sequence[str], Option(type=list[str])]
    sources: Annotated[Sequence[str], FOLDERS]
    own: Annotated[Sequence[str], FOLDERS]
    tasks: Annotated[Sequence[str], NAMES]
    output: str
    data: EvaluationData = field(default_factory=EvaluationData)
    split: str = "test"
    random_prompts: int = 3
    shuffles: int = 3
    closed_forms: Annotated[Sequence[str], NAMES] = CLOSED_FORMS
    seed: int = 0
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        if self.split not in ("test", "validation"):
            raise UserError(f"--split is {self.split!r}: choose test or validation")
        if self.random_prompts < 1 or self.shuffles < 1:
            raise UserError("--random_prompts and --shuffles are required controls: give 1 or more")
        unknown = [name for name in self.closed_forms if name not in CLOSED_FORMS]
        if unknown or not self.closed_forms:
            raise UserError(
                f"--closed_forms {', '.join(unknown) or 'is empty'}: choose at least one of {', '.join(CLOSED_FORMS)}"
            )
        check_accelerator(self.accelerator)
        if not self.projectors:
            raise UserError("give projector files: analyze projection FILE... --sources DIR --own DIR --tasks a,b")


def projection(study: ProjectionStudy) -> pd.DataFrame:
    """Score projectors with all their controls and write `projection.parquet`, `projection.csv` and `projection.png`.

    Returns:
        The table (`prompt_transfer.studies.projection.table.rows`).

    Raises:
        UserError: inputs that do not fit (see `load`), or another process uses the output folder.
    """
    # Imported here: the options of a command are read without torch.
    from prompt_transfer.studies.projection.load import load
    from prompt_transfer.studies.projection.plan import plan
    from prompt_transfer.studies.projection.report import report
    from prompt_transfer.studies.projection.score import score
    from prompt_transfer.studies.targets import digests_of

    with exclusive_lock(study.output):
        inputs = load(study)
        planned = plan(study, inputs)
        write_provenance(inputs.folder, "analyze projection", asdict(study), digests_of(planned.targets), goes_on=True)
        return report(inputs, planned, score(study, inputs, planned))
