"""The transfer matrix, from a file or from results.

*Relative performance* of source s on target t is score(s, t) / score(t, t). If the baseline c is known, the
chance-corrected score is (score(s, t) - c) / (score(t, t) - c).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.utils.errors import UserError

BASELINES = ("majority", "lead")
TYPE_ORDER = ("sentiment", "nli", "ethics", "paraphrase", "qa", "summarization")
SEED_DRAWS = 100


@dataclass(frozen=True)
class Matrix:
    """Scores of sources on targets.

    Attributes:
        scores: targets in rows, sources in columns, by task name.
        random: targets in rows, one column per kind of random prompt.
        baseline: score of the majority class (or lead) on each target, NaN if unknown.
        types: task -> type, of all targets and sources; columns of derived prompts have no type.
        learned: whether each target's own prompt significantly beats the baseline; None if unknown.
        noise: median width of the 95 % intervals of relative scores; 0 if unknown.
        seed_draws: this matrix with its seeds resampled, for intervals; empty if prompts have one seed.
    """

    scores: pd.DataFrame
    random: pd.DataFrame
    baseline: pd.Series
    types: dict[str, str]
    learned: pd.Series | None = None
    noise: float = 0.0
    seed_draws: tuple[Matrix, ...] = ()

    @property
    def not_learned(self) -> set[str]:
        """Targets whose own prompt does not significantly beat the baseline."""
        known = {} if self.learned is None else self.learned.dropna().astype(bool).to_dict()
        return {str(name) for name, learned in known.items() if not learned}

    @property
    def own(self) -> pd.Series:
        """Score of each target's own prompt, NaN if there is none."""
        values = [self.scores[target][target] if target in self.scores else np.nan for target in self.scores.index]
        return pd.Series(values, index=self.scores.index, dtype=float)

    def measured(self, scores: pd.DataFrame, measure: str) -> pd.DataFrame:
        """Convert `scores` (targets in rows, in any order) to a measure: `score`, `relative` or `chance_corrected`."""
        if measure == "score":
            return scores
        # pandas would sort the rows if the orders differed.
        own, baseline = self.own.reindex(scores.index), self.baseline.reindex(scores.index)
        if measure == "relative":
            return scores.div(own.replace(0, np.nan), axis=0)
        return scores.sub(baseline, axis=0).div((own - baseline).replace(0, np.nan), axis=0)

    def by_type(self, names: pd.Index) -> list[str]:
        """Return names ordered by type, keeping their order within a type; names without a type come last."""
        found = list(dict.fromkeys(self.types.get(name, "") for name in names))
        order = [kind for kind in TYPE_ORDER if kind in found]
        order += [*sorted(kind for kind in found if kind and kind not in order), ""]
        return [name for kind in order for name in names if self.types.get(name, "") == kind]


def from_results(frame: pd.DataFrame, types: Mapping[str, str] | None = None) -> Matrix:
    """Return the matrix of a study's tidy table, mean over seeds.

    Args:
        frame: `results.parquet` of `prompt-transfer transfer`.
        types: task -> type, for tasks whose type is missing from the table.
    """
    targets = list(dict.fromkeys(frame["task"]))
    known = dict(zip(frame["task"], frame["task_type"], strict=True))
    trained = frame[frame["kind"] == "trained"].dropna(subset=["source_type"])
    known |= dict(zip(trained["source"], trained["source_type"], strict=True))
    means = frame.pivot_table(index="task", columns="source", values="value", aggfunc="mean").reindex(targets)
    made_of = dict(zip(frame["source"], frame["kind"], strict=True))
    sources = [source for source in dict.fromkeys([*targets, *made_of]) if source in means]
    random = [source for source in sources if made_of[source] == "random"]
    baselines = [source for source in sources if made_of[source] in BASELINES]
    learned = frame.groupby("task")["learned"].first().reindex(targets) if "learned" in frame else None
    noise = math.nan
    if {"low", "high", "relative"} <= set(frame):
        noise = float(((frame["high"] - frame["low"]) * frame["relative"] / frame["value"].replace(0, np.nan)).median())
    matrix = Matrix(
        scores=means[[source for source in sources if source not in (*random, *baselines)]],
        random=means[random],
        baseline=means[baselines].mean(axis=1),
        types=known | dict(types or {}),
        learned=learned,
        noise=0.0 if math.isnan(noise) else noise,
    )
    return replace(matrix, seed_draws=_draw_seeds(frame, matrix))


def _draw_seeds(frame: pd.DataFrame, matrix: Matrix, seed: int = 0) -> tuple[Matrix, ...]:
    """Return matrices whose scores are means over seeds drawn with replacement.

    All sources share the draw of seeds, all random prompts another one: random prompts have seeds of their own.
    """
    if "seed" not in frame:
        return ()
    # The scores of each seed, [S, targets, sources], of trained and of random prompts.
    stacks = []
    for scores in (matrix.scores, matrix.random):
        mine = frame[frame["source"].isin(scores.columns)]
        tables = [
            part.pivot_table(index="task", columns="source", values="value").reindex_like(scores)
            for _, part in mine.groupby("seed", dropna=False)
        ]
        stacks.append(np.array([table.fillna(scores) for table in tables] or [scores]))
    if max(map(len, stacks)) < 2:
        return ()
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(SEED_DRAWS):
        scores, random = (
            pd.DataFrame(
                stack[generator.integers(0, len(stack), len(stack))].mean(axis=0),
                index=whole.index, columns=whole.columns,
            )
            for stack, whole in zip(stacks, (matrix.scores, matrix.random), strict=True)
        )  # fmt: skip
        found.append(replace(matrix, scores=scores, random=random))
    return tuple(found)


def to_table(matrix: Matrix) -> pd.DataFrame:
    """Return the table of `matrix.csv`: targets in rows; sources, random prompts and baseline in columns."""
    table = pd.concat([matrix.scores, matrix.random, matrix.baseline.rename("majority")], axis=1)
    table.index.name = "target"
    return table.reset_index()


def read_matrix(path: str | Path, types: Mapping[str, str] | None = None) -> Matrix:
    """Read a matrix from `matrix.csv` or `results.parquet`.

    A CSV file has targets in rows and sources in columns, with names of the task registry or of the paper's authors
    (`SST2`, `movierationales`); columns that begin with `random` are random prompts, `majority` is the baseline. For a
    study's `matrix.csv`, types of YAML tasks and learned targets are read from `results.parquet` in the same folder.

    Args:
        path: the file.
        types: task -> type, for tasks missing from the registry.

    Raises:
        UserError: the file is missing or not a matrix, or the type of a task is unknown.
    """
    path = Path(path)
    if path.suffix == ".parquet" and path.is_file():
        return _checked(_of_study(path, types), path)
    if path.is_file() and path.suffix.lower() != ".csv":
        raise UserError(f"{path} is not a matrix: give matrix.csv or results.parquet of `prompt-transfer transfer`")
    try:
        table = pd.read_csv(path, index_col=0)
        table = table.astype(float)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot read {path} as a matrix of numbers: {reason}") from error
    beside = path.with_name("results.parquet")
    study = _of_study(beside, types) if path.name == "matrix.csv" and beside.is_file() else None
    given = dict(types or {}) | (study.types if study else {})
    names = {name: name if name in given else _registered(str(name)) for name in [*table.index, *table.columns]}
    table = table.rename(index=names, columns=names)
    random = [column for column in table if str(column).lower().startswith("random") and table[column].notna().any()]
    others = [column for column in table if str(column).lower().startswith("random") or column in BASELINES]
    known = {name: get_task(name).type for name in names.values() if name in task_names()} | given
    baseline = table["majority"] if "majority" in table else pd.Series(np.nan, index=table.index)
    learned = study.learned.reindex(table.index) if study and study.learned is not None else None
    scores = table.drop(columns=others)
    # A table may have been edited since the study wrote it.
    draws: tuple[Matrix, ...] = ()
    if study and study.scores.shape == scores.shape and np.allclose(study.scores, scores, equal_nan=True):
        draws = study.seed_draws
    noise = study.noise if study else 0.0
    return _checked(Matrix(scores, table[random], baseline, known, learned, noise, draws), path)


def _of_study(path: Path, types: Mapping[str, str] | None) -> Matrix:
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: it is not a Parquet file") from error
    if not {"task", "source", "kind", "value", "task_type", "source_type"} <= set(frame):
        raise UserError(f"{path} is not a table of `prompt-transfer transfer`: give its results.parquet")
    return from_results(frame, types)


def _registered(name: str) -> str:
    """Return the registered name of a task, ignoring case and underscores; the name itself if there is none."""
    plain = {re.sub(r"\W|_", "", task).lower(): task for task in task_names()}
    return plain.get(re.sub(r"\W|_", "", name).lower(), name)


def _checked(matrix: Matrix, path: Path) -> Matrix:
    for names in (matrix.scores.index, matrix.scores.columns):
        if names.has_duplicates:
            raise UserError(f"{path} contains task {names[names.duplicated()][0]} twice; remove one")
    if matrix.own.isna().all():
        raise UserError(
            f"{path} has no target with a score of its own prompt, so no relative scores exist: rows must be targets "
            "and columns source tasks, with the same names"
        )
    untyped = [str(name) for name in matrix.scores.index if name not in matrix.types]
    if untyped:
        example = f'--types \'{{"{untyped[0]}": "TYPE"}}\''
        raise UserError(f"{path}: the type of {', '.join(untyped)} is unknown; give it with {example}")
    return matrix
