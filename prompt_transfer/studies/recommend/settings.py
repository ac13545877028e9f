"""Settings of a recommendation; importing them loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from prompt_transfer.studies.data import TargetData, check_accelerator
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.fields import Option, split_list

JUDGEMENT_SEEDS = 5


@dataclass
class RecommendStudy:
    """Settings of a recommendation, the options of `prompts recommend`.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a Hub id.
        prompts: folder with prompt files of one backbone and length.
        tasks: target task, a name or the path of a YAML file; several are comma-separated.
        output: folder for the tables.
        data: source of the target's examples.
        target: prompt to compare sources with: auto (the target's own prompt in the folder, else a briefly tuned one),
            tuned, none, or a prompt file.
        steps: steps of that tuning, of 32 training examples each.
        sample: number of labelled training examples of the target to score all sources on; 0 for none.
        sample_seeds: number of samples to evaluate the score on; null: 5 with a matrix, else 1. The first recommends.
        neurons: folder of captured activations, with the layout of the prompts folder.
        matrix: transfer matrix as CSV, targets as rows, sources as columns; evaluates the rankings.
        by: ranking used for the recommendation, a column of the table; null: the score on the sample if there is one.
        dtype: dtype of the backbone's weights: float32, bfloat16 or float16 (fp32, bf16, fp16); default: the prompts'.
        accelerator: auto, cpu or cuda.
        seed: seed of the samples and the tuning.

    Raises:
        UserError: a value is invalid.
    """

    backbone: str
    prompts: str
    tasks: Annotated[Sequence[str], Option(str, split_list, "task")]
    output: str
    data: TargetData = field(default_factory=TargetData)
    target: str = "auto"
    steps: int = 100
    sample: int = 32
    sample_seeds: int | None = None
    neurons: str | None = None
    matrix: str | None = None
    by: str | None = None
    dtype: str | None = None
    accelerator: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        self.sample_seeds = self.sample_seeds or (JUDGEMENT_SEEDS if self.matrix else 1)
        check_accelerator(self.accelerator)
        self.data.check()
        for name, least in (("steps", 1), ("sample_seeds", 1), ("sample", 0), ("seed", 0)):
            if (given := getattr(self, name)) < least:
                raise UserError(f"--{name} is {given}: give {least} or more")
        if not self.tasks:
            raise UserError("--task needs a target task")
        if self.target not in ("auto", "tuned", "none") and len(self.tasks) > 1:
            raise UserError(f"--target {self.target} is the prompt of one task: give one --task")
