"""Growth of a training step's cost with prompt length, batch size, text length and number of prompts.

    python benchmarks/cost.py --output results/benchmarks/cost.json

The model has the size of RoBERTa-base and random weights; texts are random tokens of equal length, without padding. One
quantity is varied at a time. `expected` is the number of required operations relative to the base point (`floor.py`).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import MODELS, facts, in_turn, save_random, weights, write
from floor import Sizes, needed
from torch import nn

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands.parsing import call
from prompt_transfer.utils import results
from prompt_transfer.utils.allocation import keep_memory

BASE = {"prompt_length": 100, "batch_size": 32, "text_length": 24, "prompts": 1}


def stepper(backbone: FrozenBackbone, point: dict[str, int], device: str) -> Callable[[], None]:
    """Return a function that takes a training step of N prompts, each on the same B texts of T tokens."""
    count, size = point["prompts"], point["batch_size"]
    table = backbone.embedding_weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, len(table), (size, point["text_length"]), generator=generator).repeat(count, 1).to(device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["prompt_ids"] = torch.arange(count, device=device).repeat_interleave(size)
    rows = torch.randint(10, len(table), (count, point["prompt_length"]), generator=generator).to(device)
    prompts = nn.Parameter(table[rows].float())
    optimizer = torch.optim.AdamW([prompts], lr=0.01)
    words = torch.tensor([10, 11], device=device)
    labels = torch.arange(len(ids), device=device) % 2

    def step() -> None:
        nn.functional.cross_entropy(backbone(prompts, batch, words), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def run(
    output: str,
    prompt_lengths: str = "10,20,50,100,200",
    batch_sizes: str = "8,16,32,64",
    text_lengths: str = "12,24,48,96",
    prompts: str = "1,2,4",
    dtype: str | None = None,
    repeats: int = 5,
    threads: int = 2,
    device: str = "cpu",
    size: str = "base",
) -> None:
    """Measure and write a JSON file.

    Args:
        output: the file.
        prompt_lengths: values of P; all other quantities stay as in BASE.
        batch_sizes: values of B.
        text_lengths: values of T, without the answer slot.
        prompts: numbers N of prompts trained together, each on all B texts.
        dtype: dtype of the weights; default bfloat16 if the machine computes in it, else float32.
        repeats: measurements per point, after a warm-up; the points of one quantity alternate.
        threads: number of torch threads.
        device: cpu or cuda.
        size: base, or tiny to try the script.
    """
    torch.set_num_threads(threads)
    dtype = dtype or weights(device)
    config = MODELS["roberta"][size][1]
    sizes = Sizes(
        config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    )
    report = facts(
        "cost of a training step, one quantity varied at a time", dtype=dtype, repeats=repeats, threads=threads,
        device=device, size=size, base=BASE,
    )  # fmt: skip
    varied = {
        "prompt_length": prompt_lengths, "batch_size": batch_sizes, "text_length": text_lengths, "prompts": prompts,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        save_random("roberta", size, dtype, Path(scratch))
        for attention in ("full", "shared"):
            backbone = FrozenBackbone(scratch, attention=attention, dtype=dtype).to(device)

            def work(point: dict[str, int], attention: str = attention) -> float:
                texts = [point["text_length"] + 1] * point["batch_size"]
                return needed(sizes, attention, point["prompt_length"], texts).total * point["prompts"]

            for name, values in varied.items():
                points = {value: {**BASE, name: int(value)} for value in values.split(",")}
                points.setdefault(str(BASE[name]), BASE)
                seconds = in_turn({key: stepper(backbone, point, device) for key, point in points.items()}, repeats)
                base = seconds[str(BASE[name])]
                rows += [
                    {
                        "varied": name, "value": int(key), "attention": attention, "seconds": seconds[key],
                        "over_base": seconds[key] / base, "expected": work(points[key]) / work(BASE),
                        "gflop_per_second": work(points[key]) / seconds[key] / 1e9,
                    }
                    for key in points
                ]  # fmt: skip
                write(output, {**report, "rows": rows})
    results.show(rows)


if __name__ == "__main__":
    # As in `fit`.
    keep_memory()
    call(run, "cost", sys.argv[1:])
