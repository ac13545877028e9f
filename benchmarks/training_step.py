"""One way to take a training step, in a process of its own: seconds a step and peak memory, as one line of JSON.

    python benchmarks/training_step.py --model FOLDER --texts FILE --way full|shared|peft

`full` and `shared` are this project's attention modes; `peft` is PEFT's prompt tuning with its loss over the whole
vocabulary. All ways see the same texts, padded to the batch, and a prompt trained with AdamW.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import torch

from prompt_transfer.commands.parsing import call

WORDS = (" terrible", " great")


def ours(model: str, way: str, dtype: str, prompt_length: int, rows: list[str], labels: list[int]) -> Any:
    """A function that takes one step with this project, and the number of text positions of its batch."""
    from prompt_transfer.backbones.frozen import FrozenBackbone

    backbone = FrozenBackbone(model, attention=way, dtype=dtype)
    encoder = backbone.encoder(prompt_length)
    ids = encoder.encode(rows, None, 128)
    width = max(map(len, ids))
    batch = {
        "input_ids": torch.tensor([row + [encoder.pad_token_id] * (width - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
    }
    words = torch.tensor([backbone.tokenizer.encode(word, add_special_tokens=False)[-1] for word in WORDS])
    prompt = torch.nn.Parameter(backbone.embedding_weight[:prompt_length].float().clone())
    optimizer = torch.optim.AdamW([prompt], lr=0.01)
    targets = torch.tensor(labels)

    def step() -> None:
        torch.nn.functional.cross_entropy(backbone(prompt, batch, words), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, width


def peft(model: str, dtype: str, prompt_length: int, rows: list[str], labels: list[int]) -> Any:
    """The same with PEFT: labels are words to be written, the loss is over the whole vocabulary."""
    from peft import PromptTuningConfig, TaskType, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    seq2seq = AutoConfig.from_pretrained(model).is_encoder_decoder
    auto: Any = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    base = auto.from_pretrained(model, dtype=getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    kind = TaskType.SEQ_2_SEQ_LM if seq2seq else TaskType.CAUSAL_LM
    tuned = get_peft_model(base, PromptTuningConfig(task_type=kind, num_virtual_tokens=prompt_length))
    words = [tokenizer.encode(WORDS[label], add_special_tokens=False)[-1] for label in labels]
    if seq2seq:
        batch = dict(tokenizer(rows, padding=True, truncation=True, max_length=128, return_tensors="pt"))
        batch["labels"] = torch.tensor([[word, tokenizer.eos_token_id] for word in words])
    else:
        ids = [[*tokenizer.encode(row)[:127], word] for row, word in zip(rows, words, strict=True)]
        width = max(map(len, ids))
        batch = {
            "input_ids": torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
            "labels": torch.tensor([[-100] * (len(row) - 1) + row[-1:] + [-100] * (width - len(row)) for row in ids]),
        }
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    tuned.train()

    def step() -> None:
        tuned(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, batch["input_ids"].shape[1]


def measure(
    model: str,
    texts: str,
    way: str,
    dtype: str = "bfloat16",
    prompt_length: int = 100,
    batch_size: int = 32,
    steps: int = 5,
    threads: int = 2,
) -> None:
    """Take steps and print what they cost.

    Args:
        model: folder of the backbone.
        texts: text file, one example a line; the first `batch_size` are the batch.
        way: full, shared or peft.
        dtype: of the weights.
        prompt_length: P.
        batch_size: B.
        steps: measured after one that is not.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rows = Path(texts).read_text().splitlines()[:batch_size]
    labels = [index % 2 for index in range(len(rows))]
    if way == "peft":
        step, width = peft(model, dtype, prompt_length, rows, labels)
    else:
        step, width = ours(model, way, dtype, prompt_length, rows, labels)
    seconds = []
    for index in range(steps + 1):
        started = time.perf_counter()
        step()
        if index:
            seconds.append(time.perf_counter() - started)
    facts = {
        "way": way,
        "dtype": dtype,
        "seconds": sorted(seconds)[len(seconds) // 2],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "text_positions": width,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    import sys

    call(measure, "training_step", sys.argv[1:])
