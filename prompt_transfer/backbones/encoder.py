"""Texts to token ids, with room left for prompt and answer slot."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from prompt_transfer.errors import UserError

# Below this a text of a pair would be cut to a word or two.
MIN_TEXT_POSITIONS = 8


@dataclass(frozen=True)
class TextEncoder:
    """Tokenises single texts as `<s> A </s>` and pairs as `<s> A </s> B </s>` (one separator, as in release 1.0).

    Attributes:
        tokenizer: the backbone's.
        separators: separators between the texts of a pair.
        prompt_length: P, rows of the prompt that will stand before the text.
        max_positions: positions that the backbone has.
        fingerprint: tells encoders apart that give different ids.
    """

    tokenizer: PreTrainedTokenizerBase
    separators: int
    prompt_length: int
    max_positions: int
    fingerprint: str

    @property
    def pad_token_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def extra_positions(self) -> int:
        """Positions that prompt and answer slot take."""
        return self.prompt_length + 1

    def text_budget(self) -> int:
        """Positions left for text, special tokens counted.

        Raises:
            UserError: the prompt leaves no room.
        """
        budget = self.max_positions - self.extra_positions
        if budget < MIN_TEXT_POSITIONS:
            longest = self.max_positions - 1 - MIN_TEXT_POSITIONS
            raise UserError(
                f"a prompt of {self.prompt_length} tokens is too long: of the backbone's {self.max_positions} "
                f"positions prompt and answer slot take {self.extra_positions}, and text needs {MIN_TEXT_POSITIONS} at "
                f"least; use --model.prompt_length {longest} or less"
            )
        return budget

    def encode(self, text_a: list[str], text_b: list[str] | None, max_length: int, cue: str = "") -> list[list[int]]:
        """Token ids of each example with special tokens, at most `max_length` of them.

        What is too long loses tokens at its end; of a pair the longer text loses first.
        """
        start = self.tokenizer.cls_token_id
        end = self.tokenizer.sep_token_id
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        first = self.tokenizer(text_a, **options)["input_ids"]
        if text_b is None:
            return [[start, *ids[: max_length - 2], end] for ids in first]
        room = max_length - 2 - self.separators
        encoded = []
        for a, b in zip(first, self.tokenizer(text_b, **options)["input_ids"], strict=True):
            length_a, length_b = shorten(len(a), len(b), room)
            encoded.append([start, *a[:length_a], *[end] * self.separators, *b[:length_b], end])
        return encoded


def shorten(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """Lengths of two texts that share `room`: the longer is cut first, then both evenly."""
    if length_a + length_b <= room:
        return length_a, length_b
    shorter = min(length_a, length_b)
    kept = min(shorter, room // 2)
    return (kept, room - kept) if length_a <= length_b else (room - kept, kept)
