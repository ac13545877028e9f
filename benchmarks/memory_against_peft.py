"""Peak memory of a classification step of a T5-base-sized model, this project's ways beside PEFT's prompt tuning.

    pip install peft
    python benchmarks/memory_against_peft.py --output results/benchmarks/memory_t5_base.json

The weights are random (memory does not depend on them), the texts real where `--data_root` holds SST-2, else built in.
Each way runs in a process of its own, and its peak holds everything: libraries, loading, forward, backward, optimizer.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from prompt_transfer import results
from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.commands.parsing import call
from prompt_transfer.data.sources import load_task
from prompt_transfer.files import write_text_atomic
from prompt_transfer.tasks import get_task

WAYS = ("peft", "full", "shared")


def save_t5_base(folder: Path, dtype: torch.dtype) -> None:
    """A T5-base (v1.0 sizes, 223 M parameters) of random weights; the tokenizer is a built-in one."""
    config = T5Config(
        vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(builtin_backbones()["roberta-nano"]).save_pretrained(folder)


def run(
    output: str, data_root: str = "../shared/data", batch_size: int = 32, prompt_length: int = 100, threads: int = 2
) -> None:
    """Measure and write a JSON file.

    Args:
        output: the file.
        data_root: folder with sst2/; built-in sentences where there is none.
        batch_size: B.
        prompt_length: P.
        threads: of torch.
    """
    real = (Path(data_root) / "sst2").is_dir()
    task = get_task("sst2" if real else "builtin_movies")
    data = load_task(task, "local" if real else "builtin", data_root if real else None)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        texts = Path(scratch) / "texts.txt"
        # Evenly spaced rows: lengths as they come.
        sentences = data.split("validation")["text_a"][:]
        texts.write_text("\n".join(sentences[:: len(sentences) // batch_size][:batch_size]))
        for dtype in ("float32", "bfloat16"):
            folder = Path(scratch) / dtype
            save_t5_base(folder, getattr(torch, dtype))
            for way in WAYS:
                options = [
                    "--model", str(folder), "--texts", str(texts), "--way", way, "--dtype", dtype,
                    "--prompt_length", str(prompt_length), "--batch_size", str(batch_size), "--threads", str(threads),
                    "--steps", "3",
                ]  # fmt: skip
                script = str(Path(__file__).with_name("training_step.py"))
                done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
    for row in rows:
        peft = next(other for other in rows if other["way"] == "peft" and other["dtype"] == row["dtype"])
        row["peak_over_peft"] = row["peak_mib"] / peft["peak_mib"]
        row["speed_over_peft"] = peft["seconds"] / row["seconds"]
    facts = {
        "what": "training step, T5-base sizes, random weights, classification",
        "texts": task.name,
        "batch_size": batch_size,
        "prompt_length": prompt_length,
        "threads": threads,
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "rows": rows,
    }
    write_text_atomic(output, json.dumps(facts, indent=2) + "\n")
    results.show(rows)


if __name__ == "__main__":
    call(run, "memory_against_peft", sys.argv[1:])
