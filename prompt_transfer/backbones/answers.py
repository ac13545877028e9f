"""How each kind of backbone answers behind a prompt: where the answer slot is, and how text is scored and written.

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
from prompt_transfer.backbones.kernels import frozen_linear
from prompt_transfer.backbones.layouts import Layout
from prompt_transfer.backbones.stack import InputPart, Stack
from prompt_transfer.utils.errors import UserError

IGNORED = -100


# States of prompts that see only themselves (see `Stack.record`), and their keys and values.
Recorded = tuple[Tensor, PromptStates]


@dataclass(frozen=True)
class PromptBank:
    """N prompts that many batches are scored behind; made by `FrozenBackbone.record`.

    Attributes:
        rows: [N, P, H] in the backbone's dtype.
        recorded: what they are computed to be where they see only themselves, else None.
    """

    rows: Tensor
    recorded: Recorded | None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Prompts:
    """N prompts [N, P, H] in the backbone's dtype, and which one each example takes: [B], or None for the only one."""

    rows: Tensor
    ids: Tensor | None
    recorded: Recorded | None = None

    @property
    def length(self) -> int:
        """P."""
        return self.rows.shape[1]

    def of_examples(self, count: int) -> Tensor:
        """The prompt of each example [B, P, H]."""
        return self.rows.expand(count, -1, -1) if self.ids is None else self.rows[self.ids]

    def shared_rows(
        self, rows: tuple[int, int], batch: dict[str, Tensor], examples: int
    ) -> frozen_linear.SharedRows | None:
        """What so many examples share where they stand at `rows`; None where few share one."""
        if not self.length or examples < 2 * len(self.rows) or not frozen_linear.is_supported(self.rows):
            return None
        return frozen_linear.SharedRows(*rows, self.ids, batch.get("text_ids"))

    def repeated(self, times: int) -> Prompts:
        """For a batch in which each example stands so many times in a row."""
        ids = None if self.ids is None else self.ids.repeat_interleave(times)
        return Prompts(self.rows, ids, self.recorded)


@dataclass(frozen=True)
class AnswerSlot:
    """Where the answer slots of a batch are in the states of a forward pass.

    Attributes:
        places: [B], index of the answer slot of each example.
        prompt_ids: [B], which prompt each example takes, or None for the only one.
        prompt: first and last + 1 index of the prompt rows where they see the text and stand in the same states.
    """

    places: Tensor
    prompt_ids: Tensor | None
    prompt: tuple[int, int] | None = None


class Answers:
    """What all kinds share.

    Args:
        model: with its LM head.
        family: its row.
        layout: where the parts stand.
        attention: `full` or `shared`.
        pad_token_id: fills up what is written.
        mask_token_id: of an encoder, stands in its answer slot.
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
        """Tell hooks inside of the body where the answer slots [B] are."""
        self.slot = AnswerSlot(places, prompts.ids, prompt)
        try:
            yield
        finally:
            self.slot = None

    def answer_states(self, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
        """Last hidden state at the answer slot [B, H]."""
        raise NotImplementedError

    def target_states(self, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
        """States [B, S, H] from which the `target_ids` [B, S] of the batch are predicted."""
        raise self._cannot_write()

    def generate(self, prompts: Prompts, batch: dict[str, Tensor], max_new_tokens: int, num_beams: int) -> Tensor:
        """Token ids of the texts that are written [B, S], filled up with pads."""
        raise self._cannot_write()

    def written(self, ids: Tensor) -> Tensor:
        """The ids [B, S] that `generate` gave, with pads behind end tokens, where beam search may put others."""
        return writing.padded(ids, self.model.generation_config.eos_token_id, self.pad_token_id)

    def _cannot_write(self) -> UserError:
        return UserError(
            f"a {self.family.name} backbone fills in one word and cannot write text: for this task use a causal or "
            "sequence-to-sequence backbone (gpt2-nano and t5-nano are built in)"
        )

    @property
    def prompt_sees_only_itself(self) -> bool:
        """Whether the prompt sees only itself, so that what it becomes does not depend on the text."""
        return self.attention == "shared" or self.stack.causal

    def record(self, prompts: Prompts) -> Recorded:
        """What prompts become that see only themselves, computed now where that was not done before."""
        return prompts.recorded or self.stack.record(self.prompt_part(prompts.rows))

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [..., H] of token ids as they enter the body."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings if self.scale == 1 else embeddings * self.scale

    def text_part(self, batch: dict[str, Tensor], offset: int) -> InputPart:
        """The text [B, T] of each example, its first token `offset` positions after the first."""
        embeddings, mask = self.embed(batch["input_ids"]), batch["attention_mask"]
        if "text_ids" in batch:
            embeddings, mask = embeddings[batch["text_ids"]], mask[batch["text_ids"]]
        first = self.first_position + offset
        positions = torch.arange(first, first + mask.shape[1], device=mask.device).expand_as(mask)
        return InputPart(embeddings, positions, torch.zeros_like(mask), mask)

    def prompt_part(self, rows: Tensor) -> InputPart:
        """Prompt rows [N, P, H], with positions only where the model cannot do without."""
        size, length = rows.shape[:2]
        mask = torch.ones(size, length, dtype=torch.long, device=rows.device)
        token_types = torch.full_like(mask, self.family.prompt_token_type)
        if self.family.needs_positions:
            positions = torch.arange(self.first_position, self.first_position + length, device=rows.device)
            return InputPart(rows, positions.expand(size, -1), token_types, mask)
        return InputPart(rows, torch.full_like(mask, -1), token_types, mask)


class MaskedAnswers(Answers):
    """An encoder scores the mask token that is its answer slot."""

    def answer_states(self, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
        text = self._answer_and_text(batch, prompts.length)
        first = torch.zeros(len(text.mask), dtype=torch.long, device=text.mask.device)
        if self.attention == "shared" and prompts.length:
            _, states = self.record(prompts)
            with self.answering(first, prompts):
                return self.stack.run_after_prompt(states, text, prompts.length, prompts.ids, slice(0, 1))[:, 0]
        prompt = self.prompt_part(prompts.of_examples(len(text.mask)))
        if self.layout.answer_first:
            whole = text.between(0, 1).joined(prompt).joined(text.between(1, None))
        else:
            whole = prompt.joined(text)
        place, start = self.layout.answer_index(prompts.length), int(self.layout.answer_first)
        rows = (start, start + prompts.length)
        with self.answering(first + place, prompts, rows):
            return self.stack.run_alone(whole, slice(place, place + 1), prompts.shared_rows(rows, batch, len(first)))[
                :, 0
            ]

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
    """A causal model scores what follows the last token. Its prompt never sees the text, so it runs once a batch."""

    def answer_states(self, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
        text = self.text_part(batch, prompts.length)
        return self._behind(prompts, text, text.mask.sum(dim=1, keepdim=True) - 1)[:, 0]

    def _behind(self, prompts: Prompts, text: InputPart, at: Tensor) -> Tensor:
        """States [B, S, H] of the text at `at` [B, S]; the first one is the answer slot."""
        if not prompts.length:
            with self.answering(at[:, 0], prompts):
                return self.stack.run_alone(text, at)
        _, states = self.record(prompts)
        with self.answering(at[:, 0], prompts):
            return self.stack.run_after_prompt(states, text, prompts.length, prompts.ids, at)

    def target_states(self, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
        ids, mask, targets = batch["input_ids"], batch["attention_mask"], batch["target_ids"]
        lengths, count = mask.sum(dim=1, keepdim=True), targets.shape[1]
        places = lengths + torch.arange(count, device=ids.device)
        written = (targets != IGNORED).long()
        # The target stands right behind each text; what is scattered where it has ended is masked.
        room = ids.new_full((len(ids), count), self.pad_token_id)
        joined = torch.cat([ids, room], dim=1).scatter(1, places, torch.where(written > 0, targets, self.pad_token_id))
        joined_mask = torch.cat([mask, torch.zeros_like(room)], dim=1).scatter(1, places, written)
        text = self.text_part({"input_ids": joined, "attention_mask": joined_mask}, prompts.length)
        return self._behind(prompts, text, places - 1)

    def generate(self, prompts: Prompts, batch: dict[str, Tensor], max_new_tokens: int, num_beams: int) -> Tensor:
        size = len(batch["input_ids"])
        settings = writing.settings(self.model, self.pad_token_id, max_new_tokens, num_beams)
        cache = DynamicCache(config=self.model.config)
        if not prompts.length or not writing.keeps_all(cache, self.family):
            # Pads stand before the prompt: distances between its rows and the text are the same for all examples.
            text = self.text_part(batch, prompts.length)
            embeddings = torch.cat([prompts.of_examples(size), text.embeddings], dim=1)
            mask = torch.cat([text.mask.new_ones(size, prompts.length), text.mask], dim=1)
            embeddings, mask = writing.pads_first(mask, embeddings, mask)
            return self.written(self.model.generate(None, settings, inputs_embeds=embeddings, attention_mask=mask))
        ids, mask = writing.pads_first(batch["attention_mask"], batch["input_ids"], batch["attention_mask"])
        _, states = self.record(prompts)
        self._fill(cache, states, prompts.repeated(num_beams), size * num_beams)
        # The first P ids stand for the prompt: they lie in the cache, so nobody looks them up.
        stand_in = ids.new_full((size, prompts.length), self.pad_token_id)
        mask = torch.cat([torch.ones_like(stand_in), mask], dim=1)
        ids = torch.cat([stand_in, ids], dim=1)
        sequences = self.model.generate(ids, settings, attention_mask=mask, past_key_values=cache)
        return self.written(sequences[:, ids.shape[1] :])

    @staticmethod
    def _fill(cache: DynamicCache, states: PromptStates, prompts: Prompts, examples: int) -> None:
        """Put the recorded keys and values of the prompt of each of `examples` rows into a cache."""
        for index, layer in enumerate(states.layers):
            keys, values = (select_prompts(recorded, prompts.ids, examples) for recorded in layer)
            cache.update(keys, values, index)


class Seq2SeqAnswers(Answers):
    """A sequence-to-sequence model has prompt and text in its encoder and scores the first step of its decoder."""

    def encoded(self, prompts: Prompts, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Encoder states [B, P + T, H] of prompt and text, and their mask [B, P + T]."""
        text = self.text_part(batch, prompts.length)
        size = len(text.mask)
        mask = torch.cat([text.mask.new_ones(size, prompts.length), text.mask], dim=1)
        if self.attention == "full" or not prompts.length:
            whole = self.prompt_part(prompts.of_examples(size)).joined(text)
            return self.stack.run_alone(whole, same=prompts.shared_rows((0, prompts.length), batch, size)), mask
        of_prompts, states = self.record(prompts)
        of_text = self.stack.run_after_prompt(states, text, prompts.length, prompts.ids)
        return torch.cat([Prompts(of_prompts, prompts.ids).of_examples(size), of_text], dim=1), mask

    def _decoded(self, ids: Tensor, encoded: Tensor, mask: Tensor, prompts: Prompts) -> Tensor:
        """Decoder states [B, S, H] of `ids` [B, S], scaled as the output layer takes them."""
        with self.answering(torch.zeros_like(ids[:, 0]), prompts):
            output = self.model.get_decoder()(
                input_ids=ids,
                encoder_hidden_states=encoded,
                encoder_attention_mask=self.stack.visible(mask),
                use_cache=False,
            )
        states = output.last_hidden_state
        # T5 v1.0 scales what enters its tied output layer; v1.1 and mT5 do not.
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
        # Each target token is predicted from those before it; pads come last, where nothing looks back at them.
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
        return self.written(sequences[:, 1:])


KINDS: dict[str, Callable[..., Answers]] = {
    "masked_lm": MaskedAnswers,
    "causal_lm": CausalAnswers,
    "seq2seq_lm": Seq2SeqAnswers,
}
