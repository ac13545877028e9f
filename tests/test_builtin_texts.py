"""Built-in generation tasks: answers are short, occur in the text, and require reading it."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from prompt_transfer.data.baselines import trivial_answers
from prompt_transfer.data.builtin import BUILTIN_TASKS, SPLIT_SIZES, builtin_rows, world
from prompt_transfer.data.builtin.grammar import seeded
from prompt_transfer.data.builtin.questions import PREPOSITIONS, answers
from prompt_transfer.data.builtin.summaries import DIALOGUES, REPORTS
from prompt_transfer.data.sources import load_task
from prompt_transfer.tasks.metrics import example_scores
from prompt_transfer.tasks.registry import describe_tasks, get_task

NANO = Path(__file__).parents[1] / "checkpoints" / "backbones" / "roberta-nano" / "tokenizer.json"
NAMES = [task.name for task in BUILTIN_TASKS if task.is_generation]
SPLITS = tuple(SPLIT_SIZES)
FUNCTION_WORDS = set("in on at the by after before last this ago years".split())  # noqa: SIM905
rows_of = functools.cache(builtin_rows)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def _carriers(split: str) -> set[str]:
    """Return the content words of a split, from which answers are made."""
    return _words(" ".join(word for bank in world.content(split).values() for word in bank)) - FUNCTION_WORDS


def test_registry_rows() -> None:
    questions, summaries = (get_task(name) for name in ("builtin_questions", "builtin_summaries"))
    assert [questions.name, summaries.name] == NAMES
    assert (questions.type, questions.metrics, questions.cue) == ("qa", ("squad_f1", "exact_match"), "Answer:")
    assert (summaries.type, summaries.cue) == ("summarization", "Summary:")
    assert summaries.metrics == ("rougeL", "rouge1", "rouge2")
    assert (questions.text_b, summaries.text_b) == ("text_b", None)
    shown = {row["name"]: row for row in describe_tasks()}
    assert [shown[name]["metric"] for name in NAMES] == ["squad_f1", "rougeL"]
    assert [shown[name]["classes"] for name in NAMES] == [0, 0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_sizes_columns_and_lengths(name: str, split: str) -> None:
    rows = rows_of(name, split)
    assert len(rows) == SPLIT_SIZES[split]
    tokenizer = Tokenizer.from_file(str(NANO))
    for row in rows:
        assert list(row) == ["text_a", "text_b", "target"]
        assert bool(row["text_b"]) == (name == "builtin_questions")
        text = f"{row['text_a']} {row['text_b']}".strip()
        assert not re.search(r"\b[Aa] [aeiou]|  |[{}]", f"{text} {row['target']}"), row
        assert text[0].isupper()
        lengths = [len(tokenizer.encode(f" {part}", add_special_tokens=False).ids) for part in (text, row["target"][0])]
        # A pair has three special tokens.
        assert lengths[0] + 3 <= 64, row
        assert 1 <= lengths[1] <= 8, row


@pytest.mark.parametrize("name", NAMES)
def test_no_text_twice(name: str) -> None:
    pairs = [(row["text_a"], row["text_b"]) for split in SPLITS for row in rows_of(name, split)]
    assert len(pairs) == len(set(pairs)) == 3000


@pytest.mark.parametrize("name", NAMES)
def test_content_words_of_a_split_stand_in_no_other(name: str) -> None:
    texts = {split: {word for row in rows_of(name, split) for word in _words(str(row))} for split in SPLITS}
    for split in SPLITS:
        own = _carriers(split)
        assert len(own & texts[split]) >= 0.9 * len(own - _words(" ".join(world.EVENT[split])))
        for other in SPLITS:
            assert other == split or not own & texts[other]


def test_answers_are_spans_of_the_paragraph() -> None:
    for split in SPLITS:
        for row in rows_of("builtin_questions", split):
            assert all(target in row["text_a"] for target in row["target"])
            first = row["target"][0].lower()
            assert (len(row["target"]) == 2) == first.startswith(PREPOSITIONS)
            assert len(re.findall(rf"\b{first}\b", row["text_a"].lower())) == 1


def _deeds(paragraph: str, split: str) -> dict[str, tuple[str, str, str, str]]:
    """Parse each sentence about a deed: thing -> person, thing, place and time; independent of the generator."""
    found = {}
    for text in paragraph.lower().split("."):
        banks = [world.NAME[split], world.THING[split], world.PLACE[split], world.TIME[split]]
        hits = [[word for word in bank if re.search(rf"\b{word.lower()}\b", text)] for bank in banks]
        if hits[1]:
            assert [len(words) for words in hits] == [1, 1, 1, 1], text
            found[hits[1][0]] = tuple(words[0] for words in hits)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_is_that_of_the_deed_asked_for(split: str) -> None:
    kinds: Counter[str] = Counter()
    for row in rows_of("builtin_questions", split):
        deeds = _deeds(row["text_a"], split)
        question = row["text_b"]
        (asked,) = [deed for deed in deeds.values() if {deed[0], deed[1]} & set(re.findall(r"\w+", question))]
        kind = question.split()[0]
        right = dict(zip(("Who", "What", "Where", "When"), (asked[0], f"a {asked[1]}", *asked[2:]), strict=True))[kind]
        assert row["target"][0].lower() == right.lower(), row
        kinds[kind] += 1
        # Deeds share no name, thing, place or time, so only one answer is right.
        assert all(len(set(column)) == len(deeds) for column in zip(*deeds.values(), strict=True))
        assert len(deeds) in (2, 3)
    assert max(kinds.values()) - min(kinds.values()) <= 1
    assert len(kinds) == 4


def test_each_deed_is_asked_for_equally_often() -> None:
    positions: Counter[tuple[int, int]] = Counter()
    for row in rows_of("builtin_questions", "train"):
        deeds = list(_deeds(row["text_a"], "train").values())
        (position,) = [i for i, deed in enumerate(deeds) if {deed[0], deed[1]} & set(re.findall(r"\w+", row["text_b"]))]
        positions[len(deeds), position] += 1
    for count in (2, 3):
        shares = [positions[count, position] / 1000 for position in range(count)]
        assert shares == pytest.approx([1 / count] * count, abs=0.05)


def test_all_content_words_of_a_summary_are_in_the_text() -> None:
    for split in SPLITS:
        own = _carriers(split)
        for row in rows_of("builtin_summaries", split):
            assert len(row["target"]) == 1
            assert own & _words(row["target"][0])
            assert own & _words(row["target"][0]) <= _words(row["text_a"])


def test_a_granted_request_will_happen_and_a_refused_one_will_not() -> None:
    rows = [row for split in SPLITS for row in rows_of("builtin_summaries", split)]
    requests = [row for row in rows if "Can you" in row["text_a"]]
    assert len(requests) == 300
    refused = [row for row in requests if re.search("Sorry|No, I am|afraid not|Not me", row["text_a"])]
    assert len(refused) == 150
    assert all((" cannot " in row["target"][0]) == (row in refused) for row in requests)
    assert all((" will " in row["target"][0]) == (row not in refused) for row in requests)


def test_enough_templates() -> None:
    assert len(set(DIALOGUES)) == len(set(REPORTS)) == 10


@pytest.mark.parametrize(("name", "ceiling"), [("builtin_questions", 0.15), ("builtin_summaries", 0.4)])
def test_the_lead_is_not_the_answer(name: str, ceiling: float) -> None:
    data = load_task(get_task(name), "builtin")
    assert data.origin == dict.fromkeys(SPLITS, "official")
    rows = data.split("test")
    scores: dict[str, Any] = example_scores(data.task, trivial_answers(data, rows), rows["target"][:])
    assert scores[data.task.metric].mean() < ceiling
    right = example_scores(data.task, [targets[-1] for targets in rows["target"][:]], rows["target"][:])
    assert right[data.task.metric].mean() == 1


def test_spans_are_written_as_the_paragraph_writes_them() -> None:
    assert answers("On Friday Anna left.", "on Friday") == ["On Friday", "Friday"]
    assert answers("Years ago Anna left.", "years ago") == ["Years ago"]


def test_rows_depend_on_name_and_split_alone() -> None:
    assert builtin_rows("builtin_questions", "test") == rows_of("builtin_questions", "test")
    assert seeded("builtin_questions", "test").random() != seeded("builtin_summaries", "test").random()
