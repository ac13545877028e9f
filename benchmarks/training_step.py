"""Seconds and peak memory of a training step: this project's ways beside PEFT, a plain loop and the old releases'.

    pip install peft
    python benchmarks/training_step.py --output results/benchmarks/training_step.json

Models have the sizes of RoBERTa-base, GPT-2 and T5-base and random weights, texts are those of SST-2 where
`--data_root` holds it. Each way runs in a process of its own, so that its peak holds everything: libraries, loading,
forward, backward, optimizer. Those with weights of one format live at the same time and take their steps in turn. All
pad to their batch but the old way, which pads to 128 tokens. This project's batches are those of its sampler, of texts
of similar length; with `_random` in its name a way takes the same random batches as the others. The floor is explained
in `floor.py`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import MODELS, facts, save_random, sentences, weights, write
from floor import Rates, Sizes, needed
from transformers import AutoTokenizer

from prompt_transfer.commands.parsing import call
from prompt_transfer.data.batches import LengthGroupedBatchSampler
from prompt_transfer.utils import results

# Weights are those that `dtype` names where a way does not.
WAYS: dict[str, dict[str, Any]] = {
    "old": {"way": "plain", "dtype": "float32", "width": 128},
    "plain": {"way": "plain"},
    "peft_autocast": {"way": "peft", "dtype": "float32", "autocast": True},
    "peft": {"way": "peft"},
    "full_random": {"way": "full"},
    "full": {"way": "full", "grouped": True},
    "shared_random": {"way": "shared"},
    "shared": {"way": "shared", "grouped": True},
    # Not among the default ones.
    "full_compiled": {"way": "full", "grouped": True, "compile": True},
    "shared_compiled": {"way": "shared", "grouped": True, "compile": True},
}
DEFAULT = "old,plain,peft_autocast,peft,full_random,full,shared_random,shared"


class Worker:
    """A process that takes one way (`ways.py`)."""

    def __init__(self, spec: dict[str, Any]) -> None:
        script = str(Path(__file__).with_name("ways.py"))
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, script, json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"a way has ended:\n{self.log.read()[-2000:]}")
        return json.loads(line)

    def step(self, texts: list[str]) -> dict[str, Any]:
        """What one step on some texts costs."""
        assert self.process.stdin is not None
        print(json.dumps(texts), file=self.process.stdin, flush=True)
        return self._reply()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def batches(texts: list[str], tokenizer: Any, size: int, steps: int) -> tuple[list[list[str]], list[list[str]]]:
    """`steps` batches of `size` texts in random order, and as many of this project's sampler over the same texts."""
    order = np.random.default_rng(0).permutation(len(texts))
    chosen = [texts[row] for row in order[: 50 * size]]
    lengths = np.array([len(row) for row in tokenizer(chosen)["input_ids"]])
    sampler = LengthGroupedBatchSampler(lengths, size)
    # Evenly over all lengths: the sampler's own order is random.
    by_length = sorted(range(len(sampler)), key=lambda index: lengths[sampler.global_batch(index)].max())
    middle = (np.arange(steps) + 0.5) * len(sampler) / steps
    grouped = [[chosen[row] for row in sampler.global_batch(by_length[int(place)])] for place in middle]
    return [chosen[index * size : (index + 1) * size] for index in range(steps)], grouped


def together(specs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The ways whose processes live at the same time.

    Beside weights of half the size, those with float32 weights come first, by themselves: a whole head over GPT-2's
    vocabulary takes 9 GB in each, and all at once do not fit into 24 GB.
    """
    wide = [way for way, spec in specs.items() if spec["dtype"] == "float32"]
    return [group for group in (wide, [way for way in specs if way not in wide]) if group]


def measure(kind: str, ways: list[str], options: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a way on the model `kind`."""
    steps, size = options["steps"], options["batch_size"]
    specs = {way: {"dtype": options["dtype"], **WAYS[way]} for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {dtype: Path(scratch) / dtype for dtype in {spec["dtype"] for spec in specs.values()}}
        for dtype, folder in folders.items():
            save_random(kind, options["size"], dtype, folder)
        tokenizer = AutoTokenizer.from_pretrained(next(iter(folders.values())))
        random, grouped = batches(options["texts"], tokenizer, size, steps)
        shared = {name: options[name] for name in ("prompt_length", "threads", "device")}
        taken: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for group in together(specs):
            with ExitStack() as stack:
                workers = {
                    way: stack.enter_context(
                        Worker({**specs[way], **shared, "model": str(folders[specs[way]["dtype"]])})
                    )
                    for way in group
                }
                for index in range(-steps, steps):
                    for way, worker in workers.items():
                        rows = grouped if specs[way].get("grouped") else random
                        reply = worker.step(rows[index % steps])
                        # Each batch is taken once before it counts: in a run all lengths have soon been seen.
                        if index >= 0:
                            taken[way].append(reply)
        found = [{"model": kind, "step": way, "dtype": specs[way]["dtype"], **summary(taken[way])} for way in ways]
    add_ratios(found)
    add_floor(kind, found, tokenizer, grouped, options)
    return found


def summary(replies: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of seconds and positions, the highest peak."""
    seconds = [reply["seconds"] for reply in replies]
    row = {
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "text_positions": statistics.median(reply["text_positions"] for reply in replies),
        "peak_mib": round(replies[-1]["peak_mib"]),
    }
    if "peak_gpu_mib" in replies[-1]:
        row["peak_gpu_mib"] = round(replies[-1]["peak_gpu_mib"])
    return row


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """How much faster than PEFT's faster way and than the old one; memory over PEFT's smallest."""
    peft = [row for row in rows if row["step"] in ("peft", "peft_autocast")]
    old = next((row for row in rows if row["step"] == "old"), None)
    for row in rows:
        if peft:
            row["faster_than_peft"] = min(other["seconds"] for other in peft) / row["seconds"]
            row["peak_over_peft"] = row["peak_mib"] / min(other["peak_mib"] for other in peft)
        if old:
            row["faster_than_old"] = old["seconds"] / row["seconds"]


def add_floor(
    kind: str, rows: list[dict[str, Any]], tokenizer: Any, grouped: list[list[str]], options: dict[str, Any]
) -> None:
    """Time over floor of this project's own ways; none for a sequence-to-sequence model."""
    if kind == "t5":
        return
    config = MODELS[kind][options["size"]][1]
    hidden = config.get("hidden_size", config.get("n_embd"))
    sizes = Sizes(
        config.get("num_hidden_layers", config.get("n_layer")),
        hidden,
        config.get("intermediate_size", 4 * hidden),
        config.get("num_attention_heads", config.get("n_head")),
    )
    length, causal = options["prompt_length"], kind == "gpt2"
    answer = 0 if causal else 1
    texts = [[min(len(row), 128) + answer for row in tokenizer(batch)["input_ids"]] for batch in grouped]
    rates: dict[tuple[str, int], Rates] = {}
    for row in rows:
        spec = WAYS[row["step"]]
        if not spec.get("grouped"):
            continue
        way = "shared" if causal else spec["way"]
        size = options["batch_size"]
        positions = int(statistics.median(map(sum, texts))) + length * (1 if way == "shared" else size)
        key = (row["dtype"], positions)
        if key not in rates:
            dtype = getattr(torch, row["dtype"])
            rates[key] = Rates(sizes, positions, size, dtype, options["device"])
        work = [needed(sizes, way, length, batch, causal) for batch in texts]
        matrix, both = (statistics.median(each) for each in zip(*map(rates[key].seconds, work), strict=True))
        row["needed_gflop"] = statistics.median(each.total for each in work) / 1e9
        row["matrix_gflop_per_second"] = rates[key].linear[hidden, sizes.ffn] / 1e9
        row["copy_gb_per_second"] = rates[key].copy / 1e9
        row["over_matrix_floor"] = row["seconds"] / matrix
        row["over_floor_with_bytes"] = row["seconds"] / both


def run(
    output: str,
    models: str = "roberta,gpt2,t5",
    ways: str = DEFAULT,
    data_root: str = "../shared/data",
    batch_size: int = 32,
    prompt_length: int = 100,
    steps: int = 5,
    threads: int = 2,
    device: str = "cpu",
    size: str = "base",
    dtype: str | None = None,
) -> None:
    """Measure and write a JSON file.

    Args:
        output: the file.
        models: of roberta, gpt2 and t5.
        ways: of those in WAYS.
        data_root: folder with sst2/; built-in sentences where there is none.
        batch_size: B.
        prompt_length: P.
        steps: measured, after as many on the same batches that are not.
        threads: of torch.
        device: cpu or cuda.
        size: base, or tiny to try the script.
        dtype: of the weights, but for ways that have their own; default bfloat16 where the machine computes in it, else
            float32.
    """
    torch.set_num_threads(threads)
    texts, task = sentences(data_root)
    settings = {
        "batch_size": batch_size, "prompt_length": prompt_length, "steps": steps, "threads": threads,
        "device": device, "size": size, "dtype": dtype or weights(device),
    }  # fmt: skip
    report = facts(
        "training step of models of random weights: classification, one prompt, AdamW",
        ("torch", "transformers", "peft"), texts=task, **settings,
    )  # fmt: skip
    rows = []
    for kind in models.split(","):
        # A causal model's two modes are one function, and autocast needs a machine that computes in bfloat16.
        left_out = ("shared",) if kind == "gpt2" else ()
        left_out += ("peft_autocast",) if settings["dtype"] == "float32" else ()
        chosen = [way for way in ways.split(",") if not way.startswith(left_out)]
        rows += measure(kind, chosen, {**settings, "texts": texts})
        write(output, {**report, "rows": rows})
    keys = ["model", "step", "seconds", "text_positions", "peak_mib", "faster_than_peft", "faster_than_old"]
    results.show(rows, columns=[*keys, "peak_over_peft", "over_matrix_floor", "over_floor_with_bytes"])


if __name__ == "__main__":
    call(run, "training_step", sys.argv[1:])
