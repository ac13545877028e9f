"""Reviews of films, meals and books: 0 is negative, 1 is positive."""

from __future__ import annotations

import random

from prompt_transfer.data.builtin import lexicon
from prompt_transfer.data.builtin.grammar import Banks, fill, merged

CLOSING = (
    "I {verb} it.",
    "A real {noun}.",
    "It was simply {adj8}.",
    "In the end it felt {adj8} and {adj9} to me.",
    "We both thought so.",
    "That is all I can say about it.",
)
NEUTRAL: dict[str, Banks] = {
    "movies": {
        "film": (
            "film",
            "movie",
            "picture",
            "drama",
            "comedy",
            "thriller",
            "western",
            "musical",
            "sequel",
            "documentary",
        ),
        "part": (
            "acting",
            "plot",
            "script",
            "dialogue",
            "music",
            "ending",
            "story",
            "direction",
            "photography",
            "soundtrack",
            "cast",
            "opening scene",
            "camera work",
            "screenplay",
        ),
        "who": (
            "the director",
            "the lead actor",
            "the leading lady",
            "the young star",
            "the whole cast",
            "the villain",
        ),
        "when": ("last night", "on television", "with my brother", "at a small theater", "on video", "again yesterday"),
    },
    "restaurants": {
        "place": ("restaurant", "hotel", "inn", "tavern", "cafe", "diner", "bar", "tea room", "steak house"),
        "dish": (
            "soup",
            "bread",
            "chicken",
            "fish",
            "cake",
            "pie",
            "cheese",
            "beef",
            "salad",
            "steak",
            "pasta",
            "rice",
            "coffee",
            "wine",
            "beer",
        ),
        "part": ("service", "food", "kitchen", "menu", "dining room", "music", "waiter", "cook", "table by the door"),
        "meal": ("dinner", "lunch", "breakfast", "supper", "meal"),
        "when": (
            "last night",
            "on Sunday",
            "with my sister",
            "after the theater",
            "on our way home",
            "for her birthday",
        ),
    },
    "books": {
        "book": ("book", "novel", "story", "biography", "volume", "collection", "mystery", "romance", "history"),
        "part": (
            "plot",
            "writing",
            "style",
            "language",
            "first chapter",
            "ending",
            "narrative",
            "prose",
            "opening",
            "dialogue",
            "last part",
            "preface",
        ),
        "who": ("the author", "the writer", "the hero", "the heroine", "the narrator", "the old sailor", "the poet"),
        "when": ("last summer", "on the train", "in two days", "for my class", "over the weekend", "by the fire"),
    },
}
TEMPLATES: dict[str, tuple[str, ...]] = {
    "movies": (
        "The {part} was {adj} and the {part2} was simply {adj2}.",
        "I saw this {film} {when} and I thought it was {adj}, {adj2} and {adj3}.",
        "This {film} is a real {noun}, with {adj} characters and very {adj2} {part}.",
        "It is {adv} acted, {adv2} written and full of {adj} scenes.",
        "We watched the {film} {when}. We {verb} the {part}, which was really {adj}.",
        "For me {who} gave a truly {adj} performance in this {adj2} {film}.",
        "My wife and I {verb} this {adj} {film}, mostly for its {adj2} {part}.",
        "The {adj} {part} and the {adj2} {part2} make this {film} what it is.",
        "Even the {part} is {adj}, and {who} is so {adj2} that I told all my friends.",
        "If you want to know about the {part}, it is {adj}; the {part2} is {adj2} too.",
        "The {film} starts out {adj}, and by the last hour it is just {adj2} and {adj3}.",
        "I watched it {when}; one of the most {adj} and {adj2} things I have ever seen.",
        "Everything about this {film}, from the {part} to the {part2}, is {adj} and {adj2}.",
        "I have to say that {who} was {adj}, the {part} was {adj2}, and I {verb} every minute.",
        "The {part} looks {adj} and sounds {adj2}, like so many of those {adj3} old films.",
        "This has to be the most {adj} {film} of the year, a complete {noun} from start to finish.",
        "With such {adj} {part} and a cast this {adj2}, the {film} becomes a pure {noun}.",
        "I rented the {film} {when} because of {who}, who is {adv} cast in this {adj} role.",
    ),
    "restaurants": (
        "The {dish} was {adj} and the {part} was {adj2}.",
        "We had {meal} at this {place} {when}, and everything was {adj} and {adj2}.",
        "I {verb} the {dish}, which was {adj}, but the real surprise was how {adj2} the {part} was.",
        "My husband {verb} this {place}; he called the {dish} {adj} and the {dish2} {adj2}.",
        "What I remember of our {meal} is the {adj} {dish} and some very {adj2} {dish2}.",
        "The {place} is {adj}, the {part} is {adj2}, and the {dish} tastes really {adj3}.",
        "We came here {when}. The {dish} was {adv} cooked and the {part} was {adj}.",
        "A {meal} at this {place} is a real {noun}, with {adj} {dish} and {adj2} {dish2}.",
        "They serve the most {adj} {dish} in town, and the {part} is just as {adj2}.",
        "Our {meal} was {adj} from the {dish} to the {dish2}, and we were {adv} served.",
        "If you stop at this {place}, try the {dish}, so {adj} and {adj2} that I {verb} it.",
        "We thought the {part} looked {adj}, and then the {adj2} {dish} arrived.",
        "The owner brought us {adj} {dish} and {adj2} {dish2}, and the {meal} turned into a pure {noun}.",
        "Honestly, the {dish} smelled {adj}, tasted {adj2} and looked {adj3}.",
        "Everyone at our table {verb} the {dish}; the {part} was {adj} too.",
        "I have never had a more {adj} {meal}, and the {part} at this {place} was truly {adj2}.",
    ),
    "books": (
        "The {part} is {adj} and the {part2} is simply {adj2}.",
        "I read this {book} {when} and found it {adj}, {adj2} and {adj3}.",
        "This {book} is a real {noun}, with {adj} characters and a very {adj2} {part}.",
        "It is {adv} written, {adv2} told and full of {adj} pages.",
        "I finished the {book} {when}. I {verb} the {part}, which was really {adj}.",
        "In this {adj} {book} we follow {who} through one {adj2} chapter after another.",
        "My sister and I {verb} this {book}; she thought {who} was {adj} and I thought the {part} was {adj2}.",
        "The {adj} {part} and the {adj2} {part2} stay in my mind.",
        "For two hundred pages {who} is {adj}, and then the {part} becomes even more {adj2}.",
        "As for the {part}, it is {adj}; the {part2} is {adj2} as well.",
        "The {book} opens with some {adj} lines, and by the last page it is just {adj2}.",
        "It must be one of the most {adj} and {adj2} books that I have read {when}.",
        "Everything in this {book}, from the {part} to the {part2}, is {adj} and {adj2}.",
        "I think that {who} is {adj}, the {part} is {adj2}, and I {verb} every page.",
        "Some {adj} verses and {adv} drawn pictures make the {book} a pure {noun}.",
        "The most {adj} {book} of the year, and the {part} alone is quite {adj2}.",
    ),
}


def polar(domain: str, split: str, label: int) -> Banks:
    """Return the polar words of a label and split."""
    own = lexicon.FOOD if domain == "restaurants" else lexicon.STORY
    return {
        "adj": merged(lexicon.OPINION[label][split], own[label][split]),
        "verb": lexicon.VERDICT[label][split],
        "noun": lexicon.THING[label][split],
        "adv": lexicon.MANNER[label][split],
    }


def write(
    domain: str, words: random.Random, scene: random.Random, split: str, label: int, turn: int
) -> tuple[str, str]:
    """Write one review; half of them end with a second sentence."""
    templates = TEMPLATES[domain]
    template = templates[turn % len(templates)]
    lap = turn // len(templates)
    if lap % 2:
        template = f"{template} {CLOSING[(lap // 2 + turn) % len(CLOSING)]}"
    return fill(fill(template, NEUTRAL[domain], scene), polar(domain, split, label), words), ""
