"""Time, memory and error of a frozen backbone in bf16 and in 8 or 4 bits.

    pip install -e .[quantization]
    python benchmarks/quantization.py --gradient_checkpointing --output results/benchmarks/quantization.json

`1.5b` is a Llama of 1.5 billion random weights, written to a temporary folder in files of 500 MB. Each method loads and
trains a prompt in a process of its own, whose peak memory includes libraries, loading, forward, backward and optimizer.
Texts are random token ids of equal length, so that B x T tokens are computed without padding.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import facts, write
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.config import QUANTIZATIONS
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands.parsing import call
from prompt_transfer.utils import results

SIZES = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 32, "num_attention_heads": 32}


def save_llama(folder: Path) -> None:
    """Save a Llama of 1.5 billion random bf16 weights with a built-in tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(builtin_backbones()["gpt2-nano"])
    config = LlamaConfig(
        vocab_size=32000, num_key_value_heads=8, tie_word_embeddings=True, bos_token_id=None, pad_token_id=None,
        eos_token_id=tokenizer.eos_token_id, **SIZES,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="500MB")
    tokenizer.save_pretrained(folder)


def peak_mib() -> float:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(spec: dict[str, Any]) -> dict[str, Any]:
    """Load the backbone, take the steps and return their cost and the logits before the first step."""
    torch.set_num_threads(spec["threads"])
    started = time.perf_counter()
    backbone = FrozenBackbone(
        spec["backbone"], dtype="bfloat16", quantization=spec["quantization"],
        gradient_checkpointing=spec["gradient_checkpointing"],
    )  # fmt: skip
    row = {"load_seconds": time.perf_counter() - started, "load_peak_mib": round(peak_mib())}
    generator = torch.Generator().manual_seed(0)
    size = (spec["batch_size"], spec["length"])
    ids = torch.randint(300, min(len(backbone.tokenizer), 5000), size, generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    prompt = nn.Parameter(backbone.embedding_weight[300 : 300 + spec["prompt_length"]].float().clone())
    optimizer = torch.optim.AdamW([prompt], lr=0.01)
    words, labels = torch.arange(400, 420), torch.arange(len(ids)) % 20
    seconds: list[float] = []
    for _ in range(spec["steps"]):
        started = time.perf_counter()
        logits = backbone(prompt, batch, words)
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        if len(seconds) == 1:
            row["logits"] = logits.detach().tolist()
    # The first step also allocates memory.
    row["step_seconds"] = statistics.median(seconds[1:] or seconds)
    row["peak_mib"] = round(peak_mib())
    weights = list(backbone.model.parameters())
    row["weights_mib"] = round(sum(weight.nbytes for weight in weights) / 2**20)
    return row


def run(
    output: str,
    backbone: str = "1.5b",
    methods: str = "none,int8,int4,nf4",
    batch_size: int = 32,
    length: int = 128,
    prompt_length: int = 100,
    steps: int = 3,
    threads: int = 2,
    gradient_checkpointing: bool = False,
) -> None:
    """Measure and write a JSON file.

    Args:
        output: the file.
        backbone: `1.5b`, or a backbone of this project.
        methods: any of none, int8, int4 and nf4.
        batch_size: B.
        length: T.
        prompt_length: P.
        steps: number of steps; the first one warms up.
        threads: number of torch threads.
        gradient_checkpointing: recompute the layers in the backward pass.
    """
    report = facts(
        "training step of a quantized backbone", ("torch", "transformers", "torchao", "bitsandbytes"),
        backbone=backbone, batch_size=batch_size, length=length, prompt_length=prompt_length, steps=steps,
        threads=threads, gradient_checkpointing=gradient_checkpointing,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    reference: torch.Tensor | None = None
    with tempfile.TemporaryDirectory() as scratch:
        if backbone == "1.5b":
            subprocess.run([sys.executable, __file__, "save", scratch], check=True)
        for method in methods.split(","):
            if method not in ("none", *QUANTIZATIONS):
                raise SystemExit(f"unknown method {method}")
            spec = {
                **{key: report[key] for key in ("batch_size", "length", "prompt_length", "steps", "threads")},
                "backbone": scratch if backbone == "1.5b" else backbone,
                "quantization": None if method == "none" else method,
                "gradient_checkpointing": gradient_checkpointing,
            }
            ran = subprocess.run(
                [sys.executable, __file__, "child", json.dumps(spec)], check=True, capture_output=True, text=True
            )
            row = json.loads(ran.stdout.splitlines()[-1])
            logits = torch.tensor(row.pop("logits"))
            reference = logits if reference is None else reference
            row["logits_difference"] = ((logits - reference).norm() / reference.norm()).item()
            rows.append({"method": method, **row})
            write(output, {**report, "rows": rows})
    results.show(
        rows, columns=["method", "weights_mib", "load_peak_mib", "peak_mib", "step_seconds", "logits_difference"]
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["save"]:
        save_llama(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["child"]:
        print(json.dumps(child(json.loads(sys.argv[2]))))
    else:
        call(run, "quantization", sys.argv[1:])
