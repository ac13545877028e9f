"""What tokenizers do beside looking pieces up: start tokens, blanks before texts, tokens that a model has none of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Texts to token ids without special tokens.
Encode = Callable[[list[str]], list[list[int]]]

# A letter: no tokenizer merges it with the blank or line feed that follows.
ANCHOR = "a"
SENTENCEPIECE_BLANK = "▁"


def continued(encode: Encode, texts: list[str]) -> list[list[int]]:
    """Token ids of texts that continue another text: those that each adds to a word before it.

    SentencePiece-BPE tokenizers (Llama 2, TinyLlama) put a blank before whatever they are given: alone, " terrible"
    would begin with two. So each text is encoded after a word, the anchor, and the anchor's ids are dropped. Where the
    ids do not begin with those of the anchor, the text is encoded alone.

    Args:
        encode: gives ids without special tokens.
        texts: each begins with the blank that parts it from what is before.
    """
    (anchor,) = encode([ANCHOR])
    found = []
    for text, ids in zip(texts, encode([ANCHOR + text for text in texts]), strict=True):
        begins = ids[: len(anchor)] == anchor
        found.append(ids[len(anchor) :] if begins else encode([text])[0])
    return found


def line_feed(tokenizer: PreTrainedTokenizerBase, encode: Encode) -> list[int]:
    """Token ids of a line feed between two texts, without the blank that SentencePiece puts before it.

    The blank of byte-level tokenizers with `add_prefix_space` stays: the built-in GPT was pretrained with it.
    """
    (alone,) = encode(["\n"])
    blank = tokenizer.convert_ids_to_tokens(alone[:1]) == [SENTENCEPIECE_BLANK]
    return continued(encode, ["\n"])[0] if blank else alone


def continues_differently(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text that continues another one has other ids than alone."""

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    probes = [f" {ANCHOR}", "\n"]
    return [continued(encode, probes[:1])[0], line_feed(tokenizer, encode)] != encode(probes)


def start_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that a tokenizer puts before every text (the start token of Llama, OPT, Gemma); often none."""
    text = tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]
    whole = tokenizer(ANCHOR)["input_ids"]
    for place in range(len(whole) - len(text) + 1):
        if text and whole[place : place + len(text)] == text:
            return tuple(whole[:place])
    return ()


def tokens_beyond(tokenizer: PreTrainedTokenizerBase, embeddings: int) -> dict[int, str]:
    """Tokens that a model with so many word embeddings has none of: id -> token, in the order of ids."""
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= embeddings}
    return dict(sorted(beyond.items()))


# Special tokens that a kind of backbone reads or writes, or that any text may be turned into.
_NEEDED = {
    "masked_lm": ("unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id"),
    "causal_lm": ("unk_token_id", "eos_token_id"),
    "seq2seq_lm": ("unk_token_id", "eos_token_id"),
}


def check_tokenizer(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    """Refuse a tokenizer of another model. Special tokens that nothing uses may lack an embedding: an added pad, say.

    Raises:
        UserError: no tokenizer, or an ordinary or a needed token without a word embedding.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    ordinary = len(tokenizer) - len(tokenizer.all_special_ids)
    if ordinary < 2:
        raise UserError(
            f"the backbone {name} has no tokenizer (transformers made an empty one): add its tokenizer files"
        )
    needed = {getattr(tokenizer, key) for key in _NEEDED[kind]} | set(start_ids(tokenizer))
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special} - needed
    beyond = tokens_beyond(tokenizer, rows)
    lost = [token for index, token in beyond.items() if index not in special]
    if lost:
        raise UserError(
            f"tokenizer and model of {name} do not belong together: {len(tokenizer)} tokens, {rows} word embeddings, "
            f"none for {lost[0]!r}; use the tokenizer of the checkpoint, or resize the model's embeddings"
        )


def word_pieces(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` as it stands inside a sentence: with a blank before it, without special tokens.

    Byte-level BPE (RoBERTa, GPT) has one token for " great" and another for "great"; for WordPiece the blank makes no
    difference. Tokenizers that put a blank before every text put none before this one (`continued`).
    """

    def encode(texts: list[str]) -> list[list[int]]:
        return [tokenizer.encode(one, add_special_tokens=False) for one in texts]

    return continued(encode, [f" {text.strip()}"])[0]
