"""The small models that this project pretrains: one function an architecture, from sizes to a fresh model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model: H, layers (of each stack), attention heads, F, V, positions of text, numbers of a head (T5)."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    head_size: int | None = None


@dataclass(frozen=True)
class Architecture:
    """What pretraining must know of an architecture.

    Attributes:
        build: a fresh model.
        body: path of the module from ids to hidden states (encoders and GPT).
        head: path of the output layer or head that turns hidden states into logits.
        transform: path of the head's dense layer, for the informed start (encoders only).
        objectives: what it is trained on: `masked`, `causal`, `span` (corruption), `prefix` (language modelling),
            `infill` (masked tokens that a T5's encoder fills in by itself, through the decoder's output layer). The
            first is what the held-out loss is given for.
    """

    build: Callable[[ModelSizes], PreTrainedModel]
    body: str
    head: str
    transform: str | None
    objectives: tuple[str, ...]


def _encoder(sizes: ModelSizes) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "intermediate_size": sizes.intermediate_size,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _roberta(sizes: ModelSizes) -> PreTrainedModel:
    # Positions count from the padding index, 1.
    config = RobertaConfig(**_encoder(sizes), max_position_embeddings=sizes.max_positions + 2, type_vocab_size=1)
    return RobertaForMaskedLM(config)


def _bert(sizes: ModelSizes) -> PreTrainedModel:
    model = BertForMaskedLM(BertConfig(**_encoder(sizes), max_position_embeddings=sizes.max_positions))
    # On a CPU a sixth faster at 64 tokens than the fused kernel, whose backward pass is slow.
    model.set_attn_implementation("eager")
    return model


def _gpt2(sizes: ModelSizes) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=sizes.vocab_size,
        n_positions=sizes.max_positions,
        n_embd=sizes.hidden_size,
        n_layer=sizes.num_layers,
        n_head=sizes.num_heads,
        n_inner=sizes.intermediate_size,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def _t5(sizes: ModelSizes) -> PreTrainedModel:
    config = T5Config(
        vocab_size=sizes.vocab_size,
        d_model=sizes.hidden_size,
        d_kv=sizes.head_size or sizes.hidden_size // sizes.num_heads,
        d_ff=sizes.intermediate_size,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    # transformers ties the output layer whatever the configuration says; v1.1 has one of its own.
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    # Its attention adds numbers that are trained: the fused kernels of a CPU are slower with them.
    model.set_attn_implementation("eager")
    for module in model.modules():
        if isinstance(module, T5DenseGatedActDense):
            # The same function, `gelu_new`, in one kernel.
            module.act = nn.GELU(approximate="tanh")
    return model


ARCHITECTURES: dict[str, Architecture] = {
    "roberta": Architecture(_roberta, "roberta", "lm_head", "lm_head.dense", ("masked", "causal")),
    "bert": Architecture(_bert, "bert", "cls", "cls.predictions.transform.dense", ("masked", "causal")),
    "gpt2": Architecture(_gpt2, "transformer", "lm_head", None, ("causal",)),
    "t5": Architecture(_t5, "", "lm_head", None, ("prefix", "span", "infill", "causal")),
}
