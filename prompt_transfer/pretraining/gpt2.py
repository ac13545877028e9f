"""Pretraining of GPT-2."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from prompt_transfer.pretraining.corpus_batches import IGNORED
from prompt_transfer.pretraining.objectives import READING, Architecture, next_tokens
from prompt_transfer.pretraining.options import ModelSizes, PretrainingOptions


class Gpt2(Architecture):
    """GPT-2, which predicts the next token."""

    name, body = "gpt2", "transformer"
    objectives = ("causal",)
    generative = True

    def build(self, sizes: ModelSizes) -> PreTrainedModel:
        """Return a model with random weights."""
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

    def objective(self, options: PretrainingOptions, step: int, progress: float) -> str:
        """Return `causal`, or with reading also `copy` and `cloze`."""
        return options.reading_objective(step, progress, "causal") if options.reading else "causal"

    def states(self, model: PreTrainedModel, batch: dict[str, Tensor], objective: str) -> tuple[Tensor, Tensor]:
        """Return the hidden states `[B, T, H]` and the labels `[B, T]`."""
        body = model.get_submodule(self.body)
        if objective in READING:
            # No attention mask: pads follow the text, and causal attention hides them.
            states = body(batch[f"{objective}_ids"], position_ids=batch[f"{objective}_positions"]).last_hidden_state
            return states[:, :-1], batch[f"{objective}_labels"][:, 1:]
        ids, mask = batch["input_ids"], batch["attention_mask"]
        states = body(ids, attention_mask=mask, position_ids=batch["position_ids"]).last_hidden_state
        return states, next_tokens(ids, mask)

    def loss(
        self, model: PreTrainedModel, batch: dict[str, Tensor], objective: str, states: Tensor | None = None
    ) -> Tensor:
        """Return the mean cross entropy in nats; in reading, copies and answers weigh more than the preceding text."""
        if objective not in READING:
            return super().loss(model, batch, objective)
        found, labels = self.states(model, batch, objective)
        losses = nn.functional.cross_entropy(*self.predictions(model, found, labels), reduction="none")
        weights = batch[f"{objective}_weights"][:, 1:][labels != IGNORED]
        return (losses * weights).sum() / weights.sum()
