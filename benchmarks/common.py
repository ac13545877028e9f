"""Helpers of the benchmarks: facts about the machine, random models of known sizes, texts, timing, files."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer

from prompt_transfer.backbones import gguf
from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.loading import resolve
from prompt_transfer.data.sources import load_task
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.files import write_text_atomic

MODELS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "roberta": {
        "base": (
            "Roberta",
            {"vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
             "intermediate_size": 3072, "max_position_embeddings": 514, "type_vocab_size": 1},
        ),
        "tiny": (
            "Roberta",
            {"vocab_size": 20000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": 514, "type_vocab_size": 1},
        ),
    },
    "gpt2": {
        "base": ("GPT2", {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}),
        "tiny": ("GPT2", {"vocab_size": 20000, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 1024}),
    },
    "t5": {
        "base": (
            "T5",
            {"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12,
             "decoder_start_token_id": 0},
        ),
        "tiny": (
            "T5",
            {"vocab_size": 20000, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
             "decoder_start_token_id": 0},
        ),
    },
}  # fmt: skip
"""Sizes of RoBERTa-base (125 M parameters), GPT-2 (124 M) and T5-base v1.0 (223 M); `tiny` ones to try a script."""

# Dropout would only add time.
NO_DROPOUT = {
    "Roberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "GPT2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "T5": {"dropout_rate": 0.0},
}
CLASSES = {"Roberta": "RobertaForMaskedLM", "GPT2": "GPT2LMHeadModel", "T5": "T5ForConditionalGeneration"}


def save_random(kind: str, size: str, dtype: str, folder: Path) -> None:
    """Save a model with random weights and a built-in tokenizer; time and memory do not depend on weight values."""
    name, sizes = MODELS[kind][size]
    config = getattr(transformers, f"{name}Config")(**sizes, **NO_DROPOUT[name])
    torch.manual_seed(0)
    getattr(transformers, CLASSES[name])(config).to(getattr(torch, dtype)).save_pretrained(folder)
    own = "gpt2-nano" if kind == "gpt2" else "roberta-nano"
    AutoTokenizer.from_pretrained(builtin_backbones()[own]).save_pretrained(folder)


def model_folder(name: str) -> Path:
    """Return the folder of a backbone's weights and tokenizer as transformers reads it; GGUF files are unpacked.

    Args:
        name: a built-in or fetched backbone, a GGUF file or a folder.
    """
    source, _ = resolve(name)
    return Path(gguf.model_folder(Path(source), name) if gguf.is_gguf(source) else source)


def sentences(data_root: str | None) -> tuple[list[str], str]:
    """Return training sentences of SST-2 if the folder has it, else built-in ones, and the task's name."""
    real = data_root is not None and (Path(data_root) / "sst2").is_dir()
    name = "sst2" if real else "builtin_movies"
    data = load_task(get_task(name), "local" if real else "builtin", data_root if real else None)
    return list(data.split("train")["text_a"][:]), name


def machine() -> dict[str, Any]:
    """Return the facts about the machine that timings depend on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.+)", text)
    flags = set(text.split())
    return {
        "cpu": name[1] if name else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "bf16_in_hardware": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def weights(device: str) -> str:
    """Return the faster dtype for weights: bfloat16 if the machine computes in it, else float32."""
    return "bfloat16" if device == "cuda" or machine()["bf16_in_hardware"] else "float32"


def facts(
    what: str, libraries: tuple[str, ...] = ("torch", "transformers", "lightning"), **more: Any
) -> dict[str, Any]:
    """Return the head of a report; call it before the work to record the load of other processes."""
    return {"what": what, "machine": machine(), "versions": {name: version(name) for name in libraries}, **more}


def write(output: str, report: dict[str, Any]) -> None:
    """Write a report as a JSON file atomically."""
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(output, json.dumps(report, indent=2) + "\n")


def timed(function: Callable[[], Any]) -> float:
    """Return the seconds of one call, including the GPU's work."""
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each way after a warm-up round; ways alternate and thus share any other load."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(repeats + 1):
        for name, function in ways.items():
            seconds = timed(function)
            if index:
                taken[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
