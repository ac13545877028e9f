"""Time, memory and error of a frozen backbone in bf16 and in 8 or 4 bits.

    pip install -e .[quantization]
    python benchmarks/quantization.py --gradient_checkpointing true --max_tokens 2048 \
        --output results/benchmarks/quantization.json

`1.5b` is a Llama of 1.5 billion random weights, written to a folder in files of 500 MB. Each method loads and trains a
prompt in a process of its own, whose peak memory includes libraries, loading, forward, backward and optimizer.
Texts are random token ids of equal length, so that B x T tokens are computed without padding. `max_tokens` splits a
step into micro-batches as `--data.max_tokens` does; their gradients are added up.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import facts, write
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.config import QUANTIZATIONS
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands.parsing import call
from prompt_transfer.utils import results
from prompt_transfer.utils.memory import peak_memory

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


def step(
    backbone: FrozenBackbone, prompt: nn.Parameter, batch: dict[str, Tensor], words: Tensor, max_tokens: int | None
) -> Tensor:
    """Add the gradient of a step's mean loss to the prompt's and return the logits [B, U].

    Args:
        backbone: the backbone.
        prompt: [P, H].
        batch: `input_ids` and `attention_mask` [B, T].
        words: [U], the label words.
        max_tokens: most positions of a forward pass, prompts included; None: one pass.
    """
    size, length = batch["input_ids"].shape
    at_once = size if max_tokens is None else max(1, max_tokens // (length + len(prompt)))
    labels = torch.arange(size) % len(words)
    found = []
    for start in range(0, size, at_once):
        rows = slice(start, start + at_once)
        logits = backbone(prompt, {name: values[rows] for name, values in batch.items()}, words)
        (nn.functional.cross_entropy(logits, labels[rows], reduction="sum") / size).backward()
        found.append(logits.detach())
    return torch.cat(found)


def child(spec: dict[str, Any]) -> dict[str, Any]:
    """Load the backbone, take the steps and return their cost and the logits before the first step."""
    torch.set_num_threads(spec["threads"])
    started = time.perf_counter()
    backbone = FrozenBackbone(
        spec["backbone"], dtype="bfloat16", quantization=spec["quantization"],
        gradient_checkpointing=spec["gradient_checkpointing"],
    )  # fmt: skip
    row = {"load_seconds": time.perf_counter() - started, "load_peak_mib": round(peak_memory())}
    generator = torch.Generator().manual_seed(0)
    size = (spec["batch_size"], spec["length"])
    ids = torch.randint(300, min(len(backbone.tokenizer), 5000), size, generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    prompt = nn.Parameter(backbone.embedding_weight[300 : 300 + spec["prompt_length"]].float().clone())
    optimizer = torch.optim.AdamW([prompt], lr=0.01)
    words = torch.arange(400, 420)
    seconds: list[float] = []
    computed: list[float] = []
    for _ in range(spec["steps"]):
        started, processor = time.perf_counter(), time.process_time()
        logits = step(backbone, prompt, batch, words, spec["max_tokens"])
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        computed.append(time.process_time() - processor)
        if len(seconds) == 1:
            row["logits"] = logits.tolist()
    # The first step also allocates memory.
    row["step_seconds"] = statistics.median(seconds[1:] or seconds)
    row["step_cpu_seconds"] = statistics.median(computed[1:] or computed)
    row["peak_mib"] = round(peak_memory())
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
    max_tokens: int | None = None,
    folder: str | None = None,
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
        max_tokens: most positions of a forward pass, prompts included; None: one pass a step.
        folder: where `1.5b` is kept for other runs; None: a temporary folder.
    """
    report = facts(
        "training step of a quantized backbone", ("torch", "transformers", "torchao", "bitsandbytes"),
        backbone=backbone, batch_size=batch_size, length=length, prompt_length=prompt_length, steps=steps,
        threads=threads, gradient_checkpointing=gradient_checkpointing, max_tokens=max_tokens,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    reference: torch.Tensor | None = None
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(folder or scratch)
        if backbone == "1.5b" and not (saved / "config.json").is_file():
            subprocess.run([sys.executable, __file__, "save", str(saved)], check=True)
        for method in methods.split(","):
            if method not in ("none", *QUANTIZATIONS):
                raise SystemExit(f"unknown method {method}")
            names = ("batch_size", "length", "prompt_length", "steps", "threads", "max_tokens")
            spec = {
                **{name: report[name] for name in names},
                "backbone": str(saved) if backbone == "1.5b" else backbone,
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
    shown = ("method", "weights_mib", "load_peak_mib", "peak_mib", "step_seconds", "logits_difference")
    results.show(rows, columns=list(shown))


if __name__ == "__main__":
    if sys.argv[1:2] == ["save"]:
        save_llama(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["child"]:
        print(json.dumps(child(json.loads(sys.argv[2]))))
    else:
        call(run, "quantization", sys.argv[1:])
