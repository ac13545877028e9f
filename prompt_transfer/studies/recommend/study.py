"""Recommendation of source prompts for a target task: rankings of the sources, their cost and their quality.

A study runs in three stages, one module each: `load`, `score`, `report`.
"""

from __future__ import annotations

from prompt_transfer.studies.recommend.load import load
from prompt_transfer.studies.recommend.report import PREFERRED, Recommendation, report
from prompt_transfer.studies.recommend.score import RANKINGS, draw_samples, score
from prompt_transfer.studies.recommend.settings import RecommendStudy
from prompt_transfer.utils.errors import UserError

__all__ = ["PREFERRED", "RANKINGS", "RecommendStudy", "Recommendation", "draw_samples", "recommend"]


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
