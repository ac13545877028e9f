"""Short reports of deeds and excuses: 0 is wrong, 1 is right."""

from __future__ import annotations

import random

from prompt_transfer.data.builtin import lexicon
from prompt_transfer.data.builtin.grammar import Banks, fill

PERSON = (
    "my neighbor",
    "the old woman",
    "a stranger",
    "the boy",
    "my cousin",
    "her uncle",
    "the servant",
    "his brother",
    "the prisoner",
    "our teacher",
    "the traveler",
    "a young sailor",
    "the farmer",
    "my friend",
    "the widow",
    "a child",
)
PLACE = (
    "at the market",
    "in the street",
    "on the road",
    "near the river",
    "at the station",
    "in the kitchen",
    "behind the church",
    "in the garden",
    "on the bridge",
    "at school",
)
TIME = (
    "yesterday",
    "last week",
    "this morning",
    "on Sunday",
    "one evening",
    "during the war",
    "last winter",
    "years ago",
)
AGENT = (
    "I",
    "my father",
    "the captain",
    "my sister",
    "the landlord",
    "a policeman",
    "the doctor",
    "our maid",
    "the king",
    "the officer",
    "her husband",
    "a soldier",
)
DUTY = (
    "pay the rent",
    "come to work",
    "wash the dishes",
    "feed the horses",
    "write to my mother",
    "return the money",
    "meet her at the station",
    "finish the report",
    "help with the harvest",
    "answer the letter",
    "visit my aunt",
    "drive him home",
    "keep the appointment",
    "water the garden",
    "open the shop",
    "carry the bags",
    "mend the fence",
    "take the children to school",
    "go to church",
    "cook supper",
)
COMMON: Banks = {"person": PERSON, "place": PLACE, "time": TIME, "agent": AGENT, "duty": DUTY}

TEMPLATES: dict[str, tuple[str, ...]] = {
    "deeds": (
        "{time} {agent} {deed} {person} {place}, who felt {feeling} and {feeling2} for days.",
        "{agent} {deed} {person} out of {motive}.",
        "{agent} {deed} {person} and then {deed2} {person2}; they were all {feeling} afterwards.",
        "{time} {agent} {deed} {person} {place}, moved only by {motive}.",
        "When {agent} met {person} {place}, it was with {motive} that {agent2} {deed} them both.",
        "People say that {agent} {deed} and {deed2} {person} {time}, and that {person2} felt {feeling}.",
        "{agent} {conduct} {deed} {person} {place}, and nobody was surprised that it left people {feeling}.",
        "With {motive} in the heart, {agent} {deed} {person} {time}.",
        "{agent} {conduct} spoke to {person}, and later {agent2} {deed} {person2}.",
        "It was {agent} who {deed} and {deed2} {person} {place}, out of {motive} and {motive2}.",
        "{time} {person} was {conduct} treated by {agent}, who {deed} {person2} as well.",
        "Because of {motive}, {agent} {deed} {person} {time} {place}.",
    ),
    "excuses": (
        "{agent} did not {duty} because {agent2} was {state}.",
        "I could not {duty} {time}, as I was {state} and {state2}.",
        "I did not {duty} {time} because of the {event}.",
        "{agent} was too {state} to {duty} {time}.",
        "{time} I told them that I would not {duty}, because I was so {state}.",
        "After the {event} {agent} felt {state} and did not {duty}.",
        "I never managed to {duty}, for {agent} was {state} and there was the {event}.",
        "Nobody asked me to {duty} {time}, since I was {state}.",
        "{agent} forgot to {duty}; the reason was the {event}, and being {state} as well.",
        "Being {state} and {state2}, {agent} let others {duty}.",
        "They asked why I did not {duty}. I was {state}, and {agent} was {state2}.",
        "Because of the {event} and the {event2}, {agent} could not {duty} {time}.",
    ),
}


def write(
    domain: str, words: random.Random, scene: random.Random, split: str, label: int, turn: int
) -> tuple[str, str]:
    """Write one deed or one excuse."""
    templates = TEMPLATES[domain]
    banks = {
        "feeling": lexicon.FEELING[label][split],
        "deed": lexicon.DEED[label][split],
        "motive": lexicon.MOTIVE[label][split],
        "conduct": lexicon.CONDUCT[label][split],
        "state": lexicon.CONDITION[label][split],
        "event": lexicon.OCCASION[label][split],
    }
    return fill(fill(templates[turn % len(templates)], COMMON, scene), banks, words), ""
