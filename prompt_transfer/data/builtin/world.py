"""The content words of the generation tasks: people, things, places and times. None occurs in more than one split."""

from __future__ import annotations

from prompt_transfer.data.builtin.grammar import Banks, split_words

NAME = split_words(
    "Anna Henry Paul Frank Clara Walter Helen Ralph John Mary Jack Tom George James Robert David William Charles Sarah"
    " Jane Alice Kate Lucy Grace Joe Jim Harry Fred Thomas Daniel Maria Kevin Richard Joseph Margaret Elizabeth",
    "Peter Susan Max Bob Edward Andrew Mike Anne",
    "Oscar Ruth Julia Martin Rachel Victor Simon Laura Adam Philip Steve Roger Emma Albert",
)
THING = split_words(
    "ring book letter coat boat sword box bag bottle cup knife table chair mirror bell piano basket key gun dress boot"
    " wheel bed cart painting pipe tent doll card pen magazine flag crown",
    "clock hat rope candle ball chain stick portrait",
    "lamp watch picture camera hammer newspaper plate flower mask radio record jar",
)
# Phrases, separated by commas because their words belong together.
_PLACES = {
    "train": "in the kitchen, in the street, at the station, on the bridge, at school, in the park, at the theater,"
    " at the hotel, on the beach, in the village, in the castle, at the office, in the shop, in the valley,"
    " on the hill, by the lake, on the farm, in the cave, on the train, in the cabin, in the temple, in the desert,"
    " by the gate, on the stairs, at the bank, in prison",
    "validation": "at the market, in the tower, on the ship, at church, in the cottage, on the roof, at the port,"
    " in the square",
    "test": "in the garden, by the river, at the library, in the forest, at the hospital, on the mountain, in the barn,"
    " on the island, in the palace, at the club, by the window, at the mill",
}
_TIMES = {
    "train": "on Friday, last night, at noon, last spring, in July, in March, at Christmas, last week, after breakfast,"
    " in June, in winter, years ago",
    "validation": "on Saturday, in April, at dawn, last autumn, this morning, after dinner",
    "test": "on Sunday, in August, at midnight, last summer, in September, before supper, at Easter, this evening",
}


def _phrases(table: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {split: tuple(phrase.strip() for phrase in text.split(",")) for split, text in table.items()}


PLACE, TIME = _phrases(_PLACES), _phrases(_TIMES)
EVENT = split_words(
    "fire storm wedding race fight funeral dance trial murder feast match war",
    "flood concert battle strike",
    "party meeting speech accident crime show",
)
# Base form and past tense; shared by all splits, because they connect question and answer.
DEEDS = (
    ("find", "found"),
    ("buy", "bought"),
    ("lose", "lost"),
    ("sell", "sold"),
    ("hide", "hid"),
    ("break", "broke"),
    ("leave", "left"),
    ("paint", "painted"),
    ("drop", "dropped"),
    ("steal", "stole"),
    ("see", "saw"),
    ("burn", "burned"),
)
# Deeds that one may request or plan.
WISHES = tuple(deed for deed in DEEDS if deed[0] in ("find", "buy", "sell", "hide", "paint", "burn"))


def content(split: str) -> Banks:
    """Return the words and phrases of a split by slot: who, thing, place, event, time, and `later` (future times)."""
    return {
        "who": NAME[split],
        "thing": THING[split],
        "place": PLACE[split],
        "event": EVENT[split],
        "time": TIME[split],
        "later": tuple(time for time in TIME[split] if "last" not in time and "ago" not in time),
    }
