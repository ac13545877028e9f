"""Reader of the table that `prompts recommend` writes, for initializing a prompt from it.

One row per target task and source prompt. Every column except those of `FACTS` is a ranking, larger being better; the
first ranking is the one that the table recommends by.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from prompt_transfer.utils.errors import UserError

# Target task, name of the prompt, the task it was trained on, that task's type, the prompt file.
FACTS = ("target", "prompt", "source", "source_type", "path")


@dataclass(frozen=True)
class Choice:
    """A source prompt file and its value in a ranking."""

    path: str
    value: float


def read_choices(path: str | Path, by: str | None = None, top: int = 1, target: str | None = None) -> list[Choice]:
    """Return the `top` best sources for a target, best first; ties keep the table's order.

    Args:
        path: `recommendation.csv`.
        by: the column to rank by; None uses the one that the table recommends by.
        top: number of sources.
        target: the target task; None if the table has only one.

    Raises:
        UserError: the table, column or target does not exist, or there are fewer than `top` sources.
    """
    rows, columns = _read(path)
    by = columns[0] if by is None else by
    if by not in columns:
        raise UserError(f"{path} has no column {by!r}: choose one of {', '.join(columns)}")
    targets = list(dict.fromkeys(row["target"] for row in rows))
    if target is None and len(targets) > 1:
        raise UserError(f"{path} is about several targets, {', '.join(targets)}: choose one with --model.init.target")
    if target is not None and target not in targets:
        raise UserError(f"{path} has no target {target!r}: choose one of {', '.join(targets)}")
    found = []
    for row in rows:
        if row["target"] == (targets[0] if target is None else target):
            try:
                value = float(row[by] or "nan")
            except ValueError:
                raise UserError(f"{path} is damaged: {row[by]!r} in the column {by} is not a number") from None
            if math.isfinite(value):
                found.append(Choice(row["path"], value))
    if top < 1 or top > len(found):
        raise UserError(f"{path} ranks {len(found)} sources by {by}, so top cannot be {top}: choose another number")
    return sorted(found, key=lambda choice: -choice.value)[:top]


def _read(path: str | Path) -> tuple[list[dict[str, str]], list[str]]:
    """Return the rows and the names of the ranking columns."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            rows, columns = list(table), list(table.fieldnames or [])
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot read the recommendation {path}: {reason}; `prompts recommend` writes recommendation.csv"
        ) from error
    rankings = [column for column in columns if column not in FACTS]
    if not rows or not rankings or not {"target", "path"} <= set(columns) or any(None in row.values() for row in rows):
        raise UserError(f"{path} is not a recommendation: `prompts recommend` writes recommendation.csv")
    return rows, rankings


def shares(weights: list[float]) -> list[float]:
    """Normalise weights to sum to 1.

    Raises:
        UserError: a weight is negative or non-finite, or all are 0.
    """
    total = sum(weights)
    if not math.isfinite(total) or min(weights) < 0 or total == 0:
        shown = ", ".join(f"{weight:g}" for weight in weights)
        raise UserError(f"invalid weights {shown}: give numbers of 0 or more, not all of them 0")
    return [weight / total for weight in weights]
