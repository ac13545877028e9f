"""Short dialogues and reports with one-line summaries.

The answer to a request decides between "will" and "cannot", and half of the texts start with irrelevant words, so
neither the first nor the last words are the summary.
"""

from __future__ import annotations

import random

from prompt_transfer.data.builtin.grammar import Banks, fill, sentence
from prompt_transfer.data.builtin.world import DEEDS, WISHES, content

NEUTRAL: Banks = {
    "hello": ("Hi, how are you?", "Good to see you!", "Are you there?", "Do you have a minute?"),
    "answer": ("I am fine.", "Yes, what is it?", "Go on.", "I was just thinking of you."),
    "yes": ("Of course, I will.", "Yes, with pleasure.", "Sure, no problem.", "I promise."),
    "no": ("Sorry, I have no time.", "No, I am too tired.", "I am afraid not.", "Not me, I am busy."),
    "thanks": ("Thank you!", "Great, thanks.", "That is kind of you."),
    "pity": ("What a pity.", "Too bad.", "Then I must wait."),
    "wonder": ("Really? Tell me more.", "How did that happen?", "I can hardly believe it.", "Oh my God!"),
    "tail": ("I will tell you later.", "It is true.", "I still think of it."),
    "officer": ("a policeman", "the doctor", "the mayor", "the captain", "an old man", "a reporter"),
    "filler": (
        "The people of the town talk of nothing else.",
        "Nobody knows what will come next.",
        "The news came late.",
        "It was quiet before.",
        "A crowd came to see it.",
    ),
}
# Text and summary; {do} and {did} are forms of one verb.
DIALOGUES = (
    ("{who}: Can you {do} the {thing} {later}? {who2}: {yes} {who}: {thanks}", "{who2} will {do} the {thing} {later}"),
    ("{who}: Can you {do} the {thing} {later}? {who2}: {no} {who}: {pity}", "{who2} cannot {do} the {thing} {later}"),
    ("{who}: I {did} a {thing} {place}! {who2}: {wonder} {who}: {tail}", "{who} {did} a {thing} {place}"),
    (
        "{who}: Where is {who3}? {who2}: Gone out, to {do} a {thing}. {who}: I see.",
        "{who3} went out to {do} a {thing}",
    ),
    (
        "{who}: Shall I {do} the {thing} or the {thing2}? {who2}: The {thing2}, please. {who}: {yes}",
        "{who} will {do} the {thing2}",
    ),
    ("{who}: Shall we meet {place} {later}? {who2}: {yes} {who}: {thanks}", "They will meet {place} {later}"),
    ("{who}: Shall we meet {place} {later}? {who2}: {no} {who}: {pity}", "They will not meet {later}"),
    ("{who}: Did you hear of the {event} {place}? {who2}: {wonder} {who}: {tail}", "There was a {event} {place}"),
    ("{who}: Who has my {thing}? {who2}: {who3} took it {time}. {who}: {pity}", "{who3} took the {thing} of {who}"),
    ("{who}: What is that? {who2}: A {thing}, for {who3}. {who}: {wonder}", "{who2} has a {thing} for {who3}"),
)
REPORTS = (
    ("There was a {event} {place} {time}. Soon {officer} came, and nobody was hurt.", "A {event} {place} {time}"),
    ("{time} {who} {did} a {thing} {place}. It was {officer} who told us.", "{who} {did} a {thing} {place}"),
    ("{who} and {who2} were married {time}. Even {officer} was there.", "{who} and {who2} were married {time}"),
    (
        "The {thing} of {who} is gone. {officer} looked {place} and found nothing.",
        "The {thing} of {who} is gone",
    ),
    ("{who} wants to {do} an old {thing}. {who2} and {officer} are against it.", "{who} wants to {do} a {thing}"),
    ("A {event} was planned {place}. Now {officer} says it cannot be {later}.", "There is no {event} {later}"),
    ("{who} worked {place} for years. {time} the work ended with a {event}.", "A {event} ended the work of {who}"),
    ("Because of a {event} {who} had to leave. {officer} thinks it was {time}.", "{who} left because of a {event}"),
    ("{who} was seen {place} with a {thing}. {officer} wonders why.", "{who} was {place} with a {thing}"),
    ("{time} {who} gave {who2} a {thing}. {officer} calls it a great gift.", "{who} gave {who2} a {thing}"),
)


def write(rng: random.Random, split: str, turn: int) -> tuple[str, str, list[str]]:
    """Write a text, an empty second text, and the summary."""
    kind = DIALOGUES if turn % 2 else REPORTS
    text, summary = kind[turn // 2 % len(kind)]
    if turn // (2 * len(kind)) % 2:
        text = f"{{who}}: {{hello}} {{who2}}: {{answer}} {text}" if kind is DIALOGUES else f"{{filler}} {text}"
    elif kind is REPORTS:
        text = f"{text} {{filler}}"
    chosen = dict(zip(("do", "did"), rng.choice(WISHES if "{do}" in text else DEEDS), strict=True))
    text = fill(text, {**NEUTRAL, **content(split)}, rng, chosen)
    return text, "", [sentence(fill(summary, {}, rng, chosen))]
