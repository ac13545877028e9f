"""Label-carrying words. No such word occurs in more than one split of any task."""

from __future__ import annotations

from prompt_transfer.data.builtin.grammar import split_words

# Index 0 holds the words of class 0 (terrible, wrong), index 1 those of class 1 (great, right).
OPINION = (
    split_words(
        "awful bad poor dismal disgusting crappy worthless miserable wretched irritating unbearable unpleasant ugly"
        " atrocious lame insulting dreary useless laughable sickening embarrassing absurd inept forgettable",
        "lousy offensive weak vile sloppy",
        "horrible horrid pathetic ridiculous dreadful annoying disappointing hideous nasty crude ludicrous mediocre",
    ),
    split_words(
        "excellent brilliant amazing perfect beautiful charming magnificent fabulous stunning fine nice pleasant solid"
        " admirable refreshing memorable exceptional splendid flawless breathtaking glorious unforgettable",
        "lovely terrific outstanding favorite graceful extraordinary awesome",
        "wonderful superb fantastic delightful marvelous gorgeous incredible enjoyable good impressive satisfying"
        " remarkable elegant",
    ),
)
STORY = (
    split_words(
        "boring silly stupid predictable pointless cheesy contrived pretentious confusing amateurish uninspired"
        " unfunny",
        "tedious dumb shallow trashy",
        "dull lifeless tiresome incoherent uninteresting idiotic clumsy",
    ),
    split_words(
        "funny fun entertaining hilarious moving thrilling powerful compelling witty inspiring engaging masterful",
        "clever exciting captivating inventive",
        "fascinating touching gripping intelligent absorbing original",
    ),
)
FOOD = (
    split_words("stale cold rotten", "dirty", "bland sour"),
    split_words("fresh hearty sweet", "tender", "delicious"),
)
VERDICT = (
    split_words("hated wasted regretted", "disliked", "despised endured"),
    split_words("loved cherished admired", "liked", "enjoyed adored appreciated"),
)
THING = (
    split_words(
        "mess waste failure joke shame bore torture crap",
        "nightmare flop trash",
        "disaster disappointment disgrace garbage",
    ),
    split_words("masterpiece pleasure joy success classic jewel", "winner blast", "delight gem triumph treat marvel"),
)
MANNER = (
    split_words("badly poorly awfully carelessly miserably", "terribly painfully", "horribly dreadfully"),
    split_words("beautifully nicely brilliantly perfectly admirably", "cleverly gracefully", "wonderfully superbly"),
)

DEED = (
    split_words(
        "robbed murdered insulted attacked deceived kicked tortured poisoned threatened tormented whipped kidnapped"
        " choked oppressed injured struck burned hanged",
        "hurt wounded drowned shot",
        "betrayed cheated beat abused starved cursed killed abandoned",
    ),
    split_words(
        "helped saved fed visited invited warned assisted protected embraced trusted clothed blessed"
        " encouraged rescued rewarded sheltered",
        "taught freed cured",
        "thanked praised greeted welcomed supported defended kissed guided",
    ),
)
FEELING = (
    split_words(
        "ashamed bitter angry desperate sad scared hopeless sorry",
        "gloomy lonely",
        "unhappy afraid frightened terrified",
    ),
    split_words(
        "grateful joyful relieved comfortable lucky secure merry", "content calm", "thankful happy glad safe cheerful"
    ),
)
MOTIVE = (
    split_words("hatred greed malice cruelty vanity vengeance rage", "jealousy fury lust", "spite envy revenge scorn"),
    split_words(
        "kindness mercy pity devotion duty gratitude compassion generosity",
        "charity courtesy respect",
        "love sympathy affection friendship",
    ),
)
CONDUCT = (
    split_words("violently rudely", "secretly", "brutally fiercely"),
    split_words("gently politely kindly", "patiently", "warmly tenderly honestly"),
)
CONDITION = (
    split_words(
        "lazy proud greedy vain rude cunning bored mean wicked careless insolent petty",
        "idle haughty impatient ungrateful",
        "selfish jealous drunk stubborn arrogant cruel indifferent vicious",
    ),
    split_words(
        "sick wounded blind weary starving trapped unconscious lame dying imprisoned swollen homeless",
        "tired deaf frozen dizzy",
        "ill injured exhausted hungry bleeding feverish helpless faint",
    ),
)
OCCASION = (
    split_words(
        "party dance race concert movie novel football joke",
        "holiday magazine game",
        "show match gossip cards song",
    ),
    split_words(
        "fire flood storm death plague disease wound",
        "stroke burial earthquake",
        "accident funeral illness operation explosion injury fever",
    ),
)
