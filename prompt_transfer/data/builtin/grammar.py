"""Slot filling, seeding and row assembly for the built-in tasks."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

SPLIT_SIZES = {"train": 2000, "validation": 400, "test": 600}
"""Rows of each split of every built-in task."""

Banks = Mapping[str, Sequence[str]]
Row = dict[str, Any]
Writer = Callable[[random.Random, random.Random, str, int, int], tuple[str, str]]
"""`(words, scene, split, label, turn) -> (text_a, text_b)`. `turn` counts the rows of a label and picks the template;
`scene` draws the words without a label and is equal for equal turns; `words` draws the label-carrying words. So row
`turn` of one class differs from row `turn` of another in label-carrying words only."""

TextWriter = Callable[[random.Random, str, int], tuple[str, str, list[str]]]
"""`(random, split, turn) -> (text_a, text_b, targets)`, for generation; `turn` counts rows and picks the template."""

_SLOT = re.compile(r"\{([a-z_]+)(\d*)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")


def seeded(*parts: str) -> random.Random:
    """Return a generator seeded by text: the same in every process and under every hash seed."""
    return random.Random(zlib.crc32("/".join(parts).encode()))


def fill(template: str, banks: Banks, rng: random.Random, chosen: dict[str, str] | None = None) -> str:
    """Fill `{slot}` from the bank of that name; `{slot2}` draws another word, a repeated `{slot}` repeats its word.

    `chosen` (slot -> word) is read and extended, so two templates filled with one `chosen` agree on their slots. A slot
    without a bank or chosen word is left for a later call.
    """
    chosen = {} if chosen is None else chosen

    def word(match: re.Match[str]) -> str:
        slot, bank = match.group(1) + match.group(2), match.group(1)
        if slot not in chosen:
            if bank not in banks:
                return match.group()
            taken = set(chosen.values())
            chosen[slot] = rng.choice([w for w in banks[bank] if w not in taken])
        return chosen[slot]

    return _SLOT.sub(word, template)


def sentence(text: str) -> str:
    """Put `an` before vowels and a capital at the start of every sentence."""
    text = _ARTICLE.sub(r"\1n ", text)
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def split_words(train: str, validation: str, test: str) -> dict[str, tuple[str, ...]]:
    """Return a mapping from split to words, given three space-separated lists."""
    return {"train": tuple(train.split()), "validation": tuple(validation.split()), "test": tuple(test.split())}


def merged(*banks: Iterable[str]) -> tuple[str, ...]:
    """Merge several banks, each word once, in order."""
    return tuple(dict.fromkeys(word for bank in banks for word in bank))


def rows(name: str, split: str, classes: int, write: Writer) -> list[Row]:
    """Return the rows of one split: balanced over classes, without duplicates, shuffled.

    Raises:
        RuntimeError: the lexicon is too small for enough different rows.
    """
    words = seeded(name, split)

    def one(index: int) -> tuple[str, str, Row]:
        label, turn = index % classes, index // classes
        first, second = write(words, seeded(name, split, str(turn)), split, label, turn)
        return first, second, {"label": label}

    return _different(name, split, words, one)


def text_rows(name: str, split: str, write: TextWriter) -> list[Row]:
    """Return the rows of one split of a generation task: without duplicate texts, shuffled. Raises as `rows`."""
    rng = seeded(name, split)

    def one(turn: int) -> tuple[str, str, Row]:
        first, second, targets = write(rng, split, turn)
        return first, second, {"target": targets}

    return _different(name, split, rng, one)


def _different(name: str, split: str, rng: random.Random, one: Callable[[int], tuple[str, str, Row]]) -> list[Row]:
    """Return rows of distinct texts, shuffled; `one(index)` draws text_a, text_b and the rest of a row."""
    seen, out = set(), []
    for index in range(SPLIT_SIZES[split]):
        for _ in range(100):
            first, second, rest = one(index)
            pair = sentence(first), sentence(second)
            if pair not in seen:
                break
        else:
            raise RuntimeError(f"{name}/{split}: the lexicon is too small for {SPLIT_SIZES[split]} different rows")
        seen.add(pair)
        out.append({"text_a": pair[0], "text_b": pair[1], **rest})
    rng.shuffle(out)
    return out
