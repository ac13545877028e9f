"""FrozenBackbone: the only interface to Hugging Face models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prompt_transfer.backbones import (
    decoder_attention,
    deep,
    fused_layers,
    generic,
    layer_calls,
    loading,
    plain,
    proof,
    quantization,
    substitutes,
)
from prompt_transfer.backbones.answers import IGNORED, AnswerSlot
from prompt_transfer.backbones.config import BackboneConfig
from prompt_transfer.backbones.encoder import TextEncoder
from prompt_transfer.backbones.fingerprint import text_rules
from prompt_transfer.backbones.gguf import SOURCE
from prompt_transfer.backbones.layouts import get_layout
from prompt_transfer.backbones.prompt_inputs import PromptBank, Prompts, expand_texts
from prompt_transfer.backbones.sharding import Shardable
from prompt_transfer.backbones.substitutes import OptionalEmbedding, SelectedRows, fuse_activations, path_of
from prompt_transfer.backbones.templates import Template, default_template
from prompt_transfer.backbones.tokenization import start_ids, tokens_beyond
from prompt_transfer.utils.errors import UserError


class FrozenBackbone(Shardable):
    """A frozen language model that scores the answer slot given a soft prompt.

    The weights never get a gradient and stay in `eval()` through `train()`; gradients flow only to the prompt.
    Shape letters: B batch, T text tokens, P prompt tokens, H hidden, N prompts, S target tokens, U scored tokens, V
    vocabulary.

    Args:
        name: a name or path as in `BackboneConfig`, or a whole configuration.
        ffn_site: for a family without a row, the path of the module in layer `{i}` whose input are the neurons; None:
            found by the sizes of its linear layers.
        options: fields of `BackboneConfig`; they override those of a given configuration.

    Raises:
        UserError: see `BackboneConfig`, `loading.load` and `proof.prove`; also for an unknown layout, and for layers
            that cannot be compiled or recomputed.
    """

    def __init__(
        self,
        name: str | BackboneConfig,
        *,
        ffn_site: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        config = replace(name, **options) if isinstance(name, BackboneConfig) else BackboneConfig(name, **options)
        name, attention = config.name, config.attention
        self.id = name
        self.attention, self.dtype_name, self.head = attention, config.dtype_name, config.head
        self.dropout, self.quantization = config.dropout, config.quantization
        loaded = loading.load(name, config.head, config.torch_dtype, config.revision, config.trust_remote_code)
        self.model, self.tokenizer, self.family, self.fingerprint = loaded
        if ffn_site is not None:
            self.family = generic.with_site(self.model, self.family, ffn_site)
        plain.refuse_shared(name, self.family, attention)
        start = start_ids(self.tokenizer) if self.family.kind == "causal_lm" else ()
        self.layout = get_layout(config.layout, self.family.kind, self.family.needs_positions, bool(start))
        self._start = start if self.layout.start_token else ()
        self._beyond = tokens_beyond(self.tokenizer, self.model.get_input_embeddings().weight.shape[0])
        # Part of the key of cached token ids, which must not outlive a change of the tokenizer's rules.
        rules = text_rules(self.tokenizer, self.family.kind, self._start)
        self._text_rules = f"{self.fingerprint}-{rules}"
        self.revision = config.revision
        self.config = self.model.config
        # The Hub commit that the revision resolved to; None for backbones from elsewhere.
        self.commit: str | None = getattr(self.config, "_commit_hash", None)
        # For GGUF files: file, sha256, quantization and, if given, license; else empty.
        self.gguf: dict[str, str] = getattr(self.config, SOURCE, None) or {}
        if config.quantization is not None:
            quantization.quantize(name, self.model, self.family, config.quantization)
        self._keys_values_shape: tuple[int, int, int] | None = None
        self._substitute()
        self.model.requires_grad_(False)
        # Lightning keeps the mode that it finds, so dropout must be on from the start.
        self.train()
        mask_token_id = self.tokenizer.mask_token_id
        if self.family.kind == "masked_lm" and mask_token_id is None:
            raise UserError(f"the tokenizer of {name} has no mask token, which a masked language model needs")
        pad_token_id = self.encoder(1).pad_token_id
        self._answers = plain.answers_of(self.family)(
            self.model, self.family, self.layout, attention, pad_token_id, mask_token_id
        )
        if not self.family.has_row:
            with loading.quiet_transformers():
                proof.prove(self)
        if config.compile:
            layer_calls.compile_layers(self._answers.stack, name)
        if config.gradient_checkpointing:
            layer_calls.recompute(self._answers.stack, name)

    def _substitute(self) -> None:
        family, model = self.family, self.model
        if family.plain:
            return
        for table in (family.position_table, family.token_type_table):
            if table is not None:
                substitutes.replace(model, table, OptionalEmbedding.sharing(model.get_submodule(table)))
        decoder_attention.substitute(model, family)
        fuse_activations(model)
        output = model.get_output_embeddings()
        self._output = SelectedRows.sharing(output)
        substitutes.replace(model, path_of(model, output), self._output)
        fused_layers.substitute(model, family)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stay in evaluation mode; with `dropout` follow `mode`."""
        return super().train(mode and self.dropout)

    @property
    def hidden_size(self) -> int:
        """H, the width of the input embeddings."""
        return self._table.shape[1]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._table.device

    @property
    def embedding_weight(self) -> Tensor:
        """The word embeddings [V, H] as they enter the body, which is the space of prompts.

        For most models these are the weights of the embedding module. For models that scale embeddings (Gemma by
        sqrt(H)) they are scaled at each access; the LM head and `head="embedding"` use the unscaled weights.
        """
        embed = self.model.get_input_embeddings()
        if type(embed).forward is nn.Embedding.forward and self._answers.scale == 1:
            return self._table
        with torch.no_grad():
            return self._answers.embed(torch.arange(len(self._table), device=self.device))

    @property
    def _table(self) -> Tensor:
        return self.model.get_input_embeddings().weight.detach()

    @property
    def max_positions(self) -> int:
        """The longest input in positions, including prompt and answer slot."""
        return self.family.max_positions(self.config)

    @property
    def writes(self) -> bool:
        """Whether the model can generate text, beyond predicting one word."""
        return self.family.kind != "masked_lm"

    def encoder(self, prompt_length: int) -> TextEncoder:
        """Return the text encoder for prompts of `prompt_length` tokens, which gives the token ids for `forward`."""
        family = self.family
        return TextEncoder(
            self.tokenizer, family.kind, family.separators, prompt_length, self.max_positions, self._text_rules,
            self._start, self._beyond,
        )  # fmt: skip

    def shown_format(self, template: Template | None, pairs: bool, cue: str) -> str:
        """Return the words around the texts as a template string; "" for an encoder's or seq2seq model's own format.

        Args:
            template: the task's template; None for the default format.
            pairs: whether there are two texts.
            cue: the cue of the default format, which only causal models read.
        """
        if template is None:
            return default_template(pairs, cue) if self.family.kind == "causal_lm" else ""
        resolved = self.encoder(1).resolved(template)
        return "" if resolved is None else resolved.text

    def ffn_sites(self) -> list[nn.Module]:
        """Return the module of each layer that holds the neurons [B, T', F], from the first layer on.

        The neurons are the module's output, or its input if `family.ffn_input` is True. Layers with shared weights
        share the module (ALBERT).

        Raises:
            UserError: the family has no row, and its FFN output projection cannot be identified.
        """
        generic.refuse_ambiguous(self.id, self.family)
        return self._modules_per_layer(self.family.ffn_site)

    def activation_sites(self) -> list[nn.Module]:
        """Return the activation function of each FFN, whose input is the neurons before the activation [B, T', F].

        Its output is the neurons, or in gated FFNs (`is_gated`) the gate that is multiplied with the other projection.
        """
        return self._modules_per_layer(self.family.activation or self.family.ffn_site)

    @property
    def is_gated(self) -> bool:
        """Whether a neuron is the product of two projections, one of them after the activation function."""
        return self.family.gated(self.config)

    @property
    def answer_slot(self) -> AnswerSlot | None:
        """The answer slot in the states of the running forward pass, for hooks.

        None outside a forward pass, while prompts are computed alone, and in `generate`.
        """
        return self._answers.slot

    def _modules_per_layer(self, path: str) -> list[nn.Module]:
        return [self.model.get_submodule(path.format(i=layer)) for layer in range(self.family.layers(self.config))]

    def forward(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor], token_ids: Tensor) -> Tensor:
        """Compute the logits of some tokens at the answer slot.

        Args:
            prompt: [P, H], or N prompts ([N, P, H], or from `record`) with `prompt_ids` [B] in the batch. P = 0 means
                no prompt. Or deep: keys and values [L, 2, P, K, D] before those of every layer, or [N, L, 2, P, K, D].
            batch: `input_ids` and `attention_mask` [B, T] of the text, padded on the right. With `text_ids` [B] the two
                are [D, T] and example b reads text `text_ids[b]`, which embeds a text once for many prompts.
            token_ids: [U], the vocabulary ids to score.

        Returns:
            float32 [B, U].
        """
        return self.score(self.answer_states(prompt, batch), token_ids)

    @torch.no_grad()
    def record(self, prompt: Tensor) -> PromptBank:
        """Prepare prompts for many batches, without gradients.

        The result is accepted wherever this backbone takes a prompt. If prompts see only themselves (`shared`
        attention, causal LMs), their key/value cache is computed once here instead of in each batch; it takes 2 L P H
        numbers per prompt.

        Args:
            prompt: [P, H] or [N, P, H], or deep ([L, 2, P, K, D] or [N, L, 2, P, K, D]). P = 0 means no prompt.
        """
        if deep.is_deep(prompt):
            rows = deep.several(self, prompt)
            return PromptBank(rows, (None, deep.as_states(rows)))
        embeddings = deep.several(self, prompt)
        alone = self._answers.prompt_sees_only_itself and embeddings.shape[1] > 0
        return PromptBank(embeddings, self._answers.record(Prompts(embeddings, None)) if alone else None)

    def keys_values_shape(self, length: int) -> tuple[int, int, int, int, int]:
        """Return the shape (L, 2, P, K, D) of a deep prompt of `length` tokens, for K key/value heads of width D.

        Raises:
            UserError: the backbone has no separate keys and values of a prompt (see `deep.compute`).
        """
        if self._keys_values_shape is None:
            self._keys_values_shape = deep.shape(self)
        layers, heads, width = self._keys_values_shape
        return layers, 2, length, heads, width

    def keys_values(self, prompt: Tensor) -> Tensor:
        """Return the keys and values that every layer computes for a prompt [P, H] alone: float32 [L, 2, P, K, D]."""
        return deep.compute(self, prompt).cpu()

    def answer_states(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> Tensor:
        """Compute the last hidden state at the answer slot, [B, H]."""
        return self._answers.answer_states(self._prompts(prompt, batch), batch)

    def score(self, states: Tensor, token_ids: Tensor) -> Tensor:
        """Compute float32 logits [..., U] of `token_ids` [U] from answer states [..., H]."""
        if self.head == "embedding":
            return nn.functional.linear(states, self._table[token_ids]).float()
        if self.family.plain:
            return self._logits(states)[..., token_ids]
        with self._output.only(token_ids):
            return self._logits(states)

    def _logits(self, states: Tensor) -> Tensor:
        if self.head == "embedding":
            return nn.functional.linear(states, self._table).float()
        if isinstance(self._answers, plain.PlainAnswers):
            return self._answers.logits(states).float()
        for path in self.family.head:
            states = self.model.get_submodule(path)(states)
        return self.family.logits(self.config, states.float())

    def target_log_probs(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> Tensor:
        """Compute the log-probability of each target token over the whole vocabulary.

        Args:
            prompt: as in `forward`.
            batch: as in `forward`, and `target_ids` [B, S], padded with -100.

        Returns:
            float32 [B, S] in nats, 0 for padding.

        Raises:
            UserError: the backbone cannot generate text.
        """
        states = self._answers.target_states(self._prompts(prompt, batch), expand_texts(batch))
        return self.log_probs(states, batch["target_ids"])

    def log_probs(self, states: Tensor, targets: Tensor) -> Tensor:
        """Compute the log-probabilities [B, S] of tokens [B, S] from hidden states [B, S, H]; 0 for padding (-100)."""
        is_target = targets != IGNORED
        # Padding skips the LM head, the model's largest matrix.
        logits = self._logits(states[is_target])
        log_probs = -nn.functional.cross_entropy(logits, targets[is_target], reduction="none")
        return torch.zeros(targets.shape, device=log_probs.device).masked_scatter(is_target, log_probs)

    @torch.no_grad()
    def generate(
        self, prompt: Tensor | PromptBank, batch: dict[str, Tensor], max_new_tokens: int = 32, num_beams: int = 1
    ) -> Tensor:
        """Generate text conditioned on prompt and text, greedily or with `num_beams` beams.

        The checkpoint's own generation settings are ignored, except for its end tokens. The key/value cache of a prompt
        that sees only itself is computed once, or once per example in causal models with sliding windows.

        Returns:
            Token ids [B, S], S at most `max_new_tokens`, padded after the end token.

        Raises:
            UserError: the backbone cannot generate text.
        """
        return self._answers.generate(self._prompts(prompt, batch), expand_texts(batch), max_new_tokens, num_beams)

    def decode(self, ids: Tensor) -> list[str]:
        """Return the texts of token ids [B, S], without special tokens."""
        ids = ids.masked_fill(ids == IGNORED, self.encoder(1).pad_token_id)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _prompts(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> Prompts:
        bank = prompt if isinstance(prompt, PromptBank) else PromptBank(prompt, None)
        rows, prompt_ids = deep.several(self, bank.rows), batch.get("prompt_ids")
        if rows.shape[0] > 1 and prompt_ids is None:
            raise ValueError("several prompts need `prompt_ids` [B] in the batch")
        recorded = bank.recorded or ((None, deep.as_states(rows)) if deep.is_deep(rows) else None)
        return Prompts(None if deep.is_deep(rows) else rows, prompt_ids, recorded)

    @torch.no_grad()
    def text_features(self, batch: dict[str, Tensor]) -> Tensor:
        """Compute the mean of the text's last hidden states, without prompt and answer slot: float32 [B, H]."""
        mask = batch["attention_mask"]
        states = self._answers.stack.run_alone(self._answers.text_part(batch, 0)).float()
        weights = mask.unsqueeze(-1).float()
        return (states * weights).sum(dim=1) / weights.sum(dim=1)
