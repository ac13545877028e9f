"""The transfer matrix in one pass, compared with a loop over pairs in the same process with the same tokens.

    python benchmarks/matrix.py --tasks builtin_movies,builtin_restaurants

Prompts are random, since time does not depend on their values. The loop scores one prompt on one task at a time, in
batches of `eval_batch_size` texts sorted by length, with the objective of `test`. CPU seconds of the process are
measured to limit the influence of other work on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands.parsing import call
from prompt_transfer.data.batches import EvaluationBatchSampler, collate
from prompt_transfer.modules.objectives import Classification, make_objective
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.studies.entries import Entry
from prompt_transfer.studies.scoring import MAX_TOKENS, Scorer
from prompt_transfer.studies.targets import EvaluationData, Target, load_target
from prompt_transfer.tasks.metrics import make_metrics
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils import results


@torch.inference_mode()
def by_pairs(
    backbone: FrozenBackbone, entries: Sequence[Entry], targets: Sequence[Target], size: int
) -> tuple[float, list[float]]:
    """Score every prompt on every task in a loop; return the seconds and scores."""
    started, scores = time.process_time(), []
    extra = backbone.encoder(len(entries[0].embeddings)).extra_positions
    for entry in entries:
        for target in targets:
            objective = make_objective(backbone, [target.task])
            assert isinstance(objective, Classification)
            metrics = make_metrics(target.task)
            for batch in EvaluationBatchSampler(target.table.lengths, size, extra_positions=extra):
                texts = collate(target.table, batch.rows, backbone.encoder(1).pad_token_id)
                metrics.update(objective.logits(entry.embeddings, texts).argmax(dim=1), texts["labels"])
            scores.append(float(metrics.compute()[target.task.metric]))
    return time.process_time() - started, scores


def one_pass(
    backbone: FrozenBackbone, entries: Sequence[Entry], targets: Sequence[Target], max_tokens: int
) -> tuple[float, list[float]]:
    """Do the same in one pass over each task's examples."""
    started, columns = time.process_time(), []
    scorer = Scorer(backbone, entries)
    for target in targets:
        answers = np.empty((len(entries), len(target)), dtype=np.float32)
        work = scorer.batches(target, np.ones(answers.shape, dtype=bool), max_tokens)
        for (prompts, rows), found in scorer.answers(target, work):
            answers[np.ix_(prompts, rows)] = found
        columns.append([target.score(row) for row in answers])
    return time.process_time() - started, np.array(columns).T.ravel().tolist()


def matrix(
    tasks: str = "builtin_movies,builtin_restaurants,builtin_nli",
    backbone: str = "roberta-nano",
    source: Literal["hub", "local", "builtin"] = "builtin",
    root: str | None = None,
    prompts: int = 13,
    prompt_length: int = 20,
    limit_eval: int = 2000,
    eval_batch_size: int = 128,
    max_tokens: int = MAX_TOKENS["cpu"],
    repeats: int = 1,
    threads: int = 1,
    output: str | None = None,
) -> None:
    """Print seconds of both ways in both attention modes, and their ratios.

    Args:
        tasks: target tasks, separated by commas; classification only.
        backbone: name or folder.
        source, root: source and folder of the data.
        prompts: N.
        prompt_length: P.
        limit_eval: number of examples per task.
        eval_batch_size: texts per batch of the loop.
        max_tokens: positions per batch of the single pass.
        repeats: number of measurements, of which the fastest counts.
        threads: number of torch threads.
        output: CSV file for the table.
    """
    torch.set_num_threads(threads)
    rows = []
    for attention in ("full", "shared"):
        model = FrozenBackbone(backbone, attention=attention)
        data = EvaluationData(source, root, limit_eval=limit_eval)
        encoder = model.encoder(prompt_length)
        targets = [load_target(get_task(name), data, "default", "test", encoder) for name in tasks.split(",")]
        shape = (prompt_length, model.hidden_size)
        entries = [
            Entry(str(number), "random", "random", number, random_prompt(model, shape, number))
            for number in range(1, prompts + 1)
        ]
        loop, single = [], []
        for _ in range(repeats):
            loop.append(by_pairs(model, entries, targets, eval_batch_size))
            single.append(one_pass(model, entries, targets, max_tokens))
        difference = float(np.abs(np.subtract(loop[0][1], single[0][1])).max())
        text = float(np.mean(np.concatenate([target.table.lengths for target in targets]))) + 1
        rows.append(
            {
                "attention": attention,
                "cells": len(entries) * len(targets),
                "loop_seconds": min(seconds for seconds, _ in loop),
                "one_pass_seconds": min(seconds for seconds, _ in single),
                "largest_difference": difference,
                "positions_a_text": text,
            }
        )
    frame = pd.DataFrame(rows)
    frame["loop_over_one_pass"] = frame["loop_seconds"] / frame["one_pass_seconds"]
    results.show([{str(key): value for key, value in row.items()} for row in frame.to_dict("records")])
    full, shared = frame["one_pass_seconds"]
    text = frame["positions_a_text"][0]
    bound = (prompt_length + text) / text
    print(f"shared is {full / shared:.2f} times faster than full in one pass; (P + T) / T is {bound:.2f}")
    if output is not None:
        results.write(frame, Path(output))


if __name__ == "__main__":
    import sys

    call(matrix, "matrix", sys.argv[1:])
