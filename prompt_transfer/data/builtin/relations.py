"""Words that carry a label through their relation to another word. No such word occurs in more than one split."""

from __future__ import annotations

from dataclasses import dataclass


def _kinds(text: str) -> dict[str, tuple[str, ...]]:
    pairs = (line.split(":") for line in text.split(";"))
    return {kind.strip(): tuple(words.split()) for kind, words in pairs}


# kind: its members. Every member entails its kind; only a member entails itself.
OBJECT_KINDS = {
    "train": _kinds(
        "animal: dog horse cat cow sheep wolf lion bear fox pig; weapon: sword rifle gun pistol spear cannon dagger;"
        " building: church castle tower palace temple barn; tree: oak pine elm willow birch cedar;"
        " seat: chair bench couch sofa throne; meal: breakfast lunch dinner supper feast;"
        " jewel: diamond pearl emerald ruby; picture: portrait photograph sketch drawing;"
        " room: kitchen bedroom chamber cellar closet"
    ),
    "validation": _kinds(
        "flower: rose violet daisy lily; vessel: canoe raft yacht steamer; insect: bee spider beetle butterfly;"
        " tool: hammer axe knife drill"
    ),
    "test": _kinds(
        "bird: eagle hawk crow owl duck goose dove; fruit: apple orange cherry fig; garment: coat shirt cloak gown"
        " jacket skirt; vehicle: car wagon carriage truck bus cart; instrument: piano harp trumpet violin guitar drum;"
        " dwelling: cottage cabin hut mansion apartment"
    ),
}
PERSON_KINDS = {
    "train": _kinds(
        "worker: farmer shepherd miller butcher tailor carpenter mason baker; noble: king queen prince duke emperor"
        " princess; clergyman: priest bishop monk pope; doctor: physician surgeon; fighter: knight warrior;"
        " leader: president governor mayor chief"
    ),
    "validation": _kinds(
        "lawyer: judge attorney counsel; servant: maid butler cook porter housekeeper; child: boy girl infant;"
        " scholar: professor philosopher scientist historian"
    ),
    "test": _kinds(
        "officer: captain colonel lieutenant sergeant general; artist: painter poet singer dancer musician actor;"
        " criminal: thief murderer pirate killer; relative: uncle aunt cousin nephew niece grandmother"
    ),
}


@dataclass(frozen=True)
class Opposites:
    """Two groups of verbs with opposite meanings; within a group the words mean nearly the same."""

    kind: tuple[str, ...]
    unkind: tuple[str, ...]


def _opposites(text: str) -> tuple[Opposites, ...]:
    return tuple(Opposites(*(tuple(side.split()) for side in line.split("|"))) for line in text.split(";"))


ACTIONS = {
    "train": _opposites(
        "helped aided | hurt injured wounded; saved rescued | killed murdered; praised blessed | insulted cursed;"
        " protected sheltered guarded | attacked struck; released freed | captured seized kidnapped;"
        " loved cherished adored | hated despised; pleased charmed | annoyed offended disgusted;"
        " trusted believed | doubted suspected"
    ),
    "validation": _opposites(
        "relieved cured | tormented tortured; admired respected | condemned blamed;"
        " noticed recognized | ignored avoided"
    ),
    "test": _opposites(
        "assisted supported defended | cheated betrayed deceived; welcomed greeted received | rejected refused;"
        " cheered encouraged inspired | threatened frightened terrified; accompanied joined |"
        " deserted abandoned;"
        " amused delighted | shocked disturbed"
    ),
}
