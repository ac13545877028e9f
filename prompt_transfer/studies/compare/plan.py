"""Planning a comparison: one cell per method and seed, and a grid of learning rates."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_transfer.studies.compare.methods import RANDOM
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.studies.compare.load import CompareInputs
    from prompt_transfer.studies.compare.study import CompareStudy

# Factors that `--grid` applies to the learning rate; 1 is first because the first wins ties.
GRID = (1.0, 1 / 3, 3.0)
DONE = "cell.json"


@dataclass(frozen=True)
class Cell:
    """One method with one seed.

    Attributes:
        method: a key of `METHODS`, or `random_prompt`.
        seed: seed of initial values and batches; the number of a random prompt minus 1.
        rate: learning rate, for methods that are trained by gradients.
    """

    method: str
    seed: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """Name of the folder below `cells/`."""
        return f"{self.method}-seed{self.seed}" + ("" if self.rate is None else f"-lr{self.rate:g}")

    def folder(self, output: str | Path) -> Path:
        """Return the folder of the cell's files."""
        return Path(output) / "cells" / self.name

    def read(self, output: str | Path) -> dict[str, Any] | None:
        """Return the facts of a finished cell, else None."""
        path = self.folder(output) / DONE
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged: remove {path.parent} to train it again") from error


def candidates(study: CompareStudy, inputs: CompareInputs) -> list[Cell]:
    """Return the cells of the grid, with the first seed; none without `--grid`."""
    if not study.grid:
        return []
    cells = []
    for name in study.method_names:
        rate = inputs.rates[name]
        if rate is None:
            continue
        cells += [Cell(name, study.seed_numbers[0], float(f"{rate * factor:.2g}")) for factor in GRID]
    return cells


def choose_rates(study: CompareStudy, inputs: CompareInputs, failed: Mapping[str, str]) -> dict[str, float | None]:
    """Return the learning rate of each method: with a grid the best on the validation split, written to `grid.csv`.

    Args:
        failed: name of a failed cell -> reason.

    Raises:
        UserError: all rates of a method failed.
    """
    rates, rows = dict(inputs.rates), list[dict[str, Any]]()
    for cell in candidates(study, inputs):
        done = cell.read(study.output)
        score = None if done is None else done["validation"]
        rows.append(
            {
                **{"method": cell.method, "seed": cell.seed, "learning_rate": cell.rate, "validation": score},
                "best_step": None if done is None else done["best_step"],
                "failed": failed.get(cell.name),
            }
        )
    for name in dict.fromkeys(row["method"] for row in rows):
        scored = [row for row in rows if row["method"] == name and row["validation"] is not None]
        if not scored:
            reason = next(row["failed"] for row in rows if row["method"] == name)
            raise UserError(f"every learning rate of the grid failed for {name}: {reason}")
        best = max(scored, key=lambda row: row["validation"])
        rates[name] = best["learning_rate"]
        tried = sorted(row["learning_rate"] for row in scored)
        if best["learning_rate"] in (tried[0], tried[-1]):
            which = "largest" if best["learning_rate"] == tried[-1] else "smallest"
            warnings.warn(
                f"{name}: the best learning rate {best['learning_rate']:g} is the {which} of the grid; center a new "
                f"comparison on it with --learning_rates {name}={best['learning_rate']:g}",
                stacklevel=2,
            )
        for row in rows:
            if row["method"] == name:
                row["chosen"] = row is best
    if rows:
        results.write(results.table(rows).dropna(axis=1, how="all"), inputs.folder / "grid.csv")
    return rates


def plan(study: CompareStudy, rates: Mapping[str, float | None]) -> list[Cell]:
    """Return all cells of the comparison, ordered by seed, so that a stopped study has complete seeds."""
    cells = []
    for seed in study.seed_numbers:
        cells += [Cell(RANDOM, seed), *(Cell(name, seed, rates[name]) for name in study.method_names)]
    return cells
