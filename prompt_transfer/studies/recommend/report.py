"""Reporting `prompts recommend`: the recommendation, costs of the rankings, and their quality by a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from prompt_transfer.analysis.selection import quality, summarize
from prompt_transfer.prompts.recommendation import FACTS
from prompt_transfer.studies.recommend.load import RecommendInputs
from prompt_transfer.studies.recommend.score import SAME_TYPE, SAMPLE, Rankings
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic
from prompt_transfer.utils.provenance import write_provenance

if TYPE_CHECKING:
    from prompt_transfer.studies.recommend.study import RecommendStudy

# Default order of preference: the first available ranking that distinguishes sources recommends.
PREFERRED = (SAMPLE, "neuron_overlap", "label_word_overlap", SAME_TYPE, "cosine_average", "data_size")


@dataclass(frozen=True)
class Recommendation:
    """The result of a study.

    Attributes:
        by: the ranking that recommends.
        table: `recommendation.csv`: the columns `FACTS`, then one column per ranking, `by` first; best sources first.
        costs: one row per ranking: ranking, seconds (per target, measured on this machine), needs.
        quality: `prompt_transfer.analysis.selection.summarize`; empty without a matrix.
        notes: skipped rankings and judgements, and why.
    """

    by: str
    table: pd.DataFrame
    costs: pd.DataFrame
    quality: pd.DataFrame
    notes: list[str]


def report(study: RecommendStudy, inputs: RecommendInputs, rankings: Rankings) -> Recommendation:
    """Choose the ranking that recommends, judge all rankings, and write the tables.

    Raises:
        UserError: the ranking `study.by` is not available.
    """
    by = _choose(rankings.values, study.by)
    order = [by, *(name for name in rankings.values if name != by)]
    costs = [{"ranking": name, "seconds": rankings.costs[name][0], "needs": rankings.costs[name][1]} for name in order]
    outcome = Recommendation(
        by,
        _table(inputs, {name: rankings.values[name][:, 0] for name in order}),
        pd.DataFrame(costs),
        _judge(inputs, {name: rankings.values[name] for name in order}, rankings.notes),
        rankings.notes,
    )
    config = asdict(study) | {"tasks": list(study.tasks)}
    results.write(outcome.table, inputs.folder / "recommendation.csv")
    results.write(outcome.costs, inputs.folder / "costs.csv")
    write_text_atomic(inputs.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_provenance(inputs.folder, "prompts recommend", config, {})
    return outcome


def _choose(rankings: Mapping[str, NDArray[np.float64]], by: str | None) -> str:
    if by is not None:
        if by not in rankings:
            raise UserError(f"--by {by} is not available with these inputs: choose one of {', '.join(rankings)}")
        return by
    for name in PREFERRED:
        if name in rankings and any(len(np.unique(row[np.isfinite(row)])) > 1 for row in rankings[name][:, 0]):
            return name
    # No ranking distinguishes sources, as with a single one.
    return next(name for name in (*PREFERRED, *rankings) if name in rankings)


def _table(inputs: RecommendInputs, rankings: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
    """Return the sources of each target, best first, ties by name."""
    found, parts = inputs.found, []
    for place, target in enumerate(inputs.targets):
        paths = [str(Path(str(prompt.path)).resolve()) for prompt in found.prompts]
        facts = (target, found.names, inputs.sources, found.types, paths)
        frame = pd.DataFrame(dict(zip(FACTS, facts, strict=True)) | {name: v[place] for name, v in rankings.items()})
        part = frame[~inputs.own[place]]
        parts.append(part.sort_values([next(iter(rankings)), "prompt"], ascending=[False, True]))
    return pd.concat(parts, ignore_index=True)


def _judge(inputs: RecommendInputs, rankings: Mapping[str, NDArray[np.float64]], notes: list[str]) -> pd.DataFrame:
    """Judge the rankings by the transfer matrix and write the tables; `notes` gets what cannot be judged."""
    if inputs.matrix is None:
        return pd.DataFrame()
    rows: list[dict[str, object]] = []
    for place, target in enumerate(inputs.targets):
        if target not in inputs.matrix.index:
            notes.append(f"{target} is not judged: the transfer matrix has no such row")
            continue
        kept = np.flatnonzero(~inputs.own[place])
        mine = {name: values[place][:, kept] for name, values in rankings.items()}
        true = dict(zip(inputs.matrix.columns, inputs.matrix.loc[target].to_numpy(dtype=float), strict=True))
        names = [inputs.sources[number] for number in kept]
        if absent := sorted({name for name in names if not np.isfinite(true.get(name, np.nan))}):
            notes.append(f"not judged for {target}, for lack of a score in the matrix: {', '.join(absent)}")
        if sum(bool(np.isfinite(true.get(name, np.nan))) for name in set(names)) < 2:
            notes.append(f"{target} is not judged: a ranking needs two sources with a score in the matrix")
            continue
        rows += quality(target, mine, names, true)
    if not rows:
        return pd.DataFrame()
    results.write(pd.DataFrame(rows).astype({"seed": "Int64"}), inputs.folder / "judgements.csv")
    means = summarize(rows)
    results.write(means, inputs.folder / "quality.csv")
    return means
