"""Supported families of backbones: one row with all differences between architectures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prompt_transfer.backbones.family import Family


def _bert_like(name: str, body: str, head: tuple[str, ...], **more: Any) -> Family:
    """Return the row of a BERT-like encoder: prompt tokens get neither position nor token-type embeddings."""
    facts: dict[str, Any] = {
        "ffn_site": f"{body}.encoder.layer.{{i}}.intermediate.intermediate_act_fn",
        "layer": f"{body}.encoder.layer.{{i}}",
        "reads_states": ("attention.self.key", "attention.self.value"),
        "position_table": f"{body}.embeddings.position_embeddings",
        "token_type_table": f"{body}.embeddings.token_type_embeddings",
        "prompt_token_type": -1,
        # RoBERTa's rate, since its embeddings have the same scale; not measured on large pretrained models.
        "learning_rate": 0.003,
    }
    return Family(name, "masked_lm", body, head, **{**facts, **more})


def _roberta_like(name: str) -> Family:
    return _bert_like(
        name,
        "roberta",
        ("lm_head",),
        # Positions count from the padding index (fairseq).
        first_position=lambda config: config.pad_token_id + 1,
        max_positions=lambda config: config.max_position_embeddings - config.pad_token_id - 1,
        prompt_token_type=0,
        # Grid search on roberta-nano (results/sst2_grid.csv). Release 1.0 used 1e-3 for base models and prompts
        # initialized with N(0, 0.02), with about ten times the steps.
        learning_rate=0.003,
    )


def _decoder(name: str, body: str = "model", head: str = "lm_head", **more: Any) -> Family:
    """Return the row of a Llama-like causal LM: one output layer, neurons at the input of the second FFN layer."""
    facts: dict[str, Any] = {
        "ffn_site": f"{body}.layers.{{i}}.mlp.down_proj",
        "ffn_input": True,
        "activation": f"{body}.layers.{{i}}.mlp.act_fn",
        "swiglu": f"{body}.layers.{{i}}.mlp",
        "gated": lambda config: True,
        "layer": f"{body}.layers.{{i}}",
        "learning_rate": 0.003,
    }
    return Family(name, "causal_lm", body, (head,), **{**facts, **more})


def _llama_like(name: str, **more: Any) -> Family:
    """Return the row of a Llama-like causal LM with Llama's attention."""
    return _decoder(name, rotary="model.layers.{i}.self_attn", **more)


def _own_attention(name: str, activation: str = "act", **more: Any) -> Family:
    """Return the row of a GPT-2-like causal LM that does not use registered attention functions."""
    site = f"transformer.h.{{i}}.mlp.{activation}"
    return Family(name, "causal_lm", "transformer", ("lm_head",), site, 0.003, plain=True, **more)


def _t5(name: str, learning_rate: float) -> Family:
    return Family(
        name,
        "seq2seq_lm",
        "encoder",
        ("lm_head",),
        # The input of `wo` is the activation in v1.0 and its product with the gate in v1.1.
        "decoder.block.{i}.layer.2.DenseReluDense.wo",
        learning_rate,
        ffn_input=True,
        cross_attention="decoder.block.{i}.layer.1.EncDecAttention",
        self_attention="decoder.block.{i}.layer.0.SelfAttention",
        activation="decoder.block.{i}.layer.2.DenseReluDense.act",
        gated=lambda config: config.is_gated_act,
        layers=lambda config: config.num_decoder_layers,
        position_ids=False,
        # Relative positions are unbounded; longer inputs are untested.
        max_positions=lambda config: 2048,
    )


def _sliding_window(config: Any) -> int | None:
    layers = getattr(config, "layer_types", None) or ()
    return config.sliding_window if "sliding_attention" in layers else None


def _capped(config: Any, logits: Tensor) -> Tensor:
    """Apply Gemma 2's soft cap: `cap * tanh(logits / cap)`."""
    cap = config.final_logit_softcapping
    return logits if cap is None else cap * torch.tanh(logits / cap)


FAMILIES: dict[str, Family] = {
    row.name: row
    for row in (
        _bert_like("bert", "bert", ("cls",)),
        *map(_roberta_like, ("roberta", "xlm-roberta", "camembert")),
        _bert_like("electra", "electra", ("generator_predictions", "generator_lm_head")),
        _bert_like(
            "albert",
            "albert",
            ("predictions",),
            # All layers share one group of weights, whose activation is the site of every layer.
            ffn_site="albert.encoder.albert_layer_groups.0.albert_layers.0.activation",
            layer=None,
            reads_states=None,
        ),
        _bert_like(
            "distilbert",
            "distilbert",
            ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
            ffn_site="distilbert.transformer.layer.{i}.ffn.lin2",
            ffn_input=True,
            layer="distilbert.transformer.layer.{i}",
            reads_states=("attention.k_lin", "attention.v_lin"),
            activation="distilbert.transformer.layer.{i}.ffn.activation",
            token_type_table=None,
        ),
        Family(
            "mpnet",
            "masked_lm",
            "mpnet",
            ("lm_head",),
            "mpnet.encoder.layer.{i}.intermediate.intermediate_act_fn",
            0.003,
            # Positions count from the padding index, which is always 1.
            max_positions=lambda config: config.max_position_embeddings - 2,
            plain=True,
        ),
        Family(
            "deberta-v2",
            "masked_lm",
            "deberta",
            # Either one or the other, depending on `legacy` in the configuration.
            ("cls", "lm_predictions"),
            "deberta.encoder.layer.{i}.intermediate.intermediate_act_fn",
            0.003,
            plain=True,
        ),
        Family(
            "modernbert",
            "masked_lm",
            "model",
            ("head", "decoder"),
            "model.layers.{i}.mlp.Wo",
            0.003,
            ffn_input=True,
            layer="model.layers.{i}",
            activation="model.layers.{i}.mlp.act",
            gated=lambda config: True,
            sliding=_sliding_window,
        ),
        Family(
            "gpt2",
            "causal_lm",
            "transformer",
            ("lm_head",),
            "transformer.h.{i}.mlp.act",
            # SST-2 on gpt2-nano, loss after 200 steps: 0.632, compared to 0.643 with 0.003.
            0.01,
            layer="transformer.h.{i}",
            reshaped="transformer.ln_f",
            max_positions=lambda config: config.n_positions,
        ),
        Family(
            "opt",
            "causal_lm",
            "model.decoder",
            ("lm_head",),
            "model.decoder.layers.{i}.fc2",
            0.003,
            ffn_input=True,
            layer="model.decoder.layers.{i}",
            activation="model.decoder.layers.{i}.activation_fn",
        ),
        Family(
            "gpt_neox",
            "causal_lm",
            "gpt_neox",
            ("lm_head",),
            "gpt_neox.layers.{i}.mlp.act",
            0.003,
            layer="gpt_neox.layers.{i}",
        ),
        _llama_like("llama"),
        _llama_like("qwen2", sliding=_sliding_window),
        _decoder("qwen3", sliding=_sliding_window),
        _llama_like("mistral", sliding=lambda config: config.sliding_window, one_mask=True),
        _decoder(
            "phi3",
            activation="model.layers.{i}.mlp.activation_fn",
            swiglu=None,
            sliding=lambda config: config.sliding_window,
            one_mask=True,
        ),
        _decoder("olmo2"),
        _decoder("smollm3", sliding=_sliding_window),
        _llama_like("granite", logits=lambda config, logits: logits / config.logits_scaling),
        _llama_like("gemma"),
        # Only eager attention applies the soft cap to the attention scores.
        _decoder("gemma2", plain=True, layer=None, attention="eager"),
        _decoder("gemma3_text", sliding=_sliding_window, logits=_capped),
        _own_attention("gpt_neo", attention="eager"),
        _own_attention("gptj", attention="eager"),
        _own_attention("falcon"),
        _own_attention("bloom", activation="gelu_impl", max_positions=lambda config: 2048),
        # T5 v1.0, v1.1 and Flan-T5: the configuration distinguishes them.
        _t5("t5", 0.3),
        _t5("mt5", 0.3),
    )
}
