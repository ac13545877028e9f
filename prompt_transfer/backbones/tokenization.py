"""Differences between tokenizers: start tokens, leading spaces, tokens without a word embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Encodes texts to token ids, without special tokens.
Encode = Callable[[list[str]], list[list[int]]]

# A letter, which no tokenizer merges with a following space or newline.
ANCHOR = "a"
SENTENCEPIECE_BLANK = "▁"


def continued(encode: Encode, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts that continue another text.

    SentencePiece-BPE tokenizers (Llama 2, TinyLlama) add a space before every input, so " terrible" alone would begin
    with two. Each text is therefore encoded after an anchor word, whose ids are dropped. If the ids do not begin with
    those of the anchor, the text is encoded alone.

    Args:
        encode: encoder without special tokens.
        texts: each begins with the space that separates it from the previous text.
    """
    (anchor,) = encode([ANCHOR])
    found = []
    for text, ids in zip(texts, encode([ANCHOR + text for text in texts]), strict=True):
        begins = ids[: len(anchor)] == anchor
        found.append(ids[len(anchor) :] if begins else encode([text])[0])
    return found


def line_feed(tokenizer: PreTrainedTokenizerBase, encode: Encode) -> list[int]:
    """Return the token ids of a newline between two texts, without SentencePiece's leading space.

    The space of byte-level tokenizers with `add_prefix_space` is kept: the built-in GPT was pretrained with it.
    """
    (alone,) = encode(["\n"])
    blank = tokenizer.convert_ids_to_tokens(alone[:1]) == [SENTENCEPIECE_BLANK]
    return continued(encode, ["\n"])[0] if blank else alone


def continues_differently(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a text is tokenized differently if it continues another text."""

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    probes = [f" {ANCHOR}", "\n"]
    return [continued(encode, probes[:1])[0], line_feed(tokenizer, encode)] != encode(probes)


def start_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special tokens that a tokenizer adds before every text (start token of Llama, OPT, Gemma), if any."""
    text = tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]
    whole = tokenizer(ANCHOR)["input_ids"]
    for place in range(len(whole) - len(text) + 1):
        if text and whole[place : place + len(text)] == text:
            return tuple(whole[:place])
    return ()


def tokens_beyond(tokenizer: PreTrainedTokenizerBase, embeddings: int) -> dict[int, str]:
    """Return the tokens without a word embedding in a model with `embeddings` of them: id -> token, sorted by id."""
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= embeddings}
    return dict(sorted(beyond.items()))


# Special tokens that a kind of backbone reads or generates, or that a tokenizer may produce for any text.
_NEEDED = {
    "masked_lm": ("unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id"),
    "causal_lm": ("unk_token_id", "eos_token_id"),
    "seq2seq_lm": ("unk_token_id", "eos_token_id"),
}


def check_tokenizer(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    """Check that a tokenizer belongs to the model.

    Unused special tokens, such as an added pad token, may lack a word embedding.

    Raises:
        UserError: no tokenizer, or a used token without a word embedding.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    ordinary = len(tokenizer) - len(tokenizer.all_special_ids)
    if ordinary < 2:
        raise UserError(
            f"the backbone {name} has no tokenizer (transformers returned an empty one): add its tokenizer files"
        )
    needed = {getattr(tokenizer, key) for key in _NEEDED[kind]} | set(start_ids(tokenizer))
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special} - needed
    beyond = tokens_beyond(tokenizer, rows)
    lost = [token for index, token in beyond.items() if index not in special]
    if lost:
        raise UserError(
            f"tokenizer and model of {name} do not match: {len(tokenizer)} tokens, {rows} word embeddings, none for "
            f"{lost[0]!r}; use the tokenizer of the checkpoint, or resize the model's embeddings"
        )


def following(encode: Encode, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts that follow other words, as `continued`, also without a space between.

    A text that begins with a letter or mark is encoded after a newline, with which no tokenizer merges it.
    """
    anchors = [ANCHOR if text[:1].isspace() else "\n" for text in texts]
    ids_of = {anchor: encode([anchor])[0] for anchor in set(anchors)}
    found = []
    joined = encode([anchor + text for anchor, text in zip(anchors, texts, strict=True)])
    for anchor, text, ids in zip(anchors, texts, joined, strict=True):
        own = ids_of[anchor]
        found.append(ids[len(own) :] if ids[: len(own)] == own else encode([text])[0])
    return found


def word_pieces(tokenizer: Any, text: str, spaced: bool = True) -> list[int]:
    """Return the token ids of `text` inside a sentence: with a leading space, without special tokens.

    `spaced` False: after a line feed, without the space.

    Byte-level BPE (RoBERTa, GPT) has different tokens for " great" and "great"; WordPiece ignores the space. Tokenizers
    that add a space before every input do not add a second one here (see `continued`).
    """

    def encode(texts: list[str]) -> list[list[int]]:
        return [tokenizer.encode(one, add_special_tokens=False) for one in texts]

    return continued(encode, [f" {text.strip()}"])[0] if spaced else following(encode, [text.strip()])[0]
