"""The transfer matrix: scores of N prompts on M tasks of one backbone, one pass over each task's examples, resumable.

A study runs in four stages, one module each: `load`, `plan`, `score`, `report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from prompt_transfer.studies.data import EvaluationData, check_accelerator, check_folders
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.distributed import torchrun_rank
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.fields import NAMES, Option
from prompt_transfer.utils.files import exclusive_lock

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class TransferStudy:
    """Settings of a transfer study, the options of `transfer`.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a Hub id.
        prompts: folder with prompt files, at any depth.
        tasks: target tasks, comma-separated names or paths of YAML files.
        output: folder for results.parquet, matrix.csv, matrix.png and matrix_clustered.png.
        data: source and number of examples.
        split: test or validation.
        random_prompts: number of random prompts of each kind.
        attention: score only prompts trained with this attention (full or shared).
        layout: score only prompts trained with this layout.
        dtype: dtype of the backbone's weights: float32, bfloat16 or float16 (fp32, bf16, fp16); default: the prompts'.
        label_words_policy: treatment of label words of several tokens; default: the prompts' policy.
        accelerator: auto, cpu or cuda.
        devices: number of processes; each computes a share of every task's examples.
        calibrate: divide class probabilities by those on content-free texts (contextual calibration).

    Raises:
        UserError: a value is invalid.
    """

    backbone: str
    # In Python several folders are accepted too.
    prompts: Annotated[str | Sequence[str], Option(type=str)]
    tasks: Annotated[Sequence[str], NAMES]
    output: str
    data: EvaluationData = field(default_factory=EvaluationData)
    split: str = "test"
    random_prompts: int = 3
    attention: str | None = None
    layout: str | None = None
    dtype: str | None = None
    label_words_policy: str | None = None
    accelerator: str = "auto"
    devices: int = 1
    calibrate: bool = False

    def __post_init__(self) -> None:
        if self.split not in ("test", "validation"):
            raise UserError(f"--split is {self.split!r}: choose test or validation")
        if self.random_prompts < 0 or self.devices < 1:
            raise UserError("--random_prompts must be 0 or more, --devices 1 or more")
        check_accelerator(self.accelerator)
        self.data.check()


def transfer(study: TransferStudy) -> pd.DataFrame:
    """Score all prompts on all tasks and write the tables and figures.

    Returns:
        The tidy table (`prompt_transfer.studies.transfer.table.target_rows`); empty in all but the first of several
        processes started by torchrun.

    Raises:
        UserError: inputs that do not fit (see `load`), or another process uses the output folder.
    """
    # Wrong names are told before the imports of torch, which take seconds.
    for name in study.tasks:
        get_task(name)
    check_folders(study.prompts)
    import pandas as pd

    from prompt_transfer.studies.transfer.load import load
    from prompt_transfer.studies.transfer.plan import plan
    from prompt_transfer.studies.transfer.report import ResultsTable, record_provenance, report
    from prompt_transfer.studies.transfer.score import score, score_with_torchrun, score_with_workers

    rank, world = torchrun_rank()
    with exclusive_lock(study.output) if rank == 0 else nullcontext():
        inputs, table = load(study, rank), ResultsTable(study.backbone)
        if rank == 0:
            record_provenance(study, inputs)
        if world > 1:
            score_with_torchrun(study, inputs, world)
        elif study.devices > 1:
            score_with_workers(study, inputs)
        else:
            # Rewriting the table after every target keeps complete targets if the study is stopped.
            score(inputs, plan(study, inputs), lambda: table.write(inputs, inputs.answers))
        return report(study, inputs, table) if rank == 0 else pd.DataFrame()
