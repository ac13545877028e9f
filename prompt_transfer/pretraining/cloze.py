"""Noisy clozes: questions made from plain text whose answer is a span of it, without labels.

After Lewis et al. (2019, "Unsupervised Question Answering by Cloze Translation"): a span is the answer; a question word
that fits it, and the words around it with some left out, are the question.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

LEFT_OUT = (0.05, 0.4)  # range of the share of a question's words that is dropped
LOOSE = (0.4, 0.8)  # the same for loose questions, which draw on more of the surrounding text
FEWEST_WORDS = 15  # shortest text
_NUMBER = re.compile(r"\d[\d,.]*(%|st|nd|rd|th|s)?")
_YEAR = re.compile(r"(1\d|20)\d\ds?")
_MARKS = ".,;:!?\"'()[]-"
_COMMON = frozenset(
    re.findall(
        r"\w+",
        """the a an of in on at to and or for with by from as is was were are be been it he she they his her
        its their this that these those which who not but i you we my your our me him them had has have do
        did does so if no there than then when what where will would can could all one into out up""",
    )
)


class Cloze(NamedTuple):
    """A text, a question about it, and the answer, a span of the text."""

    context: str
    question: str
    answer: str


class Span(NamedTuple):
    """Words `start` to `end` (exclusive) of a text, and the question word for them."""

    start: int
    end: int
    word: str


def make_cloze(text: str, rng: np.random.Generator, most_words: int, loose: bool = False) -> Cloze | None:
    """Make one question about a text, or about a part of it that starts at a sentence.

    Args:
        text: plain text.
        rng: random generator.
        most_words: longest context in words.
        loose: ask with few words from a wider window, as people do, instead of most of the nearest words.

    Returns:
        The cloze; None if the text is shorter than `FEWEST_WORDS` or has no span to ask for.
    """
    words = text.split()
    if len(words) < FEWEST_WORDS:
        return None
    if len(words) > most_words:
        room = range(len(words) - most_words // 2)
        starts = [place for place in room if place == 0 or words[place - 1].endswith((".", "!", "?"))]
        start = starts[rng.integers(len(starts))]
        words = words[start : start + most_words]
    found = spans(words, rng)
    named = [span for span in found if span.word != "what"]
    if named and rng.random() < 0.7:
        found = named
    if not found:
        return None
    span = found[rng.integers(len(found))]
    answer = " ".join(words[span.start : span.end]).strip(_MARKS)
    return Cloze(" ".join(words), _question(words, span, rng, loose), answer) if answer else None


def spans(words: list[str], rng: np.random.Generator) -> list[Span]:
    """Return spans to ask for: numbers, names (capitalized words within a sentence), and some longer words."""
    found = []
    place = 0
    while place < len(words):
        word = words[place].strip(_MARKS)
        if _NUMBER.fullmatch(word):
            span = _number(words, place, rng)
        elif place and word[:1].isupper() and word.lower() not in _COMMON:
            span = _name(words, place, rng)
        elif word.isalpha() and word.lower() not in _COMMON and len(word) > 3 and rng.random() < 0.25:
            follows = words[place + 1].strip(_MARKS) if place + 1 < len(words) and words[place] == word else ""
            more = follows.isalpha() and follows.lower() not in _COMMON
            span = Span(place, place + 1 + (more and rng.random() < 0.5), "what")
        else:
            place += 1
            continue
        found.append(span)
        place = span.end
    return found


def _number(words: list[str], place: int, rng: np.random.Generator) -> Span:
    if _YEAR.fullmatch(words[place].strip(_MARKS)):
        return Span(place, place + 1, "when")
    # With or without the counted noun.
    counted = place + 1 < len(words) and words[place + 1].strip(_MARKS).isalpha()
    return Span(place, place + 1 + (counted and rng.random() < 0.5), "how many")


def _name(words: list[str], place: int, rng: np.random.Generator) -> Span:
    end = place + 1
    while end < len(words) and end - place < 5 and not words[end - 1].rstrip("\"')").endswith((",", ";", ":", ".")):
        word = words[end].strip(_MARKS)
        joins = word in ("of", "de", "the") and end + 1 < len(words) and words[end + 1].strip(_MARKS)[:1].isupper()
        if not (word[:1].isupper() or joins):
            break
        end += 1
    if words[place - 1].strip(_MARKS).lower() in ("in", "at", "near", "from"):
        return Span(place, end, "where")
    return Span(place, end, ("who", "what", "which")[rng.integers(3)])


def _question(words: list[str], span: Span, rng: np.random.Generator, loose: bool) -> str:
    """Return the question word followed by words around the span, in text order or with the later words first."""
    reach = 2 if loose else 1
    before = words[max(0, span.start - reach * int(rng.integers(4, 10))) : span.start]
    after = words[span.end : span.end + reach * int(rng.integers(3, 10))]
    parts = (before, after) if rng.random() < 0.5 else (after, before)
    share = rng.uniform(*(LOOSE if loose else LEFT_OUT))
    kept = [word.strip(_MARKS) for part in parts for word in part if rng.random() >= share]
    return f"{span.word} {' '.join(word for word in kept if word)}?"
