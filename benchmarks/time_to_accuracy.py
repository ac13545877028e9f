"""Seconds of training until PEFT's final accuracy is reached, on the same backbone with the same objective and start.

    pip install peft
    python benchmarks/time_to_accuracy.py --output results/benchmarks/time_to_accuracy.json

Both train a prompt that starts from the same rows of the vocabulary to prefer the right label word to the other, with
each of some learning rates; evaluations do not count. (With a loss over the whole vocabulary this project's way is at
0.516 on gpt2-nano after 800 steps, at 0.01 as at 0.1: there is no accuracy to race for.) Of PEFT's runs the one with
the best final accuracy sets the mark; of this project's (`shared` attention) the first to reach it counts. PEFT pads
random batches, this project takes those of its sampler.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import facts, timed, write
from torch import Tensor, nn
from transformers import AutoConfig
from ways import WORDS, encoded, load, padded

from prompt_transfer import results
from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands.parsing import call
from prompt_transfer.data.batches import LengthGroupedBatchSampler
from prompt_transfer.data.sources import load_task
from prompt_transfer.tasks import get_task

CUE = " It was"
MAX_LENGTH = 128


@dataclass(frozen=True)
class Way:
    """A prompt [P, H] that is trained, and the logits of the label words [B, C] behind rows of token ids."""

    prompt: nn.Parameter
    logits: Callable[[list[list[int]]], Tensor]


def with_peft(model: str, dtype: str, start: Tensor) -> Way:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    base, tokenizer, words = load({"model": model, "dtype": dtype}, "MaskedLM")
    causal = not base.config.is_encoder_decoder
    task = TaskType.CAUSAL_LM if causal else TaskType.SEQ_2_SEQ_LM
    # PEFT keeps rows for a T5's decoder too, which it never reads: one half is enough.
    config = PromptTuningConfig(task_type=task, num_virtual_tokens=len(start), num_transformer_submodules=1)
    tuned = get_peft_model(base, config).eval()
    prompt: nn.Parameter = tuned.prompt_encoder["default"].embedding.weight
    prompt.data.copy_(start)
    wanted, pad = torch.tensor(words), tokenizer.pad_token_id

    def logits(rows: list[list[int]]) -> Tensor:
        ids, mask = padded(rows, pad)
        if not causal:
            first = torch.full((len(rows), 1), base.config.decoder_start_token_id)
            return tuned(input_ids=ids, attention_mask=mask, decoder_input_ids=first).logits[:, 0, wanted]
        whole = tuned(input_ids=ids, attention_mask=mask).logits
        # PEFT's logits have the prompt in front.
        return whole[torch.arange(len(rows)), mask.sum(dim=1) - 1 + whole.shape[1] - ids.shape[1]][:, wanted]

    return Way(prompt, logits)


def with_ours(model: str, dtype: str, start: Tensor, attention: str = "shared") -> Way:
    backbone = FrozenBackbone(model, attention=attention, dtype=dtype)
    wanted = torch.tensor([backbone.tokenizer.encode(word, add_special_tokens=False)[-1] for word in WORDS])
    prompt, pad = nn.Parameter(start.clone()), backbone.encoder(1).pad_token_id

    def logits(rows: list[list[int]]) -> Tensor:
        ids, mask = padded(rows, pad)
        return backbone(prompt, {"input_ids": ids, "attention_mask": mask}, wanted)

    return Way(prompt, logits)


def random_batches(count: int, size: int) -> Iterator[np.ndarray]:
    """Row numbers, epoch after epoch."""
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(count)
        yield from (order[start : start + size] for start in range(0, count - size + 1, size))


def train(
    way: Way, learning_rate: float, batches: Iterator[np.ndarray], data: Any, steps: int, every: int, mark: float | None
) -> tuple[float, float, int]:
    """Accuracy of the last evaluation, seconds and steps of training before it; ends early where `mark` is reached."""
    (rows, labels), (held_out, answers) = data
    optimizer = torch.optim.AdamW([way.prompt], lr=learning_rate, weight_decay=0.0)
    seconds, accuracy = 0.0, 0.0

    def step() -> None:
        chosen = next(batches)
        nn.functional.cross_entropy(way.logits([rows[row] for row in chosen]), labels[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()

    for done in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - (done - 1) / steps)
        seconds += timed(step)
        if done % every == 0 or done == steps:
            with torch.no_grad():
                found = [way.logits(held_out[start : start + 128]) for start in range(0, len(held_out), 128)]
            accuracy = (torch.cat(found).argmax(dim=1) == answers).float().mean().item()
            if mark is not None and accuracy >= mark:
                return accuracy, seconds, done
    return accuracy, seconds, steps


def run(
    output: str,
    models: str | None = None,
    data_root: str | None = "../shared/data",
    task: str = "sst2",
    learning_rates: str = "0.003,0.01,0.03,0.1,0.3",
    steps: int = 500,
    every: int = 25,
    batch_size: int = 32,
    prompt_length: int = 20,
    dtype: str = "float32",
    threads: int = 2,
) -> None:
    """Measure and write a JSON file.

    Args:
        output: the file.
        models: backbones that write; default gpt2-nano and t5-nano as far as they are built in.
        data_root: folder with the task; null for a built-in one.
        task: name of a task of two classes.
        learning_rates: of both, with AdamW and a linear schedule.
        steps: of each run.
        every: steps between evaluations.
        batch_size: B.
        prompt_length: P.
        dtype: of the weights.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    report = facts(
        f"seconds of training until PEFT's final accuracy on {task}", ("torch", "transformers", "peft"), steps=steps,
        every=every, batch_size=batch_size, prompt_length=prompt_length, dtype=dtype, threads=threads,
    )  # fmt: skip
    source = load_task(get_task(task), "local" if data_root else "builtin", data_root)
    parts = [source.split(split) for split in ("train", "validation")]
    names = models.split(",") if models else [name for name in ("gpt2-nano", "t5-nano") if name in builtin_backbones()]
    rows: list[dict[str, Any]] = []
    for name in names:
        model = str(builtin_backbones().get(name, name))
        _, tokenizer, _ = load({"model": model, "dtype": dtype}, "MaskedLM")
        cue = "" if AutoConfig.from_pretrained(model).is_encoder_decoder else CUE
        data = [
            (encoded({}, tokenizer, [f"{text}{cue}" for text in part["text_a"]]), torch.tensor(part["label"][:]))
            for part in parts
        ]
        table = FrozenBackbone(model).embedding_weight
        start = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:prompt_length]].clone()
        count = len(data[0][0])
        sampler = LengthGroupedBatchSampler(np.array([len(row) for row in data[0][0]]), batch_size)
        mark: float | None = None
        for make, label in ((with_peft, "peft"), (with_ours, "shared")):
            found = []
            for rate in map(float, learning_rates.split(",")):
                grouped = (sampler.global_batch(index) for index in range(steps))
                batches = grouped if label == "shared" else random_batches(count, batch_size)
                accuracy, seconds, done = train(make(model, dtype, start), rate, batches, data, steps, every, mark)
                found.append(
                    {"backbone": name, "way": label, "learning_rate": rate, "accuracy": accuracy, "seconds": seconds,
                     "steps": done}
                )  # fmt: skip
            reached = [row for row in found if mark is None or row["accuracy"] >= mark]
            best = (
                max(found, key=lambda row: row["accuracy"])
                if mark is None or not reached
                else min(reached, key=lambda row: row["seconds"])
            )
            best["best"] = True
            mark = best["accuracy"] if mark is None else mark
            rows += found
            write(output, {**report, "rows": rows})
    results.show(rows)


if __name__ == "__main__":
    call(run, "time_to_accuracy", sys.argv[1:])
