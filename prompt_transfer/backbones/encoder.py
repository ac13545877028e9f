"""Tokenization of texts, with room for prompt and answer slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from prompt_transfer.backbones.special_tokens import ordinary_ids, special_tokens
from prompt_transfer.backbones.templates import Template, check_single_start, split_blank
from prompt_transfer.backbones.tokenization import Encode, continued, following, line_feed
from prompt_transfer.utils.errors import UserError

# With fewer positions the texts of a pair would be cut to a word or two.
MIN_TEXT_POSITIONS = 8
# Least tokens of text that special tokens, frame and cue must leave: one for each text of a pair.
MIN_TEXT_TOKENS = 2


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer for the input format of a kind of backbone.

    | kind | single text | pair |
    |---|---|---|
    | masked_lm | `<s> A </s>` | `<s> A </s> B </s>`, one separator as in release 1.0 |
    | seq2seq_lm | `A </s>` | `A </s> B </s>` |
    | causal_lm | `A cue` | `A`, newline, `B cue`: the last token is the answer slot |

    With a `Template`, its words replace the cue, the newline and the separators between texts. They are tokenized as in
    the whole string, special tokens included; an encoder's `<s>` and last `</s>` and a seq2seq model's end token stay.

    A causal model's input begins with `start`. An input without any token is replaced by the placeholder of
    `without_text`, which then is the answer slot.

    Attributes:
        tokenizer: the backbone's tokenizer.
        kind: kind of backbone.
        separators: number of separators between the texts of a pair.
        prompt_length: P.
        max_positions: the backbone's longest input.
        fingerprint: distinguishes encoders that give different ids.
        start: ids before a causal model's text (layout `start_answer_last`).
        beyond: id -> token of tokens without a word embedding, which texts must not contain.
        split_special_tokens: read special tokens in texts (not in cues and frames) as ordinary characters.
    """

    tokenizer: PreTrainedTokenizerBase
    kind: str
    separators: int
    prompt_length: int
    max_positions: int
    fingerprint: str
    start: tuple[int, ...] = ()
    beyond: Mapping[int, str] = field(default_factory=dict)
    split_special_tokens: bool = False

    def splitting(self) -> TextEncoder:
        """Return an encoder that reads special tokens in texts as ordinary characters."""
        return replace(self, fingerprint=f"{self.fingerprint}-split", split_special_tokens=True)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokens that a text may contain and that are not read as ordinary characters."""
        return special_tokens(self.tokenizer)

    @property
    def pad_token_id(self) -> int:
        """The id for padding, which is masked: the end token if there is no pad token with an embedding."""
        tokenizer = self.tokenizer
        for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
            if token_id is not None and token_id not in self.beyond:
                return token_id
        return 0

    @property
    def extra_positions(self) -> int:
        """Number of positions of prompt and answer slot; only an encoder's answer slot is a separate token."""
        return self.prompt_length + int(self.kind == "masked_lm")

    @property
    def targets_share_positions(self) -> bool:
        """Whether a target text follows the input text in the same sequence."""
        return self.kind == "causal_lm"

    def text_budget(self) -> int:
        """Return the number of positions for text, special tokens included.

        Raises:
            UserError: the prompt is too long.
        """
        budget = self.max_positions - self.extra_positions
        if budget < MIN_TEXT_POSITIONS:
            longest = self.max_positions - (self.extra_positions - self.prompt_length) - MIN_TEXT_POSITIONS
            raise UserError(
                f"a prompt of {self.prompt_length} tokens is too long: prompt and answer slot take "
                f"{self.extra_positions} of the backbone's {self.max_positions} positions, and text needs at least "
                f"{MIN_TEXT_POSITIONS}; use --model.prompt_length {longest} or less"
            )
        return budget

    def encode(
        self,
        text_a: list[str],
        text_b: list[str] | None,
        max_length: int,
        cue: str = "",
        seq2seq_frame: tuple[str, str] | None = None,
        template: Template | None = None,
    ) -> list[list[int]]:
        """Return the token ids of each example with special tokens, at most `max_length`.

        Longer texts are truncated at the end; in a pair the longer text is truncated first. The cue, the words before a
        causal model's answer, the frame of a seq2seq model and the words of a `template` (`resolved`), which replaces
        both, are never truncated.

        Raises:
            UserError: a text contains a token without a word embedding, or `max_length` leaves too little text.
        """
        start, between, end = self._frame(cue, seq2seq_frame, template)
        room = self.text_room(max_length, text_b is not None, cue, seq2seq_frame, template)
        if template is not None:
            if text_b is not None and template.swapped:
                text_a, text_b = text_b, text_a
            return self._readable(self._filled((start, between, end), template, text_a, text_b, room))
        first = self._text_ids(text_a)
        if text_b is None:
            return self._readable([[*start, *ids[:room], *end] for ids in first])
        encoded = []
        for a, b in zip(first, self._continued(text_b, self._text_ids), strict=True):
            length_a, length_b = shorten(len(a), len(b), room)
            encoded.append([*start, *a[:length_a], *between, *b[:length_b], *end])
        return self._readable(encoded)

    def _filled(
        self,
        words: tuple[list[int], list[int], list[int]],
        template: Template,
        first: list[str],
        second: list[str] | None,
        room: int,
    ) -> list[list[int]]:
        """Return the ids of a template filled with texts, which are truncated to `room` tokens."""
        start, between, end = words
        kept, blank = split_blank(template.before)
        first = [blank + text for text in first]
        encoded_a = following(self._text_ids, first) if kept else self._text_ids(first)
        if second is None:
            return [[*start, *ids[:room], *end] for ids in encoded_a]
        blank = split_blank(template.between)[1]
        encoded_b = following(self._text_ids, [blank + text for text in second])
        encoded = []
        for a, b in zip(encoded_a, encoded_b, strict=True):
            length_a, length_b = shorten(len(a), len(b), room)
            encoded.append([*start, *a[:length_a], *between, *b[:length_b], *end])
        return encoded

    def resolved(self, template: Template | None) -> Template | None:
        """Return a template for this backbone: a chat template is rendered.

        Raises:
            UserError: a chat template, but the backbone is not causal or its tokenizer has none.
        """
        if template is None or not template.chat:
            return template
        if self.kind != "causal_lm":
            raise UserError(f"a chat template is for causal backbones, but this one is {self.kind}: leave it out")
        return template.with_chat(self.tokenizer)

    def text_room(
        self,
        max_length: int,
        pairs: bool,
        cue: str = "",
        seq2seq_frame: tuple[str, str] | None = None,
        template: Template | None = None,
    ) -> int:
        """Return the number of tokens that `max_length` leaves for the text, or for both texts of a pair.

        Raises:
            UserError: fewer than `MIN_TEXT_TOKENS`.
        """
        start, between, end = self._frame(cue, seq2seq_frame, template)
        taken = len(start) + len(end) + (len(between) if pairs else 0)
        if max_length - taken >= MIN_TEXT_TOKENS:
            return max_length - taken
        parts, cut = f"special tokens ({taken})", ""
        if template is not None:
            parts, cut = f"the template and special tokens ({taken})", "a shorter template"
        elif self.kind == "causal_lm" and cue:
            parts, cut = f"the cue ({len(end)}) and special tokens ({taken - len(end)})", "a shorter cue"
        elif self.kind == "seq2seq_lm" and seq2seq_frame is not None:
            parts, cut = f"the frame and special tokens ({taken})", "a shorter frame"
        needed = taken + MIN_TEXT_TOKENS
        longer = f"--data.max_length {needed} or more" if needed <= self.text_budget() else ""
        remedy = " or ".join(filter(None, (longer, cut))) or "a shorter --model.prompt_length"
        raise UserError(
            f"{parts} leave {max(max_length - taken, 0)} of a max_length of {max_length} tokens for text, at least "
            f"{MIN_TEXT_TOKENS} are needed; use {remedy}"
        )

    def without_text(self) -> list[int]:
        """Return the placeholder ids for a missing text, for a prompt that is evaluated without data.

        As in release 1.0 of Su et al.: an encoder's first special token, or T5's first sentinel (its end token if there
        is no sentinel). Causal models, which are not in that release, get the start token, or else the end token.
        """
        tokenizer = self.tokenizer
        if self.start:
            return list(self.start)
        if self.kind == "masked_lm":
            return [tokenizer.cls_token_id]
        if self.kind == "seq2seq_lm":
            sentinel = tokenizer.get_vocab().get("<extra_id_0>")
            return [tokenizer.eos_token_id if sentinel is None else sentinel]
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, self.pad_token_id)
        return [next(token_id for token_id in ends if token_id is not None)]

    def encode_targets(self, texts: list[str], max_length: int, template: Template | None = None) -> list[list[int]]:
        """Return the token ids of target texts, each with the end token, at most `max_length`.

        Raises:
            UserError: a text contains a token without a word embedding, or the tokenizer has no end token.
        """
        end = self.end_token_id()
        return [[*ids[: max_length - 1], end] for ids in self.answer_ids(texts, template)]

    def is_spaced(self, template: Template | None) -> bool:
        """Whether a blank precedes the answer: not in causal models after a template that ends in a line feed."""
        resolved = self.resolved(template) if self.kind == "causal_lm" else None
        return resolved is None or resolved.answer_is_spaced

    def answer_ids(self, texts: list[str], template: Template | None = None) -> list[list[int]]:
        """Return the token ids of target texts without the end token; `template` precedes them in a causal model.

        Raises:
            UserError: a text contains a token without a word embedding.
        """
        if self.is_spaced(template):
            return self._checked(self._continued(texts, self._text_ids))
        return self._checked(following(self._text_ids, [text.strip() for text in texts]))

    def end_token_id(self) -> int:
        """Return the id of the token that ends a generated text.

        Raises:
            UserError: the tokenizer has none.
        """
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "the backbone's tokenizer has no end token (eos_token), so a generated text could not end: use a "
                "backbone whose tokenizer has one, or set eos_token in its tokenizer_config.json"
            )
        return self.tokenizer.eos_token_id

    def _continued(self, texts: list[str], encode: Encode) -> list[list[int]]:
        """Return the token ids of texts that follow other text; only causal models read them as a continuation."""
        return continued(encode, [f" {text.strip()}" for text in texts]) if self.kind == "causal_lm" else encode(texts)

    def _readable(self, rows: list[list[int]]) -> list[list[int]]:
        """Return the rows with the placeholder for empty ones, after `_checked`."""
        return self._checked([row or self.without_text() for row in rows])

    def _checked(self, rows: list[list[int]]) -> list[list[int]]:
        """Return the rows after a check that all tokens have embeddings."""
        found = next((index for row in rows for index in row if index in self.beyond), None) if self.beyond else None
        if found is not None:
            raise UserError(
                f"a text contains {self.beyond[found]!r}, token {found} of the tokenizer, for which the backbone has "
                "no word embedding: remove it from the texts, read it as ordinary characters (--data.special_tokens "
                "split), or use a checkpoint whose embeddings were resized for it"
            )
        return rows

    def _frame(
        self, cue: str, seq2seq_frame: tuple[str, str] | None, template: Template | None = None
    ) -> tuple[list[int], list[int], list[int]]:
        """Return the ids before, between and after the texts."""
        tokenizer = self.tokenizer
        if template is not None:
            return self._template_frame(template)
        if self.kind == "masked_lm":
            separator = tokenizer.sep_token_id
            return [tokenizer.cls_token_id], [separator] * self.separators, [separator]
        if self.kind == "seq2seq_lm" and seq2seq_frame is not None:
            before, middle = self._ids(list(seq2seq_frame))
            return before, middle, [tokenizer.eos_token_id]
        if self.kind == "seq2seq_lm":
            return [], [tokenizer.eos_token_id] * self.separators, [tokenizer.eos_token_id]
        # Without a cue the text's last token is the answer slot.
        end = self._continued([cue], self._ids)[0] if cue else []
        return list(self.start), line_feed(tokenizer, self._ids), end

    def _template_frame(self, template: Template) -> tuple[list[int], list[int], list[int]]:
        """Return the ids before, between and after the texts of a template."""
        tokenizer, before = self.tokenizer, split_blank(template.before)[0]
        between = split_blank(template.between)[0]
        # The answer brings its own blank.
        after = template.after.rstrip(" ") if self.kind == "causal_lm" else template.after
        start = self._ids([before])[0] if before else []
        middle, end = (following(self._ids, [words])[0] if words else [] for words in (between, after))
        if self.kind == "masked_lm":
            return [tokenizer.cls_token_id, *start], middle, [*end, tokenizer.sep_token_id]
        if self.kind == "seq2seq_lm":
            return start, middle, [*end, tokenizer.eos_token_id]
        return [*self.start, *check_single_start(start, self.start)], middle, end

    def _text_ids(self, texts: list[str]) -> list[list[int]]:
        return ordinary_ids(self.tokenizer, texts) if self.split_special_tokens else self._ids(texts)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def shorten(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """Return the lengths of two texts truncated to `room` in total: first the longer one, then both evenly."""
    if length_a + length_b <= room:
        return length_a, length_b
    shorter = min(length_a, length_b)
    kept = min(shorter, room // 2)
    return (kept, room - kept) if length_a <= length_b else (room - kept, kept)
