"""Recommendation of source prompts for a target task: rankings of the sources, their cost and their quality.

A study runs in three stages, one module each: `load`, `score`, `report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prompt_transfer.studies.backbones import check_accelerator
from prompt_transfer.studies.recommend.load import load
from prompt_transfer.studies.recommend.report import PREFERRED, Recommendation, report
from prompt_transfer.studies.recommend.score import RANKINGS, draw_samples, score
from prompt_transfer.studies.targets import TargetData
from prompt_transfer.utils.errors import UserError

__all__ = ["PREFERRED", "RANKINGS", "RecommendStudy", "Recommendation", "draw_samples", "recommend"]

JUDGEMENT_SEEDS = 5


@dataclass
class RecommendStudy:
    """Settings of a recommendation.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a hub id.
        prompts: folder with prompt files, searched recursively.
        tasks: target tasks: names, or paths of YAML files.
        output: folder for the tables and for tuned prompts of the targets.
        data: data source of the targets.
        target: prompts that sources are compared with: `auto` (the target's own prompts in the folder, else a
            short-tuned one), `tuned`, `none`, or a prompt file.
        steps: steps of the short tuning.
        sample: labelled training examples of the target on which all sources are scored; 0: none.
        sample_seeds: number of samples; the first recommends, all are judged. None: 5 with a matrix, else 1.
        neurons: see `prompt_transfer.studies.neuron_inputs.read_neurons`.
        matrix: transfer matrix by which the rankings are judged.
        by: the ranking that recommends; None: see `prompt_transfer.studies.recommend.report.PREFERRED`.
        dtype: dtype of the backbone's weights; None: that of the prompts.
        accelerator: auto, cpu or cuda.
        seed: seed of the short tuning's initialization and of the samples.

    Raises:
        UserError: a value is invalid.
    """

    backbone: str
    prompts: str
    tasks: Sequence[str]
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


def recommend(study: RecommendStudy) -> Recommendation:
    """Rank the sources of each target by all available rankings, and write the tables.

    Writes `recommendation.csv`, `costs.csv`, `config.yaml`, tuned prompts of targets in `target/`, and with a matrix
    `quality.csv` (means) and `judgements.csv` (one row per target, ranking, sample and statistic).

    Raises:
        UserError: inputs that do not fit (see `load`), or data that cannot be read.
    """
    if study.by is not None and study.by not in RANKINGS:
        raise UserError(f"unknown ranking --by {study.by}: choose one of {', '.join(RANKINGS)}")
    inputs = load(study)
    return report(study, inputs, score(study, inputs))
