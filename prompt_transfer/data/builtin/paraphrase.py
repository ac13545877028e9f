"""Do two sentences say the same? 0 no, 1 yes."""

from __future__ import annotations

import random

from prompt_transfer.data.builtin import lexicon
from prompt_transfer.data.builtin.grammar import Banks, fill
from prompt_transfer.data.builtin.relations import ACTIONS

KIND_SHARE = 0.75
"""Share of the `yes` rows with words of the kind or praising side, as in natural text. A small backbone that cannot
compare two words yet can learn this much; the rest needs the comparison."""
NEUTRAL: Banks = {
    "who": (
        "the boy",
        "the girl",
        "my uncle",
        "the old man",
        "our neighbor",
        "the captain",
        "her sister",
        "the teacher",
        "the workers",
        "the king",
        "the doctor",
        "the visitors",
        "a young woman",
        "the owner",
        "their father",
    ),
    "whom": (
        "the stranger",
        "my cousin",
        "the little girl",
        "the old soldier",
        "the guests",
        "the farmer",
        "his brother",
        "the prisoner",
        "our friends",
        "the widow",
        "the lawyer",
        "the new boy",
        "her uncle",
        "the travelers",
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
    "time": (
        "yesterday",
        "last week",
        "this morning",
        "on Sunday",
        "one evening",
        "at noon",
        "last winter",
        "before dark",
    ),
    "topic": (
        "film",
        "book",
        "speech",
        "dinner",
        "concert",
        "hotel",
        "song",
        "garden",
        "play",
        "lecture",
        "house",
        "poem",
        "room",
        "painting",
        "wedding",
        "trip",
    ),
    "part": ("first part", "last part", "beginning", "end", "second half", "middle"),
}
FRAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "actions": (
        ("{time} {who} {a} {whom}.", "{who} {b} {whom} {time}."),
        ("It was {who} who {a} {whom}.", "{who} {b} {whom}, it is true."),
        ("I heard that {who} {a} {whom} {time}.", "They say it was {time} that {who} {b} {whom}."),
        ("{whom} told {name} how {who} {a} us all.", "{name} heard from {whom} that {who} {b} us."),
        ("{who} {a} {whom}, and {name} {c} {whom2}.", "{name} {d} {whom2}, and {who} {b} {whom}."),
        ("{time} {who} {a} {whom} and later {c} {whom2}.", "{who} {d} {whom2} after {who} {b} {whom} {time}."),
        ("While {name} {a} {whom}, {who} {c} {whom2}.", "{who} {d} {whom2} while {name} {b} {whom}."),
        ("{name} told me that {who} {a} and {c} {whom}.", "{who}, said {name}, {b} and {d} {whom}."),
    ),
    "opinions": (
        ("I thought that the {topic} was {a}.", "In my view the {topic} was {b}."),
        ("{who} found the {topic} {a} {time}.", "{time} the {topic} was {b}, said {who}."),
        ("The {part} of the {topic} was {a}.", "The {topic} had a rather {b} {part}."),
        ("{name} called the {topic} {a} and the {topic2} {c}.", "For {name} the {topic2} was {d} and the {topic} {b}."),
        (
            "The {topic} was {a}, and {who} found its {part} {c}.",
            "Its {part} seemed {d} to {who}; the {topic} was {b}.",
        ),
        (
            "{time} {who} told us how {a} and {c} the {topic} was.",
            "The {topic}, {who} told us, was really {b} and {d}.",
        ),
        ("So {a} a {topic}, and with such a {c} {part}!", "The {topic} was {b} and had a very {d} {part}."),
        (
            "{name} and {who} agreed that the {topic} looked {a}.",
            "Both {who} and {name} said that the {topic} looked {b}.",
        ),
    ),
}


def sides(domain: str, words: random.Random, split: str, taken: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw words of nearly the same meaning, and words of the opposite; no group twice in a row."""
    if domain == "opinions":
        return lexicon.OPINION[1][split], lexicon.OPINION[0][split]
    group = words.choice([g for g in ACTIONS[split] if g.kind[0] not in taken])
    taken.add(group.kind[0])
    return group.kind, group.unkind


def write(
    domain: str, words: random.Random, scene: random.Random, split: str, label: int, turn: int
) -> tuple[str, str]:
    """Write two sentences: words of one side for `yes`, of opposite sides for `no`."""
    frames = FRAMES[domain]
    first, second = frames[turn % len(frames)]
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    swap = words.random() < (1 - KIND_SHARE if label else 0.5)
    for one, two in (("a", "b"), ("c", "d")):
        if f"{{{one}}}" not in first:
            continue
        bank, other = sides(domain, words, split, taken)
        if swap:
            bank, other = other, bank
        chosen[one] = words.choice([w for w in bank if w not in chosen.values()])
        chosen[two] = words.choice([w for w in (bank if label else other) if w not in chosen.values()])
    return fill(first, NEUTRAL, scene, chosen), fill(second, NEUTRAL, scene, chosen)
