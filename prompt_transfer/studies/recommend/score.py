"""Scoring `prompts recommend`: every ranking of the sources that the inputs allow, with its cost.

Shape letters: T targets, N prompts of the folder, S samples of a target's examples, R 1 or S.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prompt_transfer.analysis.indicators import data_size, label_word_overlap
from prompt_transfer.prompts.prompt import UNKNOWN
from prompt_transfer.studies.backbones import choose_device
from prompt_transfer.studies.recommend.load import RecommendInputs
from prompt_transfer.studies.recommend.similarity import SIMILARITIES, target_prompts
from prompt_transfer.studies.scoring import MAX_TOKENS, Scorer
from prompt_transfer.studies.targets import EvaluationData, load_target
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.progress import steps

if TYPE_CHECKING:
    from prompt_transfer.studies.recommend.study import RecommendStudy

SAMPLE, SAME_TYPE = "sample_score", "same_type"
RANKINGS = (SAMPLE, *SIMILARITIES, "label_word_overlap", "data_size", SAME_TYPE)


@dataclass
class Rankings:
    """Rankings of the sources.

    Attributes:
        values: name -> scores [T, R, N], larger is better; NaN for a target's own prompts.
        costs: name -> seconds per target, and required data in words.
        notes: rankings that were skipped, and why.
    """

    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    costs: dict[str, tuple[float, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def score(study: RecommendStudy, inputs: RecommendInputs) -> Rankings:
    """Compute all rankings that the inputs allow.

    Raises:
        UserError: data, neurons or the given target prompt cannot be read or do not fit.
    """
    rankings = Rankings(notes=list(inputs.found.notes))
    if study.target != "none":
        targets = target_prompts(study, inputs, rankings.notes)
        for name in SIMILARITIES:
            if (found := targets.similarity(name)) is not None:
                rankings.values[name], rankings.costs[name] = found[0][:, None], (found[1], targets.needs(name))
    _add_metadata_rankings(inputs, rankings)
    if study.sample:
        rankings.values[SAMPLE], seconds = sample_scores(study, inputs)
        rankings.costs[SAMPLE] = seconds, f"{study.sample} labelled rows"
    for values in rankings.values.values():
        # A target's own prompt is not a source for it.
        values[np.broadcast_to(inputs.own[:, None], values.shape)] = np.nan
    return rankings


def sample_scores(study: RecommendStudy, inputs: RecommendInputs) -> tuple[NDArray[np.float64], float]:
    """Score all prompts on small labelled samples of each target; return scores [T, S, N] and seconds per sample."""
    number = study.sample_seeds or 1
    device = choose_device(study.accelerator)
    backbone = inputs.backbone
    backbone.to(device)
    began = time.perf_counter()
    scorer = Scorer(backbone, inputs.entries)
    encoder = backbone.encoder(scorer.longest)
    fixed, scored = time.perf_counter() - began, 0.0
    scores = np.empty((len(inputs.targets), number, inputs.number))
    data = EvaluationData(**{**asdict(study.data), "limit_eval": study.sample * number})
    for place, name in enumerate(study.tasks):
        began = time.perf_counter()
        task = get_task(name).with_policy(inputs.policy)
        target = load_target(task, data, inputs.words, "train", encoder)
        missing = np.ones((inputs.number, len(target)), dtype=bool)
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
    return scores, (fixed + scored) / len(inputs.targets)


def draw_samples(total: int, size: int, number: int, seed: int) -> list[NDArray[np.int64]]:
    """Return example numbers of `number` samples out of `total`: disjoint if possible, else drawn independently."""
    generator = np.random.default_rng(seed)
    if size * number <= total:
        return list(generator.permutation(total)[: size * number].reshape(number, size))
    return [generator.permutation(total)[:size] for _ in range(number)]


def _add_metadata_rankings(inputs: RecommendInputs, rankings: Rankings) -> None:
    """Add the rankings that need neither the backbone nor a prompt of the target."""
    found, targets = inputs.found, inputs.tasks
    size = (len(targets), 1, inputs.number)
    began = time.perf_counter()
    of_targets = [[word for own in task.class_words for word in own] for task in targets]
    if found.label_words is not None and any(of_targets):
        words = label_word_overlap([*found.label_words, *of_targets])
        rankings.values["label_word_overlap"] = words[inputs.number :, None, : inputs.number].copy()
        rankings.costs["label_word_overlap"] = (time.perf_counter() - began) / len(targets), "label words"
    else:
        rankings.notes.append("label_word_overlap left out: the prompts, or the targets, have no label words")
    if found.data_sizes is not None:
        rankings.values["data_size"] = np.broadcast_to(data_size(found.data_sizes)[0], size).copy()
        rankings.costs["data_size"] = 0.0, "train_rows of the prompts"
    else:
        rankings.notes.append("data_size left out: not all prompts record the number of their training examples")
    types = np.array(found.types, dtype=object)
    same = [(types == task.type) & (types != UNKNOWN) for task in targets]
    rankings.values[SAME_TYPE] = np.stack(same)[:, None].astype(float)
    rankings.costs[SAME_TYPE] = 0.0, "task types"
