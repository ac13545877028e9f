"""Does the second sentence follow from the first? 0 no (they cannot both hold), 1 maybe, 2 yes.

A member of a kind entails the kind (yes), the kind leaves the member open (maybe), another member or another kind
contradicts it (no, by the usual convention that both sentences describe the same thing). Frames and lengths are equal
for all labels, and yes and maybe have the same words. Known shortcut: the position of the general word reveals the
label without any comparison, fully for people, partly for objects, where some contradictions name another kind.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from prompt_transfer.data.builtin.grammar import Banks, fill
from prompt_transfer.data.builtin.relations import OBJECT_KINDS, PERSON_KINDS

NO, MAYBE, YES = 0, 1, 2
KINDS = {"objects": OBJECT_KINDS, "people": PERSON_KINDS}
OTHER_KIND = {"objects": 0.25, "people": 0.0}
"""Share of contradictions by another kind; 0 for people, who can belong to two kinds."""
NEUTRAL: Banks = {
    "who": (
        "the man",
        "her brother",
        "the old lady",
        "my neighbor",
        "the student",
        "his wife",
        "the guest",
        "our friend",
        "the stranger",
        "the young man",
        "the woman in black",
        "my partner",
    ),
    "name": (
        "Anna",
        "Henry",
        "Martha",
        "Paul",
        "Edith",
        "Frank",
        "Clara",
        "Arthur",
        "Nora",
        "Walter",
        "Helen",
        "Ralph",
    ),
    "place": (
        "on the hill",
        "in the valley",
        "near the border",
        "at the crossroads",
        "by the river",
        "beyond the gate",
        "in the north",
        "across the lake",
    ),
    "time": ("last night", "on Monday", "that summer", "in the morning", "after the rain", "years later", "at noon"),
    "view": ("saw", "described", "talked about", "pointed at", "noticed", "asked about", "thought of", "wrote about"),
}
FRAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "objects": (
        ("{time} {who} {view} just one thing, a {a}.", "What {who} {view} was a {b}."),
        ("The only thing that {who} {view} {place} was a {a}.", "It was a {b} that {who} {view}."),
        ("{name} {view} nothing but a {a} {time}.", "{time} {name} {view} a {b}, nothing else."),
        ("{who} {view} a {a} first and then a {c}.", "First {who} {view} a {b} and then a {d}."),
        ("There was only a {a} {place} and a {c} behind it.", "{place} was a {b} with a {d} behind it."),
        (
            "In all {who} {view} just two things, a {a} and a {c}.",
            "Of the two things, one was a {b}, one a {d}.",
        ),
        ("{name} dreamed of a {a} {time}, and {who} of a {c}.", "{name} dreamed of a {b}, {who} of a {d}."),
        (
            "The word on the card of {name} was a {a}, and mine was a {c}.",
            "{name} had the word for a {b}, I for a {d}.",
        ),
    ),
    "people": (
        ("{name} was a {a} before the war.", "Before the war {name} was a {b}."),
        ("{time} {who} {view} just one person, a {a}.", "The person that {who} {view} was a {b}."),
        ("The only visitor {who} had {time} was a {a}.", "A {b} came to see {who} {time}."),
        ("{name} was a {a} and {name2} was a {c}.", "{name} was a {b}, {name2} a {d}."),
        ("{time} {who} {view} a {a} and nobody else but a {c}.", "{who} {view} a {b} and a {d} {time}."),
        ("In the play {name} was a {a}, and {who} was a {c}.", "{who} played a {d} and {name} a {b}."),
        ("A {a} lived {place}, and next door there was a {c}.", "{place} there lived a {b} beside a {d}."),
        ("My first visitor was a {a} and the second one a {c}.", "I had two visitors, a {b} and then a {d}."),
    ),
}


def relate(
    rng: random.Random, kinds: Mapping[str, Sequence[str]], label: int, other_kind: float, taken: set[str]
) -> tuple[str, str]:
    """Draw a word for the premise and one for the hypothesis, related by `label`, of a kind not in `taken`."""
    kind = rng.choice([k for k in kinds if k not in taken])
    taken.add(kind)
    member = rng.choice(kinds[kind])
    if label == YES:
        return member, kind
    if label == MAYBE:
        return kind, member
    if rng.random() < other_kind:
        other = rng.choice([k for k in kinds if k not in taken])
        taken.add(other)
        return member, other
    return member, rng.choice([w for w in kinds[kind] if w != member])


def write(
    domain: str, words: random.Random, scene: random.Random, split: str, label: int, turn: int
) -> tuple[str, str]:
    """Write a premise and a hypothesis."""
    kinds, frames = KINDS[domain][split], FRAMES[domain]
    premise, hypothesis = frames[turn % len(frames)]
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    chosen["a"], chosen["b"] = relate(words, kinds, label, OTHER_KIND[domain], taken)
    if "{c}" in premise:
        chosen["c"], chosen["d"] = relate(words, kinds, label, OTHER_KIND[domain], taken)
    return fill(premise, NEUTRAL, scene, chosen), fill(hypothesis, NEUTRAL, scene, chosen)
