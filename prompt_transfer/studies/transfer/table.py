"""The tidy table of a transfer study: scores, relative and chance-corrected, with intervals and baselines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prompt_transfer.studies.entries import Entry
from prompt_transfer.studies.targets import Target
from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError

LAST_COLUMNS = ("layout", "attention", "dtype")


def target_rows(
    target: Target, entries: Sequence[Entry], answers: NDArray[np.float32], common: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return one row per prompt on one task, and a row for the baseline.

    `relative` is the score divided by that of the target's own prompt (the mean over seeds); `chance_corrected` is
    (s - c) / (o - c) with s the score, o the target's own and c the baseline's; `learned` is whether o - c is above
    chance (`Target.beats_baseline`). All three are missing if the target has no prompt of its own.

    Args:
        target: the task.
        entries: N prompts.
        answers: [N, n], complete.
        common: columns with the same value in every row.
    """
    own = [row for entry, row in zip(entries, answers, strict=True) if is_own(entry, target.task.name)]
    own_score = float(np.mean([target.score(row) for row in own])) if own else math.nan
    chance = target.score(target.baseline)
    learned = target.beats_baseline(own) if own else None
    baseline = "lead" if target.task.is_generation else "majority"
    rows = []
    for entry, row in [*zip(entries, answers, strict=True), (None, target.baseline)]:
        scored = target.scored(row)
        facts: dict[str, Any] = {"prompt": baseline, "kind": baseline, "source": baseline, "seed": None, "start": None}
        if entry is not None:
            facts = {"prompt": entry.name, "kind": entry.kind, "source": entry.source, "seed": entry.seed}
            facts["start"] = entry.start
        gap = own_score - chance
        rows.append(
            {
                "task": target.task.name,
                **facts,
                **scored,
                "relative": scored["value"] / own_score if own_score else math.nan,
                "chance_corrected": (scored["value"] - chance) / gap if gap else math.nan,
                "learned": learned,
                "task_type": target.task.type,
                "source_type": _type_of(facts["source"], target) if facts["kind"] == "trained" else None,
                **common,
            }
        )
    return rows


def is_own(entry: Entry, task: str) -> bool:
    """Return whether a prompt was trained on the task (not derived by arithmetic, projected or random)."""
    return entry.kind == "trained" and entry.source == task


def _type_of(source: str, target: Target) -> str | None:
    if source == target.task.name:
        return target.task.type
    return get_task(source).type if source in task_names() else None


def tidy(rows: Sequence[dict[str, Any]], types: dict[str, str]) -> pd.DataFrame:
    """Return the table of all rows.

    Args:
        rows: rows of `target_rows`.
        types: task -> type of the study's tasks, for sources missing from the registry (YAML tasks).
    """
    frame = results.table(rows)
    unknown = frame["source_type"].isna() & (frame["kind"] == "trained")
    frame.loc[unknown, "source_type"] = frame.loc[unknown, "source"].map(types)
    frame["seed"] = frame["seed"].astype("Int64")
    frame["learned"] = frame["learned"].astype("boolean")
    return frame


def check_names(entries: Sequence[Entry]) -> None:
    """Raise UserError if a prompt file has the name of a random prompt."""
    seen: dict[str, str] = {}
    for entry in entries:
        if entry.name in seen:
            raise UserError(
                f"a prompt file has the name {entry.name!r}, which is reserved for random prompts; rename it"
            )
        seen[entry.name] = entry.source
