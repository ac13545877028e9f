"""The table that `prompts recommend` leaves, as those read it who start a prompt from it.

One row a target task and source prompt; beside what the row is about (`FACTS`) each column is a ranking, in which
larger means better. The first of them is the one that the sources were recommended by.
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
    """A source prompt and what a ranking says of it."""

    path: str
    value: float


def read_choices(path: str | Path, by: str | None = None, top: int = 1, target: str | None = None) -> list[Choice]:
    """The first `top` sources for a target, the best one first; equal ones in the order of the table.

    Args:
        path: `recommendation.csv`.
        by: the column; None: the one that the table recommends by.
        top: how many.
        target: task; None where the table has one only.

    Raises:
        UserError: no such table, column or target, or fewer sources.
    """
    rows, columns = _read(path)
    by = columns[0] if by is None else by
    if by not in columns:
        raise UserError(f"{path} has no column {by!r}: choose one of {', '.join(columns)}")
    targets = list(dict.fromkeys(row["target"] for row in rows))
    if target is None and len(targets) > 1:
        raise UserError(f"{path} is about several targets, {', '.join(targets)}: choose one with --model.init.target")
    if target is not None and target not in targets:
        raise UserError(f"{path} says nothing of the target {target!r}, but of {', '.join(targets)}")
    found = []
    for row in rows:
        if row["target"] == (targets[0] if target is None else target):
            try:
                value = float(row[by] or "nan")
            except ValueError:
                raise UserError(f"{path} is damaged: {row[by]!r} stands in the column {by}") from None
            if math.isfinite(value):
                found.append(Choice(row["path"], value))
    if top < 1 or top > len(found):
        raise UserError(f"{path} ranks {len(found)} sources by {by}: the first {top} cannot be taken")
    return sorted(found, key=lambda choice: -choice.value)[:top]


def _read(path: str | Path) -> tuple[list[dict[str, str]], list[str]]:
    """Rows, and the names of the rankings."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            rows, columns = list(table), list(table.fieldnames or [])
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot read the recommendation {path}: {reason}; `prompts recommend` leaves recommendation.csv"
        ) from error
    rankings = [column for column in columns if column not in FACTS]
    if not rows or not rankings or not {"target", "path"} <= set(columns) or any(None in row.values() for row in rows):
        raise UserError(f"{path} is not a recommendation: `prompts recommend` leaves recommendation.csv")
    return rows, rankings


def shares(weights: list[float]) -> list[float]:
    """Weights as parts of their sum.

    Raises:
        UserError: one is negative or not finite, or all are 0.
    """
    total = sum(weights)
    if not math.isfinite(total) or min(weights) < 0 or total == 0:
        shown = ", ".join(f"{weight:g}" for weight in weights)
        raise UserError(f"weights are numbers of 0 or more, not all of them 0; these are {shown}")
    return [weight / total for weight in weights]
