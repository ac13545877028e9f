"""A comparison of methods on one task and backbone: same examples, batches, model selection and metric; resumable.

A study runs in four stages, one module each: `load`, `plan`, `score`, `report`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prompt_transfer.studies.compare.settings import CompareData as CompareData
from prompt_transfer.studies.compare.settings import CompareStudy as CompareStudy
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import exclusive_lock

if TYPE_CHECKING:
    import pandas as pd


def compare(study: CompareStudy, prepare: Callable[[], None] | None = None) -> pd.DataFrame:
    """Train and score all methods that are not done yet, and write tables and figures.

    Args:
        study: the settings.
        prepare: called first in every process that is started; it must be importable.

    Returns:
        The summary, one row per method.

    Raises:
        UserError: inputs that do not fit, settings that differ from those of the folder, a method that failed, or
            another process in the folder.
    """
    from prompt_transfer.studies.compare.load import load
    from prompt_transfer.studies.compare.plan import candidates, choose_rates, plan
    from prompt_transfer.studies.compare.report import report
    from prompt_transfer.studies.compare.score import score

    with exclusive_lock(study.output):
        inputs = load(study)
        failed = score(study, inputs, candidates(study, inputs), prepare)
        rates = choose_rates(study, inputs, failed)
        failed = score(study, inputs, plan(study, rates), prepare)
        if failed:
            name, reason = next(iter(failed.items()))
            more = f" ({len(failed)} failed: {', '.join(failed)})" if len(failed) > 1 else ""
            raise UserError(f"{name}: {reason}{more}")
        return report(study, inputs, rates)
