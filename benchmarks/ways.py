"""Worker process for one way of training, started by `training_step.py`, which reads its times.

`full` and `shared` are this project's attention modes, with the memory settings of `fit`. `peft` is PEFT's prompt
tuning: classification for an encoder, otherwise generation of label words with the loss over the whole vocabulary.
`plain` is a loop over the Hugging Face model: concatenated embeddings of prompt and text, and the full head. All train
a prompt with AdamW.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prompt_transfer.utils.allocation import keep_memory

WORDS = (" terrible", " great")
MAX_LENGTH = 128
# A function that takes one step on some texts and returns the text positions of its batch.
Step = Callable[[list[str]], int]


def padded(rows: list[list[int]], pad: int, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both `[B, T]`."""
    longest = width or max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def labels_of(texts: list[str]) -> Tensor:
    """Return arbitrary labels: time does not depend on them."""
    return torch.arange(len(texts)) % len(WORDS)


def stepper(loss: Callable[[list[str]], tuple[Tensor, int]], parameters: list[nn.Parameter]) -> Step:
    optimizer = torch.optim.AdamW(parameters, lr=0.01)

    def step(texts: list[str]) -> int:
        value, width = loss(texts)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return width

    return step


def ours(spec: dict[str, Any], device: str) -> Step:
    from prompt_transfer.backbones.frozen import FrozenBackbone

    backbone = FrozenBackbone(
        spec["model"], attention=spec["way"], dtype=spec["dtype"], compile=spec.get("compile", False)
    ).to(device)
    encoder = backbone.encoder(spec["prompt_length"])
    words = [backbone.tokenizer.encode(word, add_special_tokens=False)[-1] for word in WORDS]
    token_ids = torch.tensor(words, device=device)
    prompt = nn.Parameter(backbone.embedding_weight[: spec["prompt_length"]].float().clone())

    def loss(texts: list[str]) -> tuple[Tensor, int]:
        ids, mask = padded(encoder.encode(texts, None, MAX_LENGTH), encoder.pad_token_id)
        batch = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        logits = backbone(prompt, batch, token_ids)
        return nn.functional.cross_entropy(logits, labels_of(texts).to(device)), ids.shape[1]

    return stepper(loss, [prompt])


def kind_of(config: Any) -> str:
    """Return the kind of backbone of a configuration: `masked_lm`, `causal_lm` or `seq2seq_lm`."""
    from prompt_transfer.backbones.families import FAMILIES

    return FAMILIES[config.model_type].kind


def load(spec: dict[str, Any], head: str) -> tuple[Any, Any, Any]:
    """Load the model, tokenizer and label-word ids; `head` selects an encoder's head."""
    import transformers

    kind = kind_of(transformers.AutoConfig.from_pretrained(spec["model"]))
    name = {"masked_lm": head, "causal_lm": "CausalLM", "seq2seq_lm": "Seq2SeqLM"}[kind]
    auto = getattr(transformers, f"AutoModelFor{name}")
    model = auto.from_pretrained(spec["model"], dtype=getattr(torch, spec["dtype"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer, [tokenizer.encode(word, add_special_tokens=False)[-1] for word in WORDS]


def encoded(spec: dict[str, Any], tokenizer: Any, texts: list[str], room: int = 0) -> list[list[int]]:
    return tokenizer(texts, truncation=True, max_length=MAX_LENGTH - room)["input_ids"]


def peft(spec: dict[str, Any], device: str) -> Step:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    model, tokenizer, words = load(spec, "SequenceClassification")
    kind = kind_of(model.config)
    task = {
        "masked_lm": TaskType.SEQ_CLS, "causal_lm": TaskType.CAUSAL_LM, "seq2seq_lm": TaskType.SEQ_2_SEQ_LM,
    }[kind]  # fmt: skip
    tuned = get_peft_model(model, PromptTuningConfig(task_type=task, num_virtual_tokens=spec["prompt_length"]))
    tuned.to(device).train()
    pad = tokenizer.pad_token_id

    def loss(texts: list[str]) -> tuple[Tensor, int]:
        labels = labels_of(texts)
        wanted = torch.tensor(words)[labels]
        rows = encoded(spec, tokenizer, texts, room=int(kind == "causal_lm"))
        if kind == "causal_lm":
            rows = [[*row, int(word)] for row, word in zip(rows, wanted, strict=True)]
        ids, mask = padded(rows, pad)
        if kind == "seq2seq_lm":
            labels = torch.stack([wanted, torch.full_like(wanted, tokenizer.eos_token_id)], dim=1)
        elif kind == "causal_lm":
            last = mask.sum(dim=1, keepdim=True) - 1
            labels = torch.full_like(ids, -100).scatter(1, last, ids.gather(1, last))
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        with torch.autocast(device, torch.bfloat16) if spec.get("autocast") else nullcontext():
            return tuned(**{name: value.to(device) for name, value in batch.items()}).loss, ids.shape[1]

    return stepper(loss, [p for p in tuned.parameters() if p.requires_grad])


def plain(spec: dict[str, Any], device: str) -> Step:
    model, tokenizer, words = load(spec, "MaskedLM")
    model.requires_grad_(False).eval().to(device)
    kind, embed, length = kind_of(model.config), model.get_input_embeddings(), spec["prompt_length"]
    prompt = nn.Parameter(embed.weight[:length].detach().float().clone())
    pad = tokenizer.pad_token_id

    def loss(texts: list[str]) -> tuple[Tensor, int]:
        ids, mask = (part.to(device) for part in padded(encoded(spec, tokenizer, texts), pad, spec.get("width")))
        wanted = torch.tensor(words)[labels_of(texts)].to(device)
        size = len(texts)
        parts = [prompt.to(embed.weight.dtype).expand(size, -1, -1), embed(ids)]
        if kind == "masked_lm":
            # Release 1.0: answer slot, prompt, text.
            parts.insert(0, embed(torch.full((size, 1), tokenizer.mask_token_id, device=device)))
        x = torch.cat(parts, dim=1)
        seen = torch.cat([mask.new_ones(size, x.shape[1] - mask.shape[1]), mask], dim=1)
        if kind == "seq2seq_lm":
            labels = torch.stack([wanted, torch.full_like(wanted, tokenizer.eos_token_id)], dim=1)
            return model(inputs_embeds=x, attention_mask=seen, labels=labels).loss, ids.shape[1]
        logits = model(inputs_embeds=x, attention_mask=seen).logits
        places = torch.zeros_like(wanted) if kind == "masked_lm" else seen.sum(dim=1) - 1
        return nn.functional.cross_entropy(logits[torch.arange(size), places].float(), wanted), ids.shape[1]

    return stepper(loss, [prompt])


def serve(spec: dict[str, Any], replies: Any) -> None:
    """Take a step for every input line of texts and reply with its cost."""
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    device = spec["device"]
    make = {"peft": peft, "plain": plain}.get(spec["way"], ours)
    step = make(spec, device)
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        texts = json.loads(line)
        started = time.perf_counter()
        width = step(texts)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        reply = {"seconds": seconds, "text_positions": width, "peak_mib": peak}
        if device == "cuda":
            reply["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    if spec["way"] in ("full", "shared"):
        keep_memory()
    # Keep output of libraries out of the replies.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(spec, channel)
