"""Full fine-tuning of a built-in backbone on a generation task, as an upper bound for prompts.

    python benchmarks/fine_tuning.py --task squad --backbone gpt2-nano --root ../shared/data

It uses the same examples and decoding as prompts: a task that the whole model cannot learn is unsuitable for its
prompts. Plain `transformers`, greedy decoding, scores of the last step, no prompt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands.parsing import call
from prompt_transfer.data.batches import IGNORED
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.tasks.metrics import bootstrap_mean_interval, example_scores
from prompt_transfer.utils import results


def loss_of(model: PreTrainedModel, batch: dict[str, Tensor], pad: int) -> Tensor:
    """Return the mean cross-entropy of the target tokens."""
    if model.config.is_encoder_decoder:
        return model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["target_ids"]).loss
    # The target follows the text: [B, T + S], padded at the end.
    rows, labels = [], []
    for text, mask, target in zip(batch["input_ids"], batch["attention_mask"], batch["target_ids"], strict=True):
        text, target = text[mask.bool()], target[target != IGNORED]
        rows.append(torch.cat([text, target]))
        labels.append(torch.cat([torch.full_like(text, IGNORED), target]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    wanted = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    # No mask needed: the scored positions of a causal model precede the padding.
    return model(ids, labels=wanted).loss


@torch.no_grad()
def written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TaskDataModule, most: int
) -> tuple[list[str], list[list[str]]]:
    """Return greedy answers to the test examples, and the references."""
    model.eval()
    texts, references = list[str](), list[list[str]]()
    for batch in data.test_dataloader():
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            row = ids[mask.bool()][None]
            answer = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=most, do_sample=False)
            fresh = answer[0] if model.config.is_encoder_decoder else answer[0, row.shape[1] :]
            texts.append(tokenizer.decode(fresh, skip_special_tokens=True).strip())
        references += data.targets("test", batch["ids"])
    return texts, references


def run(
    task: str = "squad",
    backbone: str = "gpt2-nano",
    root: str = "../shared/data",
    output: str = "results/backbones/fine_tuning.csv",
    steps: int = 1500,
    batch_size: int = 8,
    learning_rate: float = 5e-4,
    max_length: int = 192,
    limit_eval: int = 300,
    seed: int = 0,
) -> None:
    """Train, generate and score; replaces the table's rows for this task and backbone.

    Args:
        task: a generation task.
        backbone: a built-in backbone, causal or sequence-to-sequence.
        root: folder with the task in local form.
        output: the table.
        steps: optimizer steps.
        batch_size: examples per step.
        learning_rate: initial learning rate of AdamW, decayed linearly to 0.
        max_length: maximum tokens per text.
        limit_eval: number of test examples.
        seed: seed of the data order.
    """
    torch.manual_seed(seed)
    frozen = FrozenBackbone(backbone)
    # Truncate texts as for a prompt of 20 tokens.
    encoder = frozen.encoder(20)
    data = TaskDataModule(
        task, "local", root=root, batch_size=batch_size, max_length=max_length, limit_eval=limit_eval,
        eval_batch_size=50,
    ).connect(encoder)  # fmt: skip
    data.prepare_data()
    data.setup()
    (about,) = data.tasks
    kind = AutoModelForSeq2SeqLM if frozen.family.kind == "seq2seq_lm" else AutoModelForCausalLM
    model: PreTrainedModel = kind.from_pretrained(builtin_backbones()[backbone]).float()
    pad = encoder.pad_token_id
    model.generation_config.pad_token_id = pad
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    model.train()
    step, total = 0, 0.0
    while step < steps:
        for batch in data.train_dataloader():
            (whole,) = batch["micro_batches"]
            loss = loss_of(model, whole, pad)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step, total = step + 1, total + float(loss.detach())
            if step % 100 == 0:
                print(f"step {step}: mean loss {total / 100:.3f}", flush=True)
                total = 0.0
            if step == steps:
                break
    texts, references = written(model, frozen.tokenizer, data, about.max_target_length)
    for text, right in list(zip(texts, references, strict=True))[:5]:
        print(f"{text!r} for {right[0]!r}")
    own = {"task": task, "backbone": backbone, "split": "test", "what": "fine-tuned"}
    setting = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    rows = []
    for name, scores in example_scores(about, texts, references).items():
        low, high = bootstrap_mean_interval(scores, seed)
        found = {"metric": name, "value": scores.mean(), "low": low, "high": high, "n": len(scores)}
        rows.append({**own, **found, **setting})
    frame, file = pd.DataFrame(rows), Path(output)
    if file.is_file():
        before = pd.read_csv(file)
        others = before[(before["task"] != task) | (before["backbone"] != backbone)]
        frame = pd.concat([others, frame], ignore_index=True)
    results.write(frame, file)
    results.show([{str(key): value for key, value in row.items()} for row in frame.to_dict("records")])


if __name__ == "__main__":
    call(run, "fine_tuning", sys.argv[1:])
