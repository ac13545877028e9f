"""Pretraining of encoders: RoBERTa and BERT."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, RobertaConfig, RobertaForMaskedLM

from prompt_transfer.pretraining.objectives import Architecture, additive_mask, causal_mask, next_tokens
from prompt_transfer.pretraining.options import ModelSizes, PretrainingOptions


class Encoder(Architecture):
    """An encoder that predicts masked tokens, optionally after a warm-up on the next token with a causal mask."""

    objectives = ("masked", "causal")

    def objective(self, options: PretrainingOptions, step: int, progress: float) -> str:
        """Return `causal` for the first `causal_share` of the budget, then `masked`."""
        return "masked" if progress >= options.causal_share else "causal"

    def states(self, model: PreTrainedModel, batch: dict[str, Tensor], objective: str) -> tuple[Tensor, Tensor]:
        """Return the hidden states `[B, T, H]` and the labels `[B, T]`."""
        ids, attention, labels = batch["masked_ids"], batch["attention_mask"], batch["labels"]
        if objective == "causal":
            ids = batch["input_ids"]
            labels = next_tokens(ids, attention)
            attention = causal_mask(attention)
            if model.config._attn_implementation == "eager":
                attention = additive_mask(attention)
        output = model.get_submodule(self.body)(ids, attention_mask=attention, position_ids=batch["position_ids"])
        return output.last_hidden_state, labels


class Roberta(Encoder):
    """RoBERTa."""

    name, body, transform = "roberta", "roberta", "lm_head.dense"

    def build(self, sizes: ModelSizes) -> PreTrainedModel:
        """Return a model with random weights."""
        # Positions count from the padding index, 1.
        config = RobertaConfig(**_config(sizes), max_position_embeddings=sizes.max_positions + 2, type_vocab_size=1)
        return RobertaForMaskedLM(config)


class Bert(Encoder):
    """BERT."""

    name, body, head, transform = "bert", "bert", "cls", "cls.predictions.transform.dense"

    def build(self, sizes: ModelSizes) -> PreTrainedModel:
        """Return a model with random weights."""
        model = BertForMaskedLM(BertConfig(**_config(sizes), max_position_embeddings=sizes.max_positions))
        # On a CPU a sixth faster at 64 tokens than the fused kernel, whose backward pass is slow.
        model.set_attn_implementation("eager")
        return model


def _config(sizes: ModelSizes) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "intermediate_size": sizes.intermediate_size,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
