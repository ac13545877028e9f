"""Questions on a short paragraph; the answer is a span of it.

A paragraph has two or three deeds, and all its names, things, places, times and verbs differ. The question word (who,
what, where, when) determines the kind of span, and the name or thing in the question determines the deed: a model that
learns the kind only is right in a half to a third of the rows.
"""

from __future__ import annotations

import random

from prompt_transfer.data.builtin.grammar import fill, sentence
from prompt_transfer.data.builtin.world import DEEDS, content

FACTS = (
    "{who} {did} a {thing} {place} {time}.",
    "{time} {who} {did} a {thing} {place}.",
    "{place} {who} {did} a {thing} {time}.",
    "It was {who} who {did} a {thing} {place} {time}.",
    "A {thing} is what {who} {did} {place} {time}.",
    "{time} and {place} {who} {did} a {thing}.",
)
FILLERS = (
    "Nobody else was there.",
    "The weather was fine.",
    "It was a long day.",
    "The children were asleep.",
    "We heard of it much later.",
    "There were many people.",
    "Everybody knows the story.",
    "It had rained before.",
)
QUESTIONS = (
    ("Who {did} the {thing}?", "{who}"),
    ("What did {who} {do}?", "a {thing}"),
    ("Where did {who} {do} the {thing}?", "{place}"),
    ("When did {who} {do} the {thing}?", "{time}"),
)
PREPOSITIONS = ("in ", "on ", "at ", "by ", "after ", "before ")


def write(rng: random.Random, split: str, turn: int) -> tuple[str, str, list[str]]:
    """Write a paragraph, a question on it, and its answers: the span, with and without its preposition."""
    count = 2 + turn // len(QUESTIONS) % 2
    deeds = rng.sample(DEEDS, count)
    chosen: dict[str, str] = {}
    sentences = []
    for number, frame in enumerate(rng.sample(FACTS, count)):
        chosen[_of("do", number)], chosen[_of("did", number)] = deeds[number]
        sentences.append(fill(_numbered(frame, number), content(split), rng, chosen))
    if count == 2 or rng.random() < 0.3:
        sentences.insert(rng.randrange(count + 1), rng.choice(FILLERS))
    paragraph = sentence(" ".join(sentences))
    asked = rng.randrange(count)
    question, answer = (fill(_numbered(text, asked), {}, rng, chosen) for text in QUESTIONS[turn % len(QUESTIONS)])
    return paragraph, question, answers(paragraph, answer)


def answers(paragraph: str, phrase: str) -> list[str]:
    """Return `phrase` as in the paragraph, and without its preposition if it has one."""
    start = paragraph.lower().index(phrase.lower())
    span = paragraph[start : start + len(phrase)]
    return [span, *(span[len(word) :] for word in PREPOSITIONS if span.lower().startswith(word))]


def _of(slot: str, number: int) -> str:
    return f"{slot}{number + 1}"


def _numbered(frame: str, number: int) -> str:
    """Return the frame with its slots numbered for deed `number`."""
    return frame.replace("}", f"{number + 1}}}")
