"""Time to capture the neurons of many prompts without input text, on a model with random weights.

    python benchmarks/capture.py --size base --prompts 13 --threads 2

`base` has the sizes of RoBERTa-base (12 layers, H 768, F 3072); `tiny` is for trying the script. Time depends only on
sizes, so no download is needed; the vocabulary is small because no word is scored. Prints one row per way: all prompts
in one batch, and one prompt at a time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from transformers import RobertaConfig, RobertaForMaskedLM

from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.neurons.capture import capture_prompts
from prompt_transfer.utils import results

# H, layers, heads, F
SIZES = {"tiny": (64, 2, 4, 256), "base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}


def make(size: str, folder: Path) -> Path:
    """Save a RoBERTa of this size with random weights and roberta-nano's tokenizer."""
    from transformers import AutoTokenizer

    hidden, layers, heads, intermediate = SIZES[size]
    tokenizer = AutoTokenizer.from_pretrained(builtin_backbones()["roberta-nano"])
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=intermediate, max_position_embeddings=514, type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--prompts", type=int, default=13)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        backbone = FrozenBackbone(str(make(options.size, Path(name))), layout="mask_first")
        loading = time.perf_counter() - started
    generator = torch.Generator().manual_seed(0)
    shape = (options.prompts, options.length, backbone.hidden_size)
    prompts = list(torch.randn(shape, generator=generator))
    rows = []
    for way, groups in (("one batch", [prompts]), ("one by one", [[prompt] for prompt in prompts])):
        wall, processor = time.perf_counter(), time.process_time()
        for group in groups:
            capture_prompts(backbone, group)
        seconds, cpu = time.perf_counter() - wall, time.process_time() - processor
        rows.append({"way": way, "seconds": seconds, "processor": cpu})
    title = f"{' x '.join(map(str, shape))}, {options.size}, {options.threads} threads; created in {loading:.1f} s"
    results.show(rows, title=title)


if __name__ == "__main__":
    main()
