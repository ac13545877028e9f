"""Seconds and peak memory of a training step: this project compared with PEFT, a plain loop and the old releases.

    pip install peft
    python benchmarks/training_step.py --output results/benchmarks/training_step.json
    python benchmarks/training_step.py --backbone smollm2-135m --output results/benchmarks/training_step_smollm2.json

Models have the sizes of RoBERTa-base, GPT-2 and T5-base and random weights, or `--backbone` names a model with its own
weights. Texts are from SST-2 if `--data_root` has it. Each way runs in its own process, whose peak memory includes
libraries, loading, forward, backward and optimizer.
Ways with the same weight dtype run concurrently and take their steps in turn. All pad to the longest text of the batch,
except the old releases, which pad to 128 tokens. This project uses its sampler's batches of similar lengths; ways with
`_random` in their name use the same random batches as the others. `floor.py` explains the floor.
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
from common import facts, model_folder, save_random, sentences, weights, write
from floor import Rates, Sizes, needed
from transformers import AutoConfig, AutoTokenizer
from ways import kind_of

from prompt_transfer.backbones.families import FAMILIES
from prompt_transfer.commands.parsing import call
from prompt_transfer.data.batches import LengthGroupedBatchSampler
from prompt_transfer.utils import results

# Ways without a `dtype` use the one of the command line.
WAYS: dict[str, dict[str, Any]] = {
    "old": {"way": "plain", "dtype": "float32", "width": 128},
    "plain": {"way": "plain"},
    "peft_autocast": {"way": "peft", "dtype": "float32", "autocast": True},
    "peft": {"way": "peft"},
    "full_random": {"way": "full"},
    "full": {"way": "full", "grouped": True},
    "shared_random": {"way": "shared"},
    "shared": {"way": "shared", "grouped": True},
    # Not run by default.
    "full_compiled": {"way": "full", "grouped": True, "compile": True},
    "shared_compiled": {"way": "shared", "grouped": True, "compile": True},
}
DEFAULT = "old,plain,peft_autocast,peft,full_random,full,shared_random,shared"


class Worker:
    """A process that runs one way (`ways.py`)."""

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
            raise RuntimeError(f"a worker process ended:\n{self.log.read()[-2000:]}")
        return json.loads(line)

    def step(self, texts: list[str]) -> dict[str, Any]:
        """Take one step on some texts and return its cost."""
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
    """Return `steps` random batches of `size` texts, and as many of this project's sampler over the same texts."""
    order = np.random.default_rng(0).permutation(len(texts))
    chosen = [texts[row] for row in order[: 50 * size]]
    lengths = np.array([len(row) for row in tokenizer(chosen)["input_ids"]])
    sampler = LengthGroupedBatchSampler(lengths, size)
    # Choose batches evenly over all lengths: the sampler's order is random.
    by_length = sorted(range(len(sampler)), key=lambda index: lengths[sampler.global_batch(index)].max())
    middle = (np.arange(steps) + 0.5) * len(sampler) / steps
    grouped = [[chosen[row] for row in sampler.global_batch(by_length[int(place)])] for place in middle]
    return [chosen[index * size : (index + 1) * size] for index in range(steps)], grouped


def together(specs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Group the ways whose processes run concurrently.

    Ways with float32 weights form the first group, ways with smaller weights the second: a full head over GPT-2's
    vocabulary takes 9 GB per process, and all ways together exceed 24 GB.
    """
    wide = [way for way, spec in specs.items() if spec["dtype"] == "float32"]
    return [group for group in (wide, [way for way in specs if way not in wide]) if group]


def measure(kind: str, ways: list[str], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure the ways on the model `kind`, or on the backbone of that name; return one row per way."""
    steps, size = options["steps"], options["batch_size"]
    specs = {way: {"dtype": options["dtype"], **WAYS[way]} for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        dtypes = {spec["dtype"] for spec in specs.values()}
        if options["backbone"]:
            folders = dict.fromkeys(dtypes, model_folder(kind))
        else:
            folders = {dtype: Path(scratch) / dtype for dtype in dtypes}
            for dtype, folder in folders.items():
                save_random(kind, options["size"], dtype, folder)
        config = AutoConfig.from_pretrained(next(iter(folders.values())))
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
                        # Warm up with every batch: a real run has soon seen all lengths.
                        if index >= 0:
                            taken[way].append(reply)
        found = [{"model": kind, "step": way, "dtype": specs[way]["dtype"], **summary(taken[way])} for way in ways]
    add_ratios(found)
    add_floor(config, found, tokenizer, {True: grouped, False: random}, options)
    return found


def summary(replies: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of seconds and positions, and the highest peak."""
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
    """Add speed-ups over PEFT's faster way and over the old releases, and memory relative to PEFT's smallest."""
    peft = [row for row in rows if row["step"] in ("peft", "peft_autocast")]
    old = next((row for row in rows if row["step"] == "old"), None)
    for row in rows:
        if peft:
            row["faster_than_peft"] = min(other["seconds"] for other in peft) / row["seconds"]
            row["peak_over_peft"] = row["peak_mib"] / min(other["peak_mib"] for other in peft)
        if old:
            row["faster_than_old"] = old["seconds"] / row["seconds"]


def add_floor(
    config: Any, rows: list[dict[str, Any]], tokenizer: Any, batches: dict[bool, list[list[str]]],
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Add the ratio of time to floor for this project's ways; not for sequence-to-sequence models.

    Args:
        config: the model's configuration.
        rows: extended in place.
        tokenizer: the model's tokenizer.
        batches: this project's batches (True), and the random ones.
        options: those of `run`.
    """
    kind = kind_of(config)
    if kind == "seq2seq_lm":
        return
    sizes, length, causal = Sizes.of(config), options["prompt_length"], kind == "causal_lm"
    answer = 0 if causal else 1
    rates: dict[tuple[str, int], Rates] = {}
    for row in rows:
        spec = WAYS[row["step"]]
        # Padding counts as overhead; encoders compute it in random batches.
        if spec["way"] not in ("full", "shared") or (not causal and not spec.get("grouped")):
            continue
        own = batches[bool(spec.get("grouped"))]
        texts = [[min(len(row), 128) + answer for row in tokenizer(batch)["input_ids"]] for batch in own]
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
        row["matrix_gflop_per_second"] = rates[key].linear[sizes.hidden, sizes.first_ffn] / 1e9
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
    backbone: str | None = None,
) -> None:
    """Measure and write a JSON file.

    Args:
        output: the file.
        models: any of roberta, gpt2 and t5.
        ways: keys of WAYS.
        data_root: folder with sst2/; built-in sentences without it.
        batch_size: B.
        prompt_length: P.
        steps: number of measured steps, after a warm-up on the same batches.
        threads: number of torch threads.
        device: cpu or cuda.
        size: base, or tiny to try the script.
        dtype: dtype of the weights for ways without their own; default bfloat16 if the machine computes in it, else
            float32.
        backbone: name or folder of a model with its own weights, instead of `models`; in the default ways without
            those of the old releases.
    """
    torch.set_num_threads(threads)
    texts, task = sentences(data_root)
    settings = {
        "batch_size": batch_size, "prompt_length": prompt_length, "steps": steps, "threads": threads,
        "device": device, "size": size, "dtype": dtype or weights(device), "backbone": backbone,
    }  # fmt: skip
    report = facts(
        f"training step of {backbone or 'models of random weights'}: classification, one prompt, AdamW",
        ("torch", "transformers", "peft"), texts=task, **settings,
    )  # fmt: skip
    rows = []
    if backbone and ways == DEFAULT:
        ways = DEFAULT.removeprefix("old,")
    for kind in [backbone] if backbone else models.split(","):
        # A causal model's two modes are the same function, and autocast needs bfloat16 arithmetic.
        family = AutoConfig.from_pretrained(model_folder(backbone)).model_type if backbone else kind
        causal = FAMILIES[family].kind == "causal_lm"
        left_out = ("shared",) if causal else ()
        left_out += ("peft_autocast",) if settings["dtype"] == "float32" else ()
        chosen = [way for way in ways.split(",") if not way.startswith(left_out)]
        rows += measure(kind, chosen, {**settings, "texts": texts})
        write(output, {**report, "rows": rows})
    keys = ["model", "step", "seconds", "text_positions", "peak_mib", "faster_than_peft", "faster_than_old"]
    results.show(rows, columns=[*keys, "peak_over_peft", "over_matrix_floor", "over_floor_with_bytes"])


if __name__ == "__main__":
    call(run, "training_step", sys.argv[1:])
