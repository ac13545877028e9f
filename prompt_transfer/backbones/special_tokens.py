"""Special tokens such as `</s>` in users' texts: finding them, and tokenizing them as ordinary characters."""

from __future__ import annotations

import re
from functools import cache

from transformers import PreTrainedTokenizerBase

from prompt_transfer.utils.errors import UserError


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the special tokens that the tokenizer recognizes in a text, longest first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added | set(tokenizer.all_special_tokens), key=lambda token: (-len(token), token)))


@cache
def pattern_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Compile a pattern that matches any of `tokens` (see `special_tokens`)."""
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def ordinary_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts, with special tokens read as ordinary characters.

    Raises:
        UserError: the tokenizer is not a fast one; only those map tokens to characters.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "--data.special_tokens split needs a fast tokenizer, but the backbone has a slow one: use keep, or remove "
            "the special tokens from the texts"
        )
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    options["split_special_tokens"] = True
    rows = tokenizer(texts, **options)["input_ids"]
    # A unigram vocabulary also contains the special tokens as ordinary pieces, so split those here.
    pattern = pattern_of(special_tokens(tokenizer))
    again = [row for row, text in enumerate(texts) if pattern.search(text)]
    if not again:
        return rows
    found = tokenizer([texts[row] for row in again], return_offsets_mapping=True, **options)
    whole = re.compile(f"(?:{pattern.pattern})+")
    for row, ids, spans in zip(again, found["input_ids"], found["offset_mapping"], strict=True):
        pieces = zip(ids, (texts[row][first:end] for first, end in spans), strict=True)
        rows[row] = [
            part
            for token_id, piece in pieces
            for part in (tokenizer.convert_tokens_to_ids(list(piece)) if whole.fullmatch(piece) else [token_id])
        ]
    return rows
