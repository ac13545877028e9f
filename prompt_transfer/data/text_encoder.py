"""The interface of a backbone's text encoder that the data need."""

from __future__ import annotations

from typing import Protocol, Self

from prompt_transfer.backbones.templates import Template


class TextEncoder(Protocol):
    """The interface of a backbone that the data need; implemented by `FrozenBackbone.encoder(prompt_length)`.

    Attributes:
        pad_token_id: padding of `input_ids`.
        extra_positions: positions of prompt and answer slot, P + 1.
        fingerprint: distinguishes encoders that give different ids.
        targets_share_positions: optional, True if a target follows its text in the same positions (causal models); the
            text is then shortened to fit both. By default targets take no positions of the text.
        special_tokens: optional, tokens that are control tokens inside a text.
        text_room, end_token_id: optional, checks before any row is read: whether a length leaves room for text besides
            cue and frame, and whether there is an end token (`TextEncoder` of `prompt_transfer.backbones.encoder`).
    """

    @property
    def pad_token_id(self) -> int: ...
    @property
    def extra_positions(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def text_budget(self) -> int:
        """Return the positions left for text, special tokens included."""
        ...

    def splitting(self) -> Self:
        """Return an encoder that reads special tokens in texts as ordinary characters."""
        ...

    def encode(
        self,
        text_a: list[str],
        text_b: list[str] | None,
        max_length: int,
        cue: str = "",
        seq2seq_frame: tuple[str, str] | None = None,
        template: Template | None = None,
    ) -> list[list[int]]:
        """Return the token ids of each example with special tokens, at most `max_length`; causal models append `cue`,
        seq2seq models put the frame before the first text and between the two; a `template` replaces both.
        """
        ...

    def resolved(self, template: Template | None) -> Template | None:
        """Return a template with the tokenizer's chat template filled in."""
        ...

    def answer_ids(self, texts: list[str], template: Template | None = None) -> list[list[int]]:
        """Return the token ids of options, without an end token, as they follow `template`."""
        ...

    def encode_targets(self, texts: list[str], max_length: int, template: Template | None = None) -> list[list[int]]:
        """Return the token ids of target texts, at most `max_length` including the end token, which is always kept."""
        ...
