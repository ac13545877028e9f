"""Fingerprints of backbones and of their tokenizers' rules."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prompt_transfer.backbones import gguf
from prompt_transfer.backbones.tokenization import continues_differently

# Settings that affect a prompt's meaning, unlike dropout or version numbers.
_IDENTITY = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
)


def text_rules(tokenizer: PreTrainedTokenizerBase, kind: str = "", start: tuple[int, ...] = ()) -> str:
    """Return 16 hex digits over a fast tokenizer's rules besides its vocabulary: spaces, case, special tokens.

    Args:
        tokenizer: the backbone's tokenizer.
        kind: kind of backbone. For a causal one, different ids of continued texts are part of the rules.
        start: ids before each text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    rules = {name: rules.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "added_tokens")}
    # Added only if they apply, which keeps the fingerprints of all other backbones.
    if start:
        rules["start"] = list(start)
    if kind == "causal_lm" and continues_differently(tokenizer):
        rules["continued"] = True
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits that distinguish backbones, independent of name, folder and requested dtype.

    The hash covers the tokenizer's vocabulary and merges, the configuration's sizes and 64 seeded word embeddings in
    bf16. Copies of a checkpoint in float64, float32 and bf16 have the same fingerprint, for any dtype in config.json.
    Copies in float16 and quantized copies differ: rounding twice gives other numbers than rounding to bf16 once. A
    quantized GGUF file's digest is included, since such a file may keep exact embeddings and round the layers.

    Args:
        model: as loaded, in float32 or bf16.
        tokenizer: the backbone's tokenizer.
    """
    digest = hashlib.sha256()
    file = getattr(model.config, gguf.SOURCE, None)
    if file is not None and file["quantization"] not in gguf.EXACT:
        digest.update(file["sha256"].encode())
    facts = {key: getattr(model.config, key, None) for key in _IDENTITY}
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        merges = json.loads(backend.to_str())["model"].get("merges", [])
        digest.update(json.dumps(merges).encode())
    table = model.get_input_embeddings().weight.detach()
    rows = torch.randperm(table.shape[0], generator=torch.Generator().manual_seed(0))[:64]
    chosen = table[rows.to(table.device)].to(torch.bfloat16).view(torch.int16).cpu()
    digest.update(chosen.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
