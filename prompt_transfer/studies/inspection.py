"""Inspection of one prompt: nearest vocabulary words of its tokens, and its confusion matrix.

Shape letters: P prompt tokens, H hidden, V vocabulary, N prompts, n examples of a task.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.prompts.initializers import vocabulary_ids
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.studies.backbones import load_backbone
from prompt_transfer.studies.entries import Entry, warn_of_other_words, with_formats
from prompt_transfer.studies.scoring import MAX_TOKENS, Scorer
from prompt_transfer.studies.targets import EvaluationData, load_target
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError

DATA = EvaluationData()
THIS = "this prompt"


def nearest_words(
    prompt: Prompt | str | Path, count: int = 3, backbone: str | None = None, accelerator: str = "cpu"
) -> pd.DataFrame:
    """Return the vocabulary tokens with the highest cosine similarity to each prompt token.

    A prompt token initialized from a word can stay near it through training (Lester et al. 2021, section 7), so a near
    word is not necessarily learned: compare with `start`.

    Args:
        prompt: the prompt, its file, or the folder of its run.
        count: vocabulary tokens per prompt token.
        backbone: name of the backbone; None: the one in the prompt's metadata.
        accelerator: auto, cpu or cuda.

    Returns:
        One row per prompt token: `row` (its number), `start` (nearest vocabulary token before training, None if the
        file does not hold the initialization), `nearest` (nearest first), `cosine` (of the nearest), `moved`
        (Euclidean distance from the initialization, relative to its norm).

    Raises:
        UserError: the prompt cannot be read or does not fit the backbone, or `count` is below 1.
    """
    if count < 1:
        raise UserError(f"{count} words per prompt token: give 1 or more")
    loaded, frozen = _with_backbone(prompt, backbone, accelerator)
    ids = torch.tensor(vocabulary_ids(frozen, top_k=0))
    table = normalize(frozen.embedding_weight.cpu()[ids].float(), dim=1)
    cosines, words = _nearest(loaded.embeddings, table, ids, frozen, min(count, len(ids)))
    rows: list[dict[str, Any]] = [
        {"row": number, "start": None, "nearest": ", ".join(mine), "cosine": cosines[number][0], "moved": None}
        for number, mine in enumerate(words)
    ]
    if loaded.initial is not None:
        moved = (loaded.embeddings - loaded.initial).norm(dim=1) / loaded.initial.norm(dim=1).clamp(min=1e-12)
        starts = _nearest(loaded.initial, table, ids, frozen, 1)[1]
        for row, start, distance in zip(rows, starts, moved.tolist(), strict=True):
            row |= {"start": start[0], "moved": distance}
    return pd.DataFrame(rows)


def _nearest(
    rows: Tensor, table: Tensor, ids: Tensor, backbone: FrozenBackbone, count: int
) -> tuple[list[list[float]], list[list[str]]]:
    """Return cosines and tokens [P, count] nearest to `rows` [P, H] in a table [V, H] of unit vectors."""
    cosines, places = (normalize(rows.float(), dim=1) @ table.T).topk(count, dim=1)
    words = [[backbone.tokenizer.decode([number]).strip() for number in mine] for mine in ids[places].tolist()]
    return cosines.tolist(), words


def confusion(
    prompt: Prompt | str | Path,
    task: str | None = None,
    data: EvaluationData = DATA,
    split: str = "test",
    random_prompts: int = 1,
    backbone: str | None = None,
    accelerator: str = "auto",
) -> pd.DataFrame:
    """Return the confusion matrix of a prompt and of random prompts.

    Args:
        prompt: the prompt, its file, or the folder of its run.
        task: a classification task; None: the prompt's training task.
        data: source and number of examples.
        split: test or validation.
        random_prompts: number of untrained prompts of the same length.
        backbone: name of the backbone; None: the one in the prompt's metadata.
        accelerator: auto, cpu or cuda.

    Returns:
        One row per prompt, label and answer: `task`, `split`, `prompt` ("this prompt", "random prompt 1", ...), `label`
        and `answer` (label words), `rows` (examples), and `share` of the examples with that label.

    Raises:
        UserError: a generation task, or prompt, backbone and task do not fit.
    """
    if split not in ("test", "validation"):
        raise UserError(f"split is {split!r}: choose test or validation")
    data.check()
    loaded, frozen = _with_backbone(prompt, backbone, accelerator)
    facts = loaded.metadata
    known = get_task(task or facts.get("task") or UNKNOWN).with_policy(facts.get("label_words_policy") or None)
    if known.has_example_scores:
        form = "a generation" if known.is_generation else "a multiple-choice"
        raise UserError(f"{known.name} has no classes, it is {form} task: choose a classification task")
    data = with_formats({THIS: loaded}, data)
    known = known.with_format(data.template, data.chat_template)
    warn_of_other_words({THIS: loaded}, [known], frozen)
    # Built-in tasks have no release 1.0 label words.
    words = "default" if known.builtin else data.label_words or facts.get("data_label_words") or "default"
    target = load_target(known, data, words, split, frozen.encoder(len(loaded.embeddings)))
    entries = [Entry(THIS, "trained", known.name, None, loaded.embeddings, file=loaded)]
    shape = (len(loaded.embeddings), frozen.hidden_size)
    for number in range(1, random_prompts + 1):
        drawn = random_prompt(frozen, shape, number)
        entries.append(Entry(f"random prompt {number}", "random", "random", number, drawn))
    scorer, answers = Scorer(frozen, entries), np.empty((len(entries), len(target)), dtype=np.int64)
    budget = data.max_tokens or MAX_TOKENS[scorer.device.type]
    batches = scorer.batches(target, np.ones(answers.shape, dtype=bool), budget)
    for (prompts, rows), found in scorer.answers(target, batches):
        answers[np.ix_(prompts, rows)] = found
    lines = []
    for entry, mine in zip(entries, answers, strict=True):
        for label, word in enumerate(target.task.label_words):
            of_label = mine[target.table.labels == label]
            for answer, other in enumerate(target.task.label_words):
                number = int((of_label == answer).sum())
                share = number / len(of_label) if len(of_label) else None
                lines.append((known.name, target.split, entry.name, word, other, number, share))
    return pd.DataFrame(lines, columns=["task", "split", "prompt", "label", "answer", "rows", "share"])


def _with_backbone(
    prompt: Prompt | str | Path, backbone: str | None, accelerator: str
) -> tuple[Prompt, FrozenBackbone]:
    loaded = prompt if isinstance(prompt, Prompt) else Prompt.load(prompt)
    name = backbone or loaded.metadata.get("backbone") or UNKNOWN
    if name == UNKNOWN:
        raise UserError("the prompt does not name its backbone: give `backbone`")
    return loaded, load_backbone(name, {THIS: loaded}, accelerator=accelerator)
