"""Training of the built-in backbones' tokenizers, and tokenization of the corpus."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")
# The unigram model's EM needs word statistics, not the whole corpus, and its time grows with the text.
UNIGRAM_CHARACTERS = 12_000_000
SENTINELS = 32


@dataclass(frozen=True)
class TokenizerKind:
    """A kind of tokenizer with the special tokens of its family.

    Attributes:
        specials: the special tokens, which get the first ids in this order.
        train: (texts, vocabulary size) -> tokenizer without a template.
        template: templates of a single text and of a pair; None adds no tokens.
        roles: keyword arguments of transformers' tokenizer that name the special tokens.
        sentinels: number of `<extra_id_...>` tokens at the end of the vocabulary, the first one last.
    """

    specials: tuple[str, ...]
    train: Callable[[Iterable[str], int], Tokenizer]
    template: tuple[str, str] | None
    roles: dict[str, str]
    sentinels: int = 0


def _byte_bpe(specials: tuple[str, ...]) -> Callable[[Iterable[str], int], Tokenizer]:
    def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
        tokenizer = Tokenizer(models.BPE(unk_token=None))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(specials),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer

    return train


def _word_piece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(KINDS["bert"].specials), limit_alphabet=200, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    def head() -> Iterable[str]:
        size = 0
        for text in texts:
            yield text
            size += len(text)
            if size > UNIGRAM_CHARACTERS:
                return

    tokenizer = Tokenizer(models.Unigram())
    # As in SentencePiece: no spaces at the ends, one between words. A trailing space would be a token.
    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), *spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - SENTINELS,
        special_tokens=list(KINDS["t5"].specials),
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(head(), trainer)
    # A small corpus gives fewer pieces than requested; the sentinels must still have the last ids.
    fill = vocab_size - SENTINELS - tokenizer.get_vocab_size()
    names = [f"<unused{i}>" for i in range(fill)] + [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
KINDS: dict[str, TokenizerKind] = {
    # The mask absorbs the space before it, as RoBERTa's does: "a <mask> film" has three words.
    "roberta": TokenizerKind(
        _ROBERTA,
        _byte_bpe(_ROBERTA),
        ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "cls_token": "<s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    ),
    "bert": TokenizerKind(
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        _word_piece,
        ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
        {
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
    ),
    "gpt2": TokenizerKind(
        ("<|endoftext|>",),
        _byte_bpe(("<|endoftext|>",)),
        None,
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    ),
    "t5": TokenizerKind(
        ("<pad>", "</s>", "<unk>"),
        _unigram,
        ("$A </s>", "$A </s> $B </s>"),
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        sentinels=SENTINELS,
    ),
}


def train_tokenizer(texts: Iterable[str], vocab_size: int, kind: str = "roberta") -> PreTrainedTokenizerFast:
    """Train a lower-cased tokenizer of the family `kind`, with its special tokens and pair template.

    Args:
        texts: training texts.
        vocab_size: V, special tokens and sentinels included.
        kind: a key of `KINDS`: byte-level BPE (`roberta`, `gpt2`), WordPiece (`bert`) or unigram pieces (`t5`).
    """
    row = KINDS[kind]
    tokenizer = row.train(texts, vocab_size)
    if row.template is not None:
        single, pair = row.template
        used = [token for token in row.specials if token in f"{single} {pair}".split()]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(token, row.specials.index(token)) for token in used]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **row.roles
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, np.ndarray]:
    """Tokenize texts into one stream.

    Returns:
        `tokens` uint16 [all tokens], `starts` int64 [sentences] (start of each sentence), `ends` int64 [sentences] (end
        of the text that contains it).
    """
    backend = tokenizer.backend_tokenizer
    tokens: list[np.ndarray] = []
    starts: list[int] = []
    ends: list[int] = []
    position = 0
    for chunk in range(0, len(texts), 2000):
        documents = [[s for s in SENTENCE_END.split(t) if s.strip()] for t in texts[chunk : chunk + 2000]]
        encoded = iter(backend.encode_batch_fast([s for d in documents for s in d], add_special_tokens=False))
        for document in documents:
            first = len(starts)
            for _ in document:
                ids = np.array(next(encoded).ids, dtype=np.uint16)
                starts.append(position)
                tokens.append(ids)
                position += len(ids)
            ends.extend([position] * (len(starts) - first))
    return {"tokens": np.concatenate(tokens), "starts": np.array(starts), "ends": np.array(ends)}
