"""Answer slot, scoring of text and generation for each kind of backbone, conditioned on a prompt.

Shape letters: B batch, T text tokens, P prompt tokens, H hidden, N prompts, S target tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from prompt_transfer.backbones import writing
from prompt_transfer.backbones.attention import PromptStates, select_prompts
from prompt_transfer.backbones.family import Family
from prompt_transfer.backbones.layouts import Layout
from prompt_transfer.backbones.prompt_inputs import Prompts, Recorded, per_example_states
from prompt_transfer.backbones.stack import InputPart, Stack
from prompt_transfer.utils.errors import UserError

IGNORED = -100


@dataclass(frozen=True)
class AnswerSlot:
    """Positions of a batch's answer slots in the hidden states of a forward pass.

    Attributes:
        places: [B], index of the answer slot of each example.
        prompt_ids: [B], prompt of each example; None if all examples have the only prompt.
        prompt: first and last + 1 index of the prompt tokens, if the prompt is in the same states and sees the text.
    """

    places: Tensor
    prompt_ids: Tensor | None
    prompt: tuple[int, int] | None = None


class Answers:
    """Base class of the kinds of backbone.

    Args:
        model: a model with its LM head.
        family: its family.
        layout: order of prompt, answer slot and text.
        attention: `full` or `shared`.
        pad_token_id: pads generated texts.
        mask_token_id: the token in the answer slot of an encoder.
    """

    stack_type: type[Stack] = Stack

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        layout: Layout,
        attention: str,
        pad_token_id: int,
        mask_token_id: int | None,
    ) -> None:
        self.model, self.family, self.layout, self.attention = model, family, layout, attention
        self.pad_token_id, self.mask_token_id = pad_token_id, mask_token_id
        self.stack = self.stack_type(model, family)
        self.first_position = family.first_position(model.config)
        self.scale = family.embedding_scale(model.config)
        self.slot: AnswerSlot | None = None

    @contextmanager
    def answering(self, places: Tensor, prompts: Prompts, prompt: tuple[int, int] | None = None) -> Iterator[None]:
        """Publish the answer slots [B] for hooks inside the body, as `slot`."""
        self.slot = AnswerSlot(places, prompts.ids, prompt)
        try:
            yield
        finally:
            self.slot = None

    def answer_states(self, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
        """Compute the last hidden state at the answer slot, [B, H]."""
        raise NotImplementedError

    def target_states(self, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
        """Compute the hidden states [B, S, H] that predict the batch's `target_ids` [B, S]."""
        raise self._cannot_generate()

    def generate(self, prompts: Prompts, batch: dict[str, Tensor], max_new_tokens: int, num_beams: int) -> Tensor:
        """Generate texts: token ids [B, S], padded."""
        raise self._cannot_generate()

    def pad_after_end(self, ids: Tensor) -> Tensor:
        """Replace tokens after the end token of generated ids [B, S] by pads; beam search may leave others there."""
        return writing.padded(ids, self.model.generation_config.eos_token_id, self.pad_token_id)

    def refuse_calls_per_length(self) -> None:
        """Raise UserError if sharded processes would differ in their calls, since texts of each length go apart."""
        if getattr(self.model, "_is_fsdp_managed_module", False):
            raise UserError(
                f"a {self.family.name} model generates the texts of each length apart here, which sharded layers do "
                "not allow: use --trainer.strategy ddp"
            )

    def _cannot_generate(self) -> UserError:
        return UserError(
            f"a {self.family.name} backbone predicts one word and cannot generate text: for this task use a causal or "
            "sequence-to-sequence backbone (gpt2-nano and t5-nano are built in)"
        )

    @property
    def prompt_sees_only_itself(self) -> bool:
        """Whether the prompt sees only itself, which makes its hidden states independent of the text."""
        return self.attention == "shared" or self.stack.causal

    def record(self, prompts: Prompts) -> Recorded:
        """Return hidden states and key/value cache of prompts that see only themselves; compute them if missing."""
        if prompts.recorded is not None:
            return prompts.recorded
        assert prompts.embeddings is not None
        return self.stack.record(self.prompt_part(prompts.embeddings))

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings [..., H] of token ids as they enter the body."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings if self.scale == 1 else embeddings * self.scale

    def text_part(self, batch: dict[str, Tensor], offset: int) -> InputPart:
        """Return the text [B, T] of each example, with positions shifted by `offset`."""
        embeddings, mask = self.embed(batch["input_ids"]), batch["attention_mask"]
        if "text_ids" in batch:
            embeddings, mask = embeddings[batch["text_ids"]], mask[batch["text_ids"]]
        first = self.first_position + offset
        positions = torch.arange(first, first + mask.shape[1], device=mask.device).expand_as(mask)
        return InputPart(embeddings, positions, torch.zeros_like(mask), mask)

    def prompt_part(self, embeddings: Tensor) -> InputPart:
        """Return prompts [N, P, H] as a part of the input, with positions only if the model needs them."""
        size, length = embeddings.shape[:2]
        mask = torch.ones(size, length, dtype=torch.long, device=embeddings.device)
        token_types = torch.full_like(mask, self.family.prompt_token_type)
        if self.family.needs_positions:
            positions = torch.arange(self.first_position, self.first_position + length, device=embeddings.device)
            return InputPart(embeddings, positions.expand(size, -1), token_types, mask)
        return InputPart(embeddings, torch.full_like(mask, -1), token_types, mask)


class MaskedAnswers(Answers):
    """Answers of a masked LM: the answer slot is a mask token."""

    def answer_states(self, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
        text = self._answer_and_text(batch, prompts.length)
        first = torch.zeros(len(text.mask), dtype=torch.long, device=text.mask.device)
        if prompts.length and (prompts.deep or self.attention == "shared"):
            _, states = self.record(prompts)
            with self.answering(first, prompts):
                return self.stack.run_after_prompt(states, text, prompts.length, prompts.ids, slice(0, 1))[:, 0]
        prompt = self.prompt_part(prompts.per_example(len(text.mask)))
        if self.layout.answer_first:
            whole = text.between(0, 1).joined(prompt).joined(text.between(1, None))
        else:
            whole = prompt.joined(text)
        place, start = self.layout.answer_index(prompts.length), int(self.layout.answer_first)
        span = (start, start + prompts.length)
        shared = prompts.shared_rows(span, batch, len(first))
        with self.answering(first + place, prompts, span):
            return self.stack.run_alone(whole, slice(place, place + 1), shared)[:, 0]

    def _answer_and_text(self, batch: dict[str, Tensor], prompt_length: int) -> InputPart:
        bare = not self.family.needs_positions
        offset = self.layout.text_offset(prompt_length) if bare else prompt_length + 1
        text = self.text_part(batch, offset)
        slot = text.between(0, 1)
        assert self.mask_token_id is not None
        ids = torch.full_like(slot.positions, self.mask_token_id)
        answer = InputPart(
            self.embed(ids),
            torch.full_like(slot.positions, -1) if bare else slot.positions - 1,
            torch.full_like(ids, self.family.prompt_token_type if bare else 0),
            torch.ones_like(slot.mask),
        )
        return answer.joined(text)


class CausalAnswers(Answers):
    """Answers of a causal LM: the answer slot is the last token. The prompt is computed once per batch."""

    def answer_states(self, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
        text = self.text_part(batch, prompts.length)
        return self._text_states(prompts, text, text.mask.sum(dim=1, keepdim=True) - 1)[:, 0]

    def _text_states(self, prompts: Prompts, text: InputPart, at: Tensor) -> Tensor:
        """Compute the text's hidden states [B, S, H] at `at` [B, S], whose first position is the answer slot."""
        if self.stack.packs(text.embeddings):
            return self.stack.run_packed(self._given(prompts), text, prompts.ids, at)
        if not prompts.length:
            with self.answering(at[:, 0], prompts):
                return self.stack.run_alone(text, at)
        _, states = self.record(prompts)
        with self.answering(at[:, 0], prompts):
            return self.stack.run_after_prompt(states, text, prompts.length, prompts.ids, at)

    def _given(self, prompts: Prompts) -> InputPart | PromptStates | None:
        """Return the prompts for `Stack.run_packed`."""
        if prompts.recorded is not None:
            return prompts.recorded[1]
        return self.prompt_part(prompts.embeddings) if prompts.embeddings is not None and prompts.length else None

    def target_states(self, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
        ids, mask, targets = batch["input_ids"], batch["attention_mask"], batch["target_ids"]
        lengths, count = mask.sum(dim=1, keepdim=True), targets.shape[1]
        places = lengths + torch.arange(count, device=ids.device)
        target_mask = (targets != IGNORED).long()
        # The target directly follows each text; the positions after its end are masked.
        room = ids.new_full((len(ids), count), self.pad_token_id)
        padded = torch.where(target_mask > 0, targets, self.pad_token_id)
        joined = torch.cat([ids, room], dim=1).scatter(1, places, padded)
        joined_mask = torch.cat([mask, torch.zeros_like(room)], dim=1).scatter(1, places, target_mask)
        text = self.text_part({"input_ids": joined, "attention_mask": joined_mask}, prompts.length)
        return self._text_states(prompts, text, places - 1)

    def generate(self, prompts: Prompts, batch: dict[str, Tensor], max_new_tokens: int, num_beams: int) -> Tensor:
        cache = DynamicCache(config=self.model.config)
        if prompts.length and writing.keeps_all(cache, self.family):
            return self._generate_after(prompts, batch, max_new_tokens, num_beams)
        mask = batch["attention_mask"]
        if prompts.deep:
            self.refuse_calls_per_length()

            # The prompt is in the cache, so no pads can go before it: generate without pads, per length.
            def alone(rows: Tensor, length: int) -> Tensor:
                own = {"input_ids": batch["input_ids"][rows, :length], "attention_mask": mask[rows, :length]}
                return self._generate_after(prompts.of_examples(rows), own, max_new_tokens, num_beams)

            return writing.per_length(mask.sum(dim=1), alone, self.pad_token_id)
        # Pads go before the prompt, which keeps its distance to the text the same in all examples.
        size = len(mask)
        text = self.text_part(batch, prompts.length)
        embeddings = torch.cat([prompts.per_example(size), text.embeddings], dim=1)
        mask = torch.cat([mask.new_ones(size, prompts.length), mask], dim=1)
        embeddings, mask = writing.pads_first(mask, embeddings, mask)
        settings = writing.settings(self.model, self.pad_token_id, max_new_tokens, num_beams)
        generated = self.model.generate(None, settings, inputs_embeds=embeddings, attention_mask=mask)
        return self.pad_after_end(generated)

    def _generate_after(
        self, prompts: Prompts, batch: dict[str, Tensor], max_new_tokens: int, num_beams: int
    ) -> Tensor:
        """Generate conditioned on the prompts' recorded keys and values, which are passed as a cache."""
        size, cache = len(batch["input_ids"]), DynamicCache(config=self.model.config)
        settings = writing.settings(self.model, self.pad_token_id, max_new_tokens, num_beams)
        ids, mask = writing.pads_first(batch["attention_mask"], batch["input_ids"], batch["attention_mask"])
        _, states = self.record(prompts)
        self._fill(cache, states, prompts.repeat(num_beams), size * num_beams)
        # P placeholder ids for the prompt, which is in the cache: they are never embedded.
        placeholders = ids.new_full((size, prompts.length), self.pad_token_id)
        mask = torch.cat([torch.ones_like(placeholders), mask], dim=1)
        ids = torch.cat([placeholders, ids], dim=1)
        sequences = self.model.generate(ids, settings, attention_mask=mask, past_key_values=cache)
        return self.pad_after_end(sequences[:, ids.shape[1] :])

    @staticmethod
    def _fill(cache: DynamicCache, states: PromptStates, prompts: Prompts, examples: int) -> None:
        """Write the recorded keys and values of each example's prompt to a cache."""
        for index, layer in enumerate(states.layers):
            keys, values = (select_prompts(recorded, prompts.ids, examples) for recorded in layer)
            cache.update(keys, values, index)


class Seq2SeqAnswers(Answers):
    """Answers of a seq2seq LM: prompt and text are in the encoder, the answer slot is the decoder's first step."""

    def encoded(self, prompts: Prompts, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the encoder states [B, P + T, H] of prompt and text, and their mask [B, P + T].

        A deep prompt has no states that the decoder could attend to: both are then of the text alone, [B, T, ...].
        """
        text = self.text_part(batch, prompts.length)
        size = len(text.mask)
        if prompts.deep:
            _, cache = self.record(prompts)
            return self.stack.run_after_prompt(cache, text, prompts.length, prompts.ids), text.mask
        mask = torch.cat([text.mask.new_ones(size, prompts.length), text.mask], dim=1)
        if self.attention == "full" or not prompts.length:
            whole = self.prompt_part(prompts.per_example(size)).joined(text)
            return self.stack.run_alone(whole, shared=prompts.shared_rows((0, prompts.length), batch, size)), mask
        prompt_states, cache = self.record(prompts)
        assert prompt_states is not None
        text_states = self.stack.run_after_prompt(cache, text, prompts.length, prompts.ids)
        return torch.cat([per_example_states(prompt_states, prompts, size), text_states], dim=1), mask

    def _decoded(self, ids: Tensor, encoded: Tensor, mask: Tensor, prompts: Prompts) -> Tensor:
        """Compute the decoder states [B, S, H] of `ids` [B, S], scaled for the output layer."""
        with self.answering(torch.zeros_like(ids[:, 0]), prompts):
            output = self.model.get_decoder()(
                input_ids=ids,
                encoder_hidden_states=encoded,
                encoder_attention_mask=self.stack.visible(mask),
                use_cache=False,
            )
        states = output.last_hidden_state
        # T5 v1.0 scales the input of its tied output layer; v1.1 and mT5 do not.
        scaled = getattr(self.model.config, "scale_decoder_outputs", False)
        return states * encoded.shape[-1] ** -0.5 if scaled else states

    def _start(self, size: int, device: torch.device) -> Tensor:
        return torch.full((size, 1), self.model.config.decoder_start_token_id, device=device)

    def answer_states(self, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
        encoded, mask = self.encoded(prompts, batch)
        return self._decoded(self._start(len(mask), mask.device), encoded, mask, prompts)[:, 0]

    def target_states(self, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
        encoded, mask = self.encoded(prompts, batch)
        targets = batch["target_ids"]
        # Each target token is predicted from the tokens before it, so the trailing pads are never seen.
        before = torch.where(targets == IGNORED, self.pad_token_id, targets)[:, :-1]
        ids = torch.cat([self._start(len(mask), mask.device), before], dim=1)
        return self._decoded(ids, encoded, mask, prompts)

    def generate(self, prompts: Prompts, batch: dict[str, Tensor], max_new_tokens: int, num_beams: int) -> Tensor:
        encoded, mask = self.encoded(prompts, batch)
        sequences = self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            generation_config=writing.settings(self.model, self.pad_token_id, max_new_tokens, num_beams),
        )
        return self.pad_after_end(sequences[:, 1:])


KINDS: dict[str, Callable[..., Answers]] = {
    "masked_lm": MaskedAnswers,
    "causal_lm": CausalAnswers,
    "seq2seq_lm": Seq2SeqAnswers,
}
