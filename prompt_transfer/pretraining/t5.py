"""Pretraining of T5 v1.1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

from prompt_transfer.pretraining.corpus_batches import IGNORED
from prompt_transfer.pretraining.informed_init import decoder_from_encoder
from prompt_transfer.pretraining.objectives import READING, Architecture, additive_mask, causal_mask, next_tokens
from prompt_transfer.pretraining.options import ModelSizes, PretrainingOptions

# Objectives whose targets the decoder writes.
WRITTEN = ("span", "prefix", *READING)


class T5(Architecture):
    """T5 v1.1: gated FFN, untied output layer.

    Objectives: `span` corruption, `prefix` language modelling, and for the encoder alone, through the decoder's output
    layer, `causal` (the next token) and `infill` (masked tokens).

    The encoder is trained alone first: a decoder that finds nothing useful in the encoder yet learns to do without it,
    and the encoder then learns nothing. The decoder starts as a copy of the encoder that predicts the next token (Rothe
    et al. 2020). The end of the budget is prefix language modelling alone, because a T5 trained on sentinels only is a
    poor basis for prompts (Lester et al. 2021, "LM adaptation").
    """

    name = "t5"
    objectives = ("prefix", "span", "infill", "causal")
    generative = True

    def build(self, sizes: ModelSizes) -> PreTrainedModel:
        """Return a model with random weights."""
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
        # transformers ties the output layer regardless of the configuration; v1.1 does not.
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        # The fused kernels of a CPU are slower with a trained attention bias.
        model.set_attn_implementation("eager")
        for module in model.modules():
            if isinstance(module, T5DenseGatedActDense):
                # `gelu_new` in one kernel.
                module.act = nn.GELU(approximate="tanh")
        return model

    def check(self, options: PretrainingOptions) -> None:
        """Accept all options."""

    def objective(self, options: PretrainingOptions, step: int, progress: float) -> str:
        """Return `causal`, later `infill` or `prefix`, `span` or `prefix`, and `prefix`; or those of reading."""
        if options.reading:
            return options.reading_objective(step, progress, "prefix")
        if progress >= 1 - options.prefix_only_share:
            return "prefix"
        if progress < options.causal_share:
            return "causal"
        if progress < options.causal_share + options.infill_share:
            return "prefix" if step % 3 == 2 else "infill"
        return "prefix" if step % 2 else "span"

    def switch(self, model: PreTrainedModel, previous: str, objective: str) -> None:
        """Copy the encoder into the decoder once the encoder has learned the next token."""
        if previous == "causal" and objective != "causal":
            decoder_from_encoder(model)

    def states(self, model: PreTrainedModel, batch: dict[str, Tensor], objective: str) -> tuple[Tensor, Tensor]:
        """Return the states of the decoder `[B, S, H]`, or of the encoder `[B, T, H]`, and the labels."""
        if objective in WRITTEN:
            return self.decode(model, batch, objective)[0].last_hidden_state, batch[_names(objective)[2]]
        ids, mask, labels = (batch[f"infill_{name}"] for name in ("ids", "mask", "labels"))
        attention = mask
        if objective == "causal":
            ids = torch.where(labels == IGNORED, ids, labels)
            attention = additive_mask(causal_mask(mask))
            labels = next_tokens(ids, mask)
        return model.encoder(input_ids=ids, attention_mask=attention).last_hidden_state, labels

    def loss(
        self, model: PreTrainedModel, batch: dict[str, Tensor], objective: str, states: Tensor | None = None
    ) -> Tensor:
        """Return the mean cross entropy in nats over the predicted tokens; `states` as in `Architecture.loss`."""
        if states is None:
            return super().loss(model, batch, objective)
        return nn.functional.cross_entropy(*self.predictions(model, states, batch[_names(objective)[2]]))

    def decode(
        self, model: PreTrainedModel, batch: dict[str, Tensor], objective: str
    ) -> tuple[Any, tuple[Tensor, ...]]:
        """Return the decoder's output with attentions, and the encoder's hidden states (layer inputs and output)."""
        ids, mask, labels = (batch[name] for name in _names(objective))
        encoded = model.encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        # No mask for the target: pads follow it, and causal attention hides them.
        output = model.decoder(
            input_ids=model.prepare_decoder_input_ids_from_labels(labels), encoder_hidden_states=encoded[-1],
            encoder_attention_mask=mask, use_cache=False, output_attentions=True,
        )  # fmt: skip
        return output, encoded

    def count_tokens(self, batch: dict[str, Tensor], objective: str) -> int:
        """Return the number of tokens that encoder and decoder process in a step."""
        written = int((batch[_names(objective)[2]] != IGNORED).sum()) if objective in WRITTEN else 0
        return super().count_tokens(batch, objective) + written


def _names(objective: str) -> tuple[str, str, str]:
    """Return the batch's keys of the encoder's ids, its mask, and the labels."""
    if objective == "span":
        return "input_ids", "attention_mask", "labels"
    return f"{objective}_ids", f"{objective}_mask", f"{objective}_labels"
