"""From which prompts to start on a target task: every ranking of the sources at hand, what it costs, how good it was.

Shape letters: T targets, N prompts of the folder, S samples of a target's rows, n rows.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from prompt_transfer.analysis.indicators import data_size, label_word_overlap
from prompt_transfer.analysis.selection import quality, summarize
from prompt_transfer.prompts.prompt import UNKNOWN
from prompt_transfer.prompts.recommendation import FACTS
from prompt_transfer.studies.backbones import choose_device
from prompt_transfer.studies.recommend.candidates import RecommendStudy, Sources
from prompt_transfer.studies.recommend.similarity import SIMILARITIES, target_prompts
from prompt_transfer.studies.scoring import MAX_TOKENS, Scorer
from prompt_transfer.studies.targets import EvaluationData, load_target
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic
from prompt_transfer.utils.progress import steps
from prompt_transfer.utils.provenance import write_provenance

SAMPLE, SAME_TYPE = "sample_score", "same_type"
RANKINGS = (SAMPLE, *SIMILARITIES, "label_word_overlap", "data_size", SAME_TYPE)
# What recommends unless the user says otherwise: the first of these that is there and tells sources apart.
PREFERRED = (SAMPLE, "neuron_overlap", "label_word_overlap", SAME_TYPE, "cosine_average", "data_size")


@dataclass(frozen=True)
class Recommendation:
    """What a study found.

    Attributes:
        by: the ranking that recommends.
        table: `recommendation.csv`: the columns `FACTS`, then a column a ranking, `by` first; best sources first.
        costs: one row a ranking: ranking, seconds (a target, measured here), needs.
        quality: `prompt_transfer.analysis.selection.summarize`; empty without a matrix.
        notes: what was left out, and why.
    """

    by: str
    table: pd.DataFrame
    costs: pd.DataFrame
    quality: pd.DataFrame
    notes: list[str]


def recommend(study: RecommendStudy) -> Recommendation:
    """Rank the sources of each target by all that is at hand, and write the tables.

    Leaves `recommendation.csv`, `costs.csv`, `config.yaml`, prompts of targets that were made in `target/`, and with a
    matrix `quality.csv` (the means) and `judgements.csv` (one row a target, ranking, sample and statistic).

    Raises:
        UserError: see `Sources`; or data that cannot be read.
    """
    if study.by is not None and study.by not in RANKINGS:
        raise UserError(f"unknown ranking --by {study.by}: choose one of {', '.join(RANKINGS)}")
    sources = Sources(study)
    notes = list(sources.found.notes)
    # name -> values [T, R, N], larger is better; R is 1, or the number of samples.
    rankings: dict[str, NDArray[np.float64]] = {}
    costs: dict[str, tuple[float, str]] = {}
    if study.target != "none":
        made = target_prompts(sources, notes)
        for name in SIMILARITIES:
            if (found := made.similarity(name)) is not None:
                rankings[name], costs[name] = found[0][:, None], (found[1], made.needs(name))
    _add_facts(sources, rankings, costs, notes)
    if study.sample:
        rankings[SAMPLE], seconds = sample_scores(sources)
        costs[SAMPLE] = seconds, f"{study.sample} labelled rows"
    for values in rankings.values():
        # A target's own prompt is no source of it.
        values[np.broadcast_to(sources.own[:, None], values.shape)] = np.nan
    by = _choose(rankings, study.by)
    order = [by, *(name for name in rankings if name != by)]
    outcome = Recommendation(
        by,
        _table(sources, {name: rankings[name][:, 0] for name in order}),
        pd.DataFrame([{"ranking": name, "seconds": costs[name][0], "needs": costs[name][1]} for name in order]),
        _judged(sources, {name: rankings[name] for name in order}, notes),
        notes,
    )
    config = asdict(study) | {"tasks": list(study.tasks)}
    results.write(outcome.table, sources.folder / "recommendation.csv")
    results.write(outcome.costs, sources.folder / "costs.csv")
    write_text_atomic(sources.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_provenance(sources.folder, "prompts recommend", config, {})
    return outcome


def sample_scores(sources: Sources) -> tuple[NDArray[np.float64], float]:
    """Scores of all prompts on small labelled samples of each target `[T, S, N]`, and the seconds of one sample."""
    study, backbone = sources.study, sources.backbone
    number = study.sample_seeds or 1
    device = choose_device(study.accelerator)
    backbone.to(device)
    began = time.perf_counter()
    scorer = Scorer(backbone, sources.entries)
    encoder = backbone.encoder(scorer.longest)
    fixed, scored = time.perf_counter() - began, 0.0
    scores = np.empty((len(sources.targets), number, sources.number))
    data = EvaluationData(**{**asdict(study.data), "limit_eval": study.sample * number})
    for place, name in enumerate(study.tasks):
        began = time.perf_counter()
        task = get_task(name).with_policy(sources.policy)
        target = load_target(task, data, sources.words, "train", encoder)
        missing = np.ones((sources.number, len(target)), dtype=bool)
        answers = np.empty(missing.shape, dtype=np.float32)
        fixed += time.perf_counter() - began
        began = time.perf_counter()
        batches = scorer.batches(target, missing, study.data.max_tokens or MAX_TOKENS[device.type])
        everything = steps(scorer.answers(target, batches), f"sample of {target.task.name}", len(batches))
        for (prompts, rows), found in everything:
            answers[np.ix_(prompts, rows)] = found
        scored += (time.perf_counter() - began) * min(1.0, study.sample / len(target))
        for seed, rows in enumerate(draw_samples(len(target), study.sample, number, study.seed)):
            scores[place, seed] = [target.score(row, rows) for row in answers]
    return scores, (fixed + scored) / len(sources.targets)


def draw_samples(total: int, size: int, number: int, seed: int) -> list[NDArray[np.int64]]:
    """Row numbers of `number` samples out of `total` rows: disjoint where there are enough, else each drawn anew."""
    generator = np.random.default_rng(seed)
    if size * number <= total:
        return list(generator.permutation(total)[: size * number].reshape(number, size))
    return [generator.permutation(total)[:size] for _ in range(number)]


def _add_facts(
    sources: Sources, rankings: dict[str, NDArray[np.float64]], costs: dict[str, tuple[float, str]], notes: list[str]
) -> None:
    """Rankings that need neither the backbone nor a prompt of the target."""
    found, targets = sources.found, sources.tasks
    size = (len(targets), 1, sources.number)
    began = time.perf_counter()
    if found.label_words is not None and any(task.label_words for task in targets):
        words = label_word_overlap([*found.label_words, *(task.label_words for task in targets)])
        rankings["label_word_overlap"] = words[sources.number :, None, : sources.number].copy()
        costs["label_word_overlap"] = (time.perf_counter() - began) / len(targets), "label words"
    else:
        notes.append("label_word_overlap left out: the prompts, or the targets, have no label words")
    if found.data_sizes is not None:
        rankings["data_size"] = np.broadcast_to(data_size(found.data_sizes)[0], size).copy()
        costs["data_size"] = 0.0, "train_rows of the prompts"
    else:
        notes.append("data_size left out: not all prompts say on how many rows they were trained")
    types = np.array(found.types, dtype=object)
    alike = [(types == task.type) & (types != UNKNOWN) for task in targets]
    rankings[SAME_TYPE] = np.stack(alike)[:, None].astype(float)
    costs[SAME_TYPE] = 0.0, "task types"


def _choose(rankings: dict[str, NDArray[np.float64]], by: str | None) -> str:
    if by is not None:
        if by not in rankings:
            raise UserError(f"--by {by} cannot be made of what is at hand, only {', '.join(rankings)}")
        return by
    for name in PREFERRED:
        if name in rankings and any(len(np.unique(row[np.isfinite(row)])) > 1 for row in rankings[name][:, 0]):
            return name
    # None does, as with a single source.
    return next(name for name in (*PREFERRED, *rankings) if name in rankings)


def _table(sources: Sources, rankings: dict[str, NDArray[np.float64]]) -> pd.DataFrame:
    """Best sources first, those of one value by name."""
    found, parts = sources.found, []
    for place, target in enumerate(sources.targets):
        paths = [str(Path(str(prompt.path)).resolve()) for prompt in found.prompts]
        facts = (target, found.names, sources.sources, found.types, paths)
        frame = pd.DataFrame(dict(zip(FACTS, facts, strict=True)) | {name: v[place] for name, v in rankings.items()})
        part = frame[~sources.own[place]]
        parts.append(part.sort_values([next(iter(rankings)), "prompt"], ascending=[False, True]))
    return pd.concat(parts, ignore_index=True)


def _judged(sources: Sources, rankings: dict[str, NDArray[np.float64]], notes: list[str]) -> pd.DataFrame:
    if sources.matrix is None:
        return pd.DataFrame()
    rows: list[dict[str, object]] = []
    for place, target in enumerate(sources.targets):
        if target not in sources.matrix.index:
            notes.append(f"{target} is not judged: the transfer matrix has no such row")
            continue
        kept = np.flatnonzero(~sources.own[place])
        mine = {name: values[place][:, kept] for name, values in rankings.items()}
        true = dict(zip(sources.matrix.columns, sources.matrix.loc[target].to_numpy(dtype=float), strict=True))
        names = [sources.sources[number] for number in kept]
        if absent := sorted({name for name in names if not np.isfinite(true.get(name, np.nan))}):
            notes.append(f"not judged for {target}, for want of a score in the matrix: {', '.join(absent)}")
        if sum(bool(np.isfinite(true.get(name, np.nan))) for name in set(names)) < 2:
            notes.append(f"{target} is not judged: an order needs two sources with a score in the matrix")
            continue
        rows += quality(target, mine, names, true)
    if not rows:
        return pd.DataFrame()
    results.write(pd.DataFrame(rows).astype({"seed": "Int64"}), sources.folder / "judgements.csv")
    means = summarize(rows)
    results.write(means, sources.folder / "quality.csv")
    return means
