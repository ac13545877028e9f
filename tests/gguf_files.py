"""GGUF files written by the tests, from the tiny Llama of `tiny_models.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Permute rows of a query or key projection into llama.cpp's order for rotary positions."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def tensors_of(model: Any) -> dict[str, np.ndarray]:
    """Return the weights of a LlamaForCausalLM under their GGUF names; the head only if it is not tied."""
    config = model.config
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    if not config.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        for here, there in names.items():
            weight = state[f"model.layers.{layer}.{here}.weight"]
            if there in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if there == "attn_q" else config.num_key_value_heads
                weight = _permuted(weight, heads)
            found[f"blk.{layer}.{there}.weight"] = weight
    return found


def write_gguf(
    path: Path, folder: Path, kinds: dict[str, str] | None = None, *, without: str = "", architecture: str = "llama",
    facts: dict[str, int] | None = None, rotary: bool = False,
) -> Path:  # fmt: skip
    """Write the tiny Llama of `folder` as a GGUF file.

    Args:
        path: the file.
        folder: the Hugging Face model.
        kinds: part of a tensor's name -> its quantisation; the first match wins, the default is F32. Norms are F32.
        without: the tensor to leave out.
        architecture: the name in the file.
        facts: additional numbers of the metadata.
        rotary: add the scaled frequencies that files of Llama 3.2 have.
    """
    import gguf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    config = model.config
    backend = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = sorted(backend["vocab"], key=backend["vocab"].get)
    end = tokens.index("<|endoftext|>")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index == end else 1 for index in range(len(tokens))])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in backend["merges"]])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(end)
    writer.add_add_bos_token(False)
    for key, number in (facts or {}).items():
        writer.add_uint32(key, number)
    tensors = tensors_of(model)
    if rotary:
        tensors["rope_freqs.weight"] = np.ones(config.head_dim // 2, dtype=np.float32)
    for name, weight in tensors.items():
        if name == without:
            continue
        kind = next((kind for part, kind in (kinds or {}).items() if part in name and weight.ndim > 1), "F32")
        quantisation = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(weight, quantisation), raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
