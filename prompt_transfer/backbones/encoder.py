"""Texts to token ids, with room left for prompt and answer slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from prompt_transfer.backbones.special_tokens import ordinary_ids, special_tokens
from prompt_transfer.backbones.tokenization import Encode, continued, line_feed
from prompt_transfer.utils.errors import UserError

# Below this a text of a pair would be cut to a word or two.
MIN_TEXT_POSITIONS = 8


@dataclass(frozen=True)
class TextEncoder:
    """Tokenises texts as the kind of backbone takes them.

    | kind | single text | pair |
    |---|---|---|
    | masked_lm | `<s> A </s>` | `<s> A </s> B </s>`, one separator as in release 1.0 |
    | seq2seq_lm | `A </s>` | `A </s> B </s>` |
    | causal_lm | `A cue` | `A`, newline, `B cue`: the last token is the answer slot |

    A causal model reads `start` before all that. Where no token is left, neither of text nor of a frame, it reads the
    token that stands for no text (`without_text`), which then is the answer slot.

    Attributes:
        tokenizer: the backbone's.
        kind: of the backbone.
        separators: separators between the texts of a pair.
        prompt_length: P, rows of the prompt that will stand before the text.
        max_positions: positions that the backbone has.
        fingerprint: tells encoders apart that give different ids.
        start: ids before a causal model's text (layout `start_answer_last`).
        beyond: tokens that the model has no embedding of, id -> token; a text must not hold them.
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
        """The tokens that mean something else in a text than their characters."""
        return special_tokens(self.tokenizer)

    @property
    def pad_token_id(self) -> int:
        """What fills up rows; it is masked, so the end token will do where there is no pad with an embedding."""
        tokenizer = self.tokenizer
        for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
            if token_id is not None and token_id not in self.beyond:
                return token_id
        return 0

    @property
    def extra_positions(self) -> int:
        """Positions that prompt and answer slot take; only an encoder's answer slot is a token of its own."""
        return self.prompt_length + int(self.kind == "masked_lm")

    @property
    def targets_share_positions(self) -> bool:
        """Whether a text to be written stands behind the text that is read, on positions of the same kind."""
        return self.kind == "causal_lm"

    def text_budget(self) -> int:
        """Positions left for text, special tokens counted.

        Raises:
            UserError: the prompt leaves no room.
        """
        budget = self.max_positions - self.extra_positions
        if budget < MIN_TEXT_POSITIONS:
            longest = self.max_positions - (self.extra_positions - self.prompt_length) - MIN_TEXT_POSITIONS
            raise UserError(
                f"a prompt of {self.prompt_length} tokens is too long: of the backbone's {self.max_positions} "
                f"positions prompt and answer slot take {self.extra_positions}, and text needs {MIN_TEXT_POSITIONS} at "
                f"least; use --model.prompt_length {longest} or less"
            )
        return budget

    def encode(
        self,
        text_a: list[str],
        text_b: list[str] | None,
        max_length: int,
        cue: str = "",
        seq2seq_frame: tuple[str, str] | None = None,
    ) -> list[list[int]]:
        """Token ids of each example with special tokens, at most `max_length` of them.

        What is too long loses tokens at its end; of a pair the longer text loses first. The cue, the words that a
        causal model reads before it answers, is never cut, nor is the frame of a seq2seq model.

        Raises:
            UserError: a text holds a token that the model has no embedding of.
        """
        start, between, end = self._frame(cue, seq2seq_frame)
        room = max(max_length - len(start) - len(end), 0)
        first = self._text_ids(text_a)
        if text_b is None:
            return self._readable([[*start, *ids[:room], *end] for ids in first])
        room = max(room - len(between), 0)
        encoded = []
        for a, b in zip(first, self._continued(text_b, self._text_ids), strict=True):
            length_a, length_b = shorten(len(a), len(b), room)
            encoded.append([*start, *a[:length_a], *between, *b[:length_b], *end])
        return self._readable(encoded)

    def without_text(self) -> list[int]:
        """The ids that stand where a text would when a prompt is looked at alone, without any data.

        As release 1.0 of Su et al. has it: an encoder's first special token, the first sentinel for the encoder of T5
        (its end token where there is none). A causal model, which they did not look at, gets its start token, or its
        end token where it has no other.
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

    def encode_targets(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Token ids of texts to be written, each with the end token, at most `max_length` of them.

        Raises:
            UserError: a text holds a token that the model has no embedding of.
        """
        end = self.tokenizer.eos_token_id
        return self._readable([[*ids[: max_length - 1], end] for ids in self._continued(texts, self._text_ids)])

    def _continued(self, texts: list[str], encode: Encode) -> list[list[int]]:
        """Return the token ids of texts that follow others: as a continuation for causal models only."""
        return continued(encode, [f" {text.strip()}" for text in texts]) if self.kind == "causal_lm" else encode(texts)

    def _readable(self, rows: list[list[int]]) -> list[list[int]]:
        """The rows, each with a token at least, all of which the model knows."""
        rows = [row or self.without_text() for row in rows]
        found = next((index for row in rows for index in row if index in self.beyond), None) if self.beyond else None
        if found is not None:
            raise UserError(
                f"a text holds {self.beyond[found]!r}, token {found} of the tokenizer, for which the backbone has no "
                "word embedding: take it out of the texts, read it as ordinary characters (--data.special_tokens "
                "split), or use a checkpoint whose embeddings were resized for it"
            )
        return rows

    def _frame(self, cue: str, seq2seq_frame: tuple[str, str] | None) -> tuple[list[int], list[int], list[int]]:
        """What stands before, between and after the texts."""
        tokenizer = self.tokenizer
        if self.kind == "masked_lm":
            separator = tokenizer.sep_token_id
            return [tokenizer.cls_token_id], [separator] * self.separators, [separator]
        if self.kind == "seq2seq_lm" and seq2seq_frame is not None:
            before, middle = self._ids(list(seq2seq_frame))
            return before, middle, [tokenizer.eos_token_id]
        if self.kind == "seq2seq_lm":
            return [], [tokenizer.eos_token_id] * self.separators, [tokenizer.eos_token_id]
        # Without a cue the last token of the text is the answer slot.
        end = self._continued([cue], self._ids)[0] if cue else []
        return list(self.start), line_feed(tokenizer, self._ids), end

    def _text_ids(self, texts: list[str]) -> list[list[int]]:
        return ordinary_ids(self.tokenizer, texts) if self.split_special_tokens else self._ids(texts)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def shorten(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """Lengths of two texts that share `room`: the longer is cut first, then both evenly."""
    if length_a + length_b <= room:
        return length_a, length_b
    shorter = min(length_a, length_b)
    kept = min(shorter, room // 2)
    return (kept, room - kept) if length_a <= length_b else (room - kept, kept)
