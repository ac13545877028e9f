"""Tiny Llamas with tokenizers of real models: start token, SentencePiece BPE, tokens without an embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import WORDS, byte_level_tokenizer

START = 1


def sentencepiece_tokenizer(manner: str) -> Any:
    """Build a BPE tokenizer over WORDS with byte fallback.

    Ids: <unk> 0, <s> 1, </s> 2, bytes 3 to 258, then ▁, letters and words.

    Args:
        manner: `prepend` as Llama 2's normalizer (a blank before every text, even one that begins with a blank), or
            `metaspace` (a blank before every text that does not begin with one).
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [chr(code) for code in range(33, 127)]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        spaced = f"▁{word}"
        for end in range(1, len(spaced)):
            merges[spaced[:end], spaced[end]] = None
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if manner == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    ])  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", START)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )  # fmt: skip


def byte_level_with_start(last: bool = False) -> Any:
    """Build a GPT-2 tokenizer with <s> before every text, as in Llama 3; `last` also appends the end token."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = byte_level_tokenizer("gpt2").backend_tokenizer
    backend.add_special_tokens(["<s>"])
    ids = [(name, backend.token_to_id(name)) for name in ("<s>", "<|endoftext|>")]
    backend.post_processor = processors.TemplateProcessing(
        "<s> $A <|endoftext|>" if last else "<s> $A", special_tokens=ids
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>")


def with_pad_beyond(tokenizer: Any) -> tuple[Any, int]:
    """Add a [PAD] beyond the embeddings of a model with the old vocabulary size; return tokenizer and old size."""
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer, size


def save_llama(tokenizer: Any, folder: Path, rows: int | None = None) -> Path:
    """Save a random Llama (2 layers, H 32, F 64, 64 positions) with `rows` embeddings, by default one per token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=rows or len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=64, initializer_range=0.2, max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
