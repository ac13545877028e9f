"""Seconds of training to reach PEFT's final accuracy, with the same backbone, objective and initial prompt.

    pip install peft
    python benchmarks/time_to_accuracy.py --output results/benchmarks/time_to_accuracy.json

Both train a prompt from the same vocabulary embeddings with the cross-entropy over the label words, for several
learning rates and the same seeds; evaluation time is excluded. (A loss over the whole vocabulary is unsuitable:
with it this project reaches only 0.516 on gpt2-nano after 800 steps, at 0.01 and at 0.1.) The target is the final
accuracy, a mean over seeds, of PEFT's best learning rate; a way reaches it at the first evaluation whose mean is at
least as high. PEFT pads random batches; this project (`shared` attention) uses its sampler's batches and may take more
steps, because they are cheaper.
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

from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands.parsing import call
from prompt_transfer.data.batches import LengthGroupedBatchSampler
from prompt_transfer.data.sources import load_task
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils import results
from prompt_transfer.utils.allocation import keep_memory

CUE = " It was"
MAX_LENGTH = 128


@dataclass(frozen=True)
class Way:
    """A trained prompt `[P, H]`, and a function from token ids to the label words' logits `[B, C]`."""

    prompt: nn.Parameter
    logits: Callable[[list[list[int]]], Tensor]


def with_peft(model: str, dtype: str, start: Tensor, device: str = "cpu") -> Way:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    base, tokenizer, words = load({"model": model, "dtype": dtype}, "MaskedLM")
    causal = not base.config.is_encoder_decoder
    task = TaskType.CAUSAL_LM if causal else TaskType.SEQ_2_SEQ_LM
    # By default PEFT also allocates prompt tokens for T5's decoder, which it never reads.
    config = PromptTuningConfig(task_type=task, num_virtual_tokens=len(start), num_transformer_submodules=1)
    tuned = get_peft_model(base, config).eval().to(device)
    prompt: nn.Parameter = tuned.prompt_encoder["default"].embedding.weight
    prompt.data.copy_(start)
    wanted, pad = torch.tensor(words, device=device), tokenizer.pad_token_id

    def logits(rows: list[list[int]]) -> Tensor:
        ids, mask = (part.to(device) for part in padded(rows, pad))
        if not causal:
            first = torch.full((len(rows), 1), base.config.decoder_start_token_id, device=device)
            return tuned(input_ids=ids, attention_mask=mask, decoder_input_ids=first).logits[:, 0, wanted]
        whole = tuned(input_ids=ids, attention_mask=mask).logits
        # PEFT's logits include the prompt's positions.
        last = mask.sum(dim=1) - 1 + whole.shape[1] - ids.shape[1]
        return whole[torch.arange(len(rows), device=device), last][:, wanted]

    return Way(prompt, logits)


def with_ours(model: str, dtype: str, start: Tensor, attention: str = "shared", device: str = "cpu") -> Way:
    backbone = FrozenBackbone(model, attention=attention, dtype=dtype).to(device)
    words = [backbone.tokenizer.encode(word, add_special_tokens=False)[-1] for word in WORDS]
    wanted = torch.tensor(words, device=device)
    prompt, pad = nn.Parameter(start.to(device, copy=True)), backbone.encoder(1).pad_token_id

    def logits(rows: list[list[int]]) -> Tensor:
        ids, mask = (part.to(device) for part in padded(rows, pad))
        return backbone(prompt, {"input_ids": ids, "attention_mask": mask}, wanted)

    return Way(prompt, logits)


def random_batches(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield batches of example indices, epoch after epoch."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(count)
        yield from (order[start : start + size] for start in range(0, count - size + 1, size))


@dataclass(frozen=True)
class Curve:
    """Evaluations of a run, or means over seeds: steps, training seconds and accuracies, each `[E]`."""

    steps: np.ndarray
    seconds: np.ndarray
    accuracies: np.ndarray

    def first(self, mark: float) -> int | None:
        """Return the first evaluation at `mark` or above."""
        # Tolerate rounding in means over seeds.
        found = np.flatnonzero(self.accuracies >= mark - 1e-9)
        return int(found[0]) if len(found) else None


def train(way: Way, learning_rate: float, batches: Iterator[np.ndarray], data: Any, steps: int, every: int) -> Curve:
    """Train for `steps` with a linear schedule, evaluating every `every` steps."""
    (rows, labels), (held_out, answers) = data
    optimizer = torch.optim.AdamW([way.prompt], lr=learning_rate, weight_decay=0.0)
    seconds = 0.0
    evaluations = []

    def step() -> None:
        chosen = next(batches)
        wanted = labels[chosen].to(way.prompt.device)
        nn.functional.cross_entropy(way.logits([rows[row] for row in chosen]), wanted).backward()
        optimizer.step()
        optimizer.zero_grad()

    for done in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - (done - 1) / steps)
        seconds += timed(step)
        if done % every == 0 or done == steps:
            with torch.no_grad():
                found = [way.logits(held_out[start : start + 128]) for start in range(0, len(held_out), 128)]
            accuracy = (torch.cat(found).argmax(dim=1).cpu() == answers).double().mean().item()
            evaluations.append((done, seconds, accuracy))
    return Curve(*map(np.array, zip(*evaluations, strict=True)))


def row(name: str, way: str, learning_rate: float, curves: list[Curve]) -> tuple[dict[str, Any], Curve]:
    """Return the report's row for the runs of one way and learning rate, and their mean."""
    mean = Curve(*(np.mean([getattr(curve, part) for curve in curves], axis=0) for part in Curve.__annotations__))
    said = {
        "backbone": name, "way": way, "learning_rate": learning_rate, "accuracy": float(mean.accuracies[-1]),
        "accuracy_of_seeds": [float(curve.accuracies[-1]) for curve in curves], "seconds": float(mean.seconds[-1]),
        "steps": int(mean.steps[-1]),
        "curve": [[int(step), round(float(accuracy), 4)]
                  for step, accuracy in zip(mean.steps, mean.accuracies, strict=True)],
    }  # fmt: skip
    return said, mean


def judge(found: list[tuple[dict[str, Any], Curve]], mark: float | None) -> float:
    """Add to the rows of one way when they reached the target accuracy and which is best; return the target.

    Without a target, the best row has the highest final accuracy, which becomes the target; otherwise it is the first
    to reach the target.
    """
    best = max(found, key=lambda one: one[0]["accuracy"])
    sets = mark is None
    mark = best[0]["accuracy"] if mark is None else mark
    for said, curve in found:
        place = curve.first(mark)
        said["mark_steps"] = None if place is None else int(curve.steps[place])
        said["mark_seconds"] = None if place is None else float(curve.seconds[place])
    reached = [one for one in found if one[0]["mark_seconds"] is not None]
    if reached and not sets:
        best = min(reached, key=lambda one: one[0]["mark_seconds"])
    best[0]["best"] = True
    return mark


def run(
    output: str,
    models: str | None = None,
    data_root: str | None = "../shared/data",
    task: str = "sst2",
    learning_rates: str = "0.003,0.01,0.03,0.1,0.3",
    seeds: str = "0,1,2",
    steps: int = 400,
    own_steps: int = 800,
    every: int = 25,
    batch_size: int = 32,
    prompt_length: int = 20,
    dtype: str = "float32",
    threads: int = 2,
    device: str = "cpu",
) -> None:
    """Measure and write a JSON file.

    Args:
        output: the file.
        models: generative backbones; default gpt2-nano and t5-nano if they are built in.
        data_root: folder with the task; null for a built-in one.
        task: name of a task with two classes.
        learning_rates: learning rates to try, with AdamW and a linear schedule.
        seeds: seeds of the initial vocabulary embeddings and of the data order.
        steps: steps of each run of PEFT.
        own_steps: steps of each run of this project.
        every: steps between evaluations.
        batch_size: B.
        prompt_length: P.
        dtype: dtype of the weights.
        threads: number of torch threads.
        device: cpu or cuda.
    """
    torch.set_num_threads(threads)
    report = facts(
        f"seconds of training until PEFT's final accuracy on {task}", ("torch", "transformers", "peft"), steps=steps,
        own_steps=own_steps, every=every, batch_size=batch_size, prompt_length=prompt_length, dtype=dtype,
        threads=threads, device=device, seeds=seeds,
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
        lengths = np.array([len(tokens) for tokens in data[0][0]])
        mark: float | None = None
        for make, label, budget in ((with_peft, "peft", steps), (with_ours, "shared", own_steps)):
            found = []
            for rate in map(float, learning_rates.split(",")):
                curves = []
                for seed in map(int, seeds.split(",")):
                    chosen = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:prompt_length]
                    sampler = LengthGroupedBatchSampler(lengths, batch_size, seed)
                    batches = (
                        random_batches(len(lengths), batch_size, seed)
                        if label == "peft"
                        else (sampler.global_batch(index) for index in range(budget))
                    )
                    way = make(model, dtype, table[chosen].clone(), device=device)
                    curves.append(train(way, rate, batches, data, budget, every))
                found.append(row(name, label, rate, curves))
            mark = judge(found, mark)
            rows += [said for said, _ in found]
            write(output, {**report, "rows": rows})
    results.show([{key: value for key, value in said.items() if not isinstance(value, list)} for said in rows])


if __name__ == "__main__":
    # As in `fit`; it benefits both ways.
    keep_memory()
    call(run, "time_to_accuracy", sys.argv[1:])
