"""One row a family of backbones: everything that differs between architectures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prompt_transfer.backbones.family import Family


def _bert_like(name: str, body: str, head: tuple[str, ...], **more: Any) -> Family:
    """BERT and its relatives: tables of positions and token types, prompt rows with neither."""
    facts: dict[str, Any] = {
        "ffn_site": f"{body}.encoder.layer.{{i}}.intermediate.intermediate_act_fn",
        "layer": f"{body}.encoder.layer.{{i}}",
        "reads_states": ("attention.self.key", "attention.self.value"),
        "position_table": f"{body}.embeddings.position_embeddings",
        "token_type_table": f"{body}.embeddings.token_type_embeddings",
        "prompt_token_type": -1,
        # As for RoBERTa, whose embeddings have the same scale; not measured on large pretrained models.
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
        # The grid on roberta-nano (results/sst2_grid.csv). Release 1.0 took 1e-3 for base models and prompts that
        # start at N(0, 0.02), with some ten times the steps.
        learning_rate=0.003,
    )


def _decoder(name: str, body: str = "model", head: str = "lm_head", **more: Any) -> Family:
    """Causal models in the manner of Llama: body, one output layer, neurons where they enter the second FFN layer."""
    facts: dict[str, Any] = {
        "ffn_site": f"{body}.layers.{{i}}.mlp.down_proj",
        "ffn_input": True,
        "activation": f"{body}.layers.{{i}}.mlp.act_fn",
        "gated": lambda config: True,
        "layer": f"{body}.layers.{{i}}",
        "learning_rate": 0.003,
    }
    return Family(name, "causal_lm", body, (head,), **{**facts, **more})


def _own_attention(name: str, activation: str = "act", **more: Any) -> Family:
    """Causal models in the manner of GPT-2 whose attention is no registered function: by the library's own forward."""
    site = f"transformer.h.{{i}}.mlp.{activation}"
    return Family(name, "causal_lm", "transformer", ("lm_head",), site, 0.003, plain=True, **more)


def _t5(name: str, learning_rate: float) -> Family:
    return Family(
        name,
        "seq2seq_lm",
        "encoder",
        ("lm_head",),
        # v1.0: what the activation gives; v1.1: the product with the gate. Both enter `wo`.
        "decoder.block.{i}.layer.2.DenseReluDense.wo",
        learning_rate,
        ffn_input=True,
        cross_attention="decoder.block.{i}.layer.1.EncDecAttention",
        self_attention="decoder.block.{i}.layer.0.SelfAttention",
        activation="decoder.block.{i}.layer.2.DenseReluDense.act",
        gated=lambda config: config.is_gated_act,
        layers=lambda config: config.num_decoder_layers,
        position_ids=False,
        # Relative positions have no end; beyond this nobody has looked.
        max_positions=lambda config: 2048,
    )


def _sliding_window(config: Any) -> int | None:
    layers = getattr(config, "layer_types", None) or ()
    return config.sliding_window if "sliding_attention" in layers else None


def _capped(config: Any, logits: Tensor) -> Tensor:
    """Soft-capped logits (Gemma 2): `cap * tanh(logits / cap)`."""
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
            # One group of shared layers, used again and again: its activation is the site of every layer.
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
            # Positions count from the padding index, which is 1 in all of them.
            max_positions=lambda config: config.max_position_embeddings - 2,
            plain=True,
        ),
        Family(
            "deberta-v2",
            "masked_lm",
            "deberta",
            # One of them, as `legacy` in the configuration says.
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
            # SST-2 on gpt2-nano after 200 steps: loss 0.632, against 0.643 with 0.003.
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
        _decoder("llama"),
        _decoder("qwen2", sliding=_sliding_window),
        _decoder("qwen3", sliding=_sliding_window),
        _decoder("mistral", sliding=lambda config: config.sliding_window, one_mask=True),
        _decoder(
            "phi3",
            activation="model.layers.{i}.mlp.activation_fn",
            sliding=lambda config: config.sliding_window,
            one_mask=True,
        ),
        _decoder("olmo2"),
        _decoder("smollm3", sliding=_sliding_window),
        _decoder("granite", logits=lambda config, logits: logits / config.logits_scaling),
        _decoder("gemma"),
        # The scores of its attention are soft-capped, which only the eager attention does.
        _decoder("gemma2", plain=True, layer=None, attention="eager"),
        _decoder("gemma3_text", sliding=_sliding_window, logits=_capped),
        _own_attention("gpt_neo", attention="eager"),
        _own_attention("gptj", attention="eager"),
        _own_attention("falcon"),
        _own_attention("bloom", activation="gelu_impl", max_positions=lambda config: 2048),
        # T5 and Flan-T5 too: v1.0 or v1.1 is a matter of their configuration.
        _t5("t5", 0.3),
        _t5("mt5", 0.3),
    )
}
