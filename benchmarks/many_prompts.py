"""Training prompts of several seeds together, compared with training them one after the other.

    python benchmarks/many_prompts.py --output results/benchmarks/many_prompts.json
    python benchmarks/many_prompts.py --backbone smollm2-135m --prompts 1,8,64 --alone 4 --dtype bfloat16 ...

Both ways alternate in this process on the same tokens and batches, and include evaluations. Loading and tokenisation,
which separate runs would repeat, are excluded. A causal model's two attention modes are the same function, so it is
measured once.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from typing import Any

import lightning as L
import torch
from common import facts, model_folder, write
from transformers import AutoConfig

from prompt_transfer.backbones.families import FAMILIES
from prompt_transfer.commands.lightning import TRAINER_DEFAULTS, quiet
from prompt_transfer.commands.parsing import call
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.prompt_ensemble import PromptEnsemble
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.utils import results
from prompt_transfer.utils.allocation import keep_memory


def train(module: PromptTuning, data: TaskDataModule, steps: int, seed: int, device: str = "cpu") -> float:
    """Train for `steps` steps, evaluating halfway and at the end; return the seconds."""
    L.seed_everything(seed, verbose=False)
    options = {"max_steps": steps, "val_check_interval": max(1, steps // 2)}
    trainer = L.Trainer(
        **{**TRAINER_DEFAULTS, **options, "accelerator": "gpu" if device == "cuda" else device},
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.fit(module, datamodule=data)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compared(
    count: int, alone: int, same: dict[str, Any], data: TaskDataModule, steps: int, repeats: int, device: str
) -> dict[str, Any]:
    """Return the row of `count` prompts, of which `alone` are trained one after the other too."""
    taken: dict[str, list[float]] = {"at once": [], "one after the other": []}
    apart = 0.0
    for _ in range(repeats):
        together = PromptEnsemble(seeds=list(range(count)), **same)
        taken["at once"].append(train(together, data, steps, 0, device))
        seconds = 0.0
        for seed in range(alone):
            single = PromptTuning(**same)
            seconds += train(single, data, steps, seed, device)
            moved = together.prompt(f"prompt-seed{seed}").embeddings - single.prompt().embeddings
            apart = max(apart, moved.abs().max().item())
        taken["one after the other"].append(seconds * count / alone)
    once, each = (statistics.median(values) for values in taken.values())
    return {
        "attention": same["attention"], "prompts": count, "at_once_s": once, "one_after_the_other_s": each,
        "speed": each / once, "cost_over_one_run": once / (each / count), "largest_difference": apart,
    }  # fmt: skip


def run(
    output: str,
    backbone: str = "roberta-nano",
    task: str = "builtin_movies",
    data_root: str | None = None,
    prompts: str = "8",
    prompt_length: int = 20,
    batch_size: int = 32,
    steps: int = 50,
    limit_eval: int = 256,
    repeats: int = 3,
    threads: int = 2,
    dtype: str = "float32",
    alone: int | None = None,
    device: str = "cpu",
) -> None:
    """Measure and write a JSON file.

    Args:
        output: the file.
        backbone: a built-in backbone, a folder or a hub id.
        task: name of a task.
        data_root: folder with the task's data; None for built-in tasks.
        prompts: N, the number of prompts to train, or several numbers.
        prompt_length: P.
        batch_size: B, texts per step.
        steps: steps per run.
        limit_eval: examples per evaluation.
        repeats: runs of each way; medians are reported.
        threads: number of torch threads.
        dtype: dtype of the backbone's weights.
        alone: most runs of one prompt that are measured; N of them are assumed to take N times their mean. None: all.
        device: cpu or cuda.
    """
    torch.set_num_threads(threads)
    quiet()
    warnings.simplefilter("ignore")
    report = facts(
        f"{prompts.replace(',', ', ')} prompts of {backbone} on {task}: trained at once and one after the other",
        steps=steps, repeats=repeats, batch_size=batch_size, prompt_length=prompt_length, dtype=dtype, threads=threads,
        alone=alone, device=device,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    causal = FAMILIES[AutoConfig.from_pretrained(model_folder(backbone)).model_type].kind == "causal_lm"
    for attention in ("full",) if causal else ("full", "shared"):
        same: dict[str, Any] = {
            "backbone": backbone, "prompt_length": prompt_length, "attention": attention, "dtype": dtype,
        }  # fmt: skip
        data = TaskDataModule(
            task, "local" if data_root else "builtin", data_root, batch_size=batch_size, limit_eval=limit_eval
        )
        train(PromptTuning(**same), data, 2, 0, device)  # tokenises, and warms up
        for count in map(int, prompts.split(",")):
            rows.append(compared(count, min(count, alone or count), same, data, steps, repeats, device))
    results.show(rows)
    write(output, {**report, "rows": rows})


if __name__ == "__main__":
    # As in `fit`.
    keep_memory()
    call(run, "many_prompts", sys.argv[1:])
