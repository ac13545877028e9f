"""Built-in classification tasks: balanced, deterministic, disjoint vocabularies, unsolvable by word counts.

`test_builtin_texts.py` tests the generation tasks.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import time
import zlib
from collections import Counter, defaultdict

import pytest

from prompt_transfer.data import builtin
from prompt_transfer.data.builtin import BUILTIN_TASKS, SPLIT_SIZES, builtin_rows, lexicon, relations
from prompt_transfer.data.builtin.grammar import fill, seeded, sentence
from prompt_transfer.data.builtin.sentiment import TEMPLATES
from prompt_transfer.tasks.task import CUES
from prompt_transfer.utils.errors import UserError

rows_of = functools.cache(builtin_rows)
TASKS = [task for task in BUILTIN_TASKS if not task.is_generation]
NAMES = [task.name for task in TASKS]
SPLITS = tuple(SPLIT_SIZES)
CLASSES = {task.name: task.num_classes for task in TASKS}


def polar_words(banks, split):
    return {word for bank in banks for side in bank for word in side[split]}


def carriers(name, split):
    """Return the words that carry the label of a task in one split."""
    if name in ("builtin_movies", "builtin_books", "builtin_restaurants"):
        own = lexicon.FOOD if name == "builtin_restaurants" else lexicon.STORY
        return polar_words((lexicon.OPINION, own, lexicon.VERDICT, lexicon.THING, lexicon.MANNER), split)
    if name == "builtin_ethics_deeds":
        return polar_words((lexicon.DEED, lexicon.MOTIVE, lexicon.CONDUCT, lexicon.FEELING), split)
    if name == "builtin_ethics_excuses":
        return polar_words((lexicon.CONDITION, lexicon.OCCASION), split)
    if name == "builtin_paraphrase_opinions":
        return polar_words((lexicon.OPINION,), split)
    if name == "builtin_paraphrase_actions":
        return {word for group in relations.ACTIONS[split] for word in group.kind + group.unkind}
    kinds = relations.PERSON_KINDS if name == "builtin_nli_people" else relations.OBJECT_KINDS
    return {word for kind, members in kinds[split].items() for word in (kind, *members)}


def tokens(row):
    return re.findall(r"[a-z]+", f"{row['text_a']} {row['text_b']}".lower())


def fingerprint():
    rows = [row for task in BUILTIN_TASKS for split in SPLITS for row in rows_of(task.name, split)]
    return zlib.crc32(repr(rows).encode())


def test_registry_rows():
    assert len(NAMES) == len(set(NAMES)) >= 9
    types = Counter(task.type for task in TASKS)
    assert types == {"sentiment": 3, "nli": 2, "ethics": 2, "paraphrase": 2}
    words = {(task.type, task.label_words) for task in TASKS}
    assert len(words) == len(types)
    for task in TASKS:
        assert task.name.startswith("builtin_")
        assert task.builtin
        assert task.cue == CUES[task.type]
        assert (task.text_b is None) == (task.type in ("sentiment", "ethics"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_sizes_balance_and_columns(name, split):
    rows = rows_of(name, split)
    counts = Counter(row["label"] for row in rows)
    assert len(rows) == {"train": 2000, "validation": 400, "test": 600}[split]
    assert sorted(counts) == list(range(CLASSES[name]))
    assert max(counts.values()) - min(counts.values()) <= 1
    pair = name.startswith(("builtin_nli", "builtin_paraphrase"))
    for row in rows:
        assert list(row) == ["text_a", "text_b", "label"]
        assert bool(row["text_b"]) == pair
        text = f"{row['text_a']} {row['text_b']}"
        assert "{" not in text
        assert row["text_a"][0].isupper()
        assert not re.search(r"\b[Aa] [aeiou]|  ", text.strip()), text
        assert 5 <= len(text.split()) <= 36, text


@pytest.mark.parametrize("name", NAMES)
def test_no_row_twice(name):
    pairs = [(row["text_a"], row["text_b"]) for split in SPLITS for row in rows_of(name, split)]
    assert len(pairs) == len(set(pairs)) == 3000


@pytest.mark.parametrize("name", NAMES)
def test_label_words_of_a_split_stand_in_no_other(name):
    texts = {split: {word for row in rows_of(name, split) for word in tokens(row)} for split in SPLITS}
    for split in SPLITS:
        own = carriers(name, split)
        assert len(own & texts[split]) >= 0.9 * len(own)
        for other in SPLITS:
            if other != split:
                assert not own & texts[other]


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_stem(name):
    """Splits share no five-letter word beginning, so pieces of words do not leak labels either."""
    stems = {split: {word[:5] for word in carriers(name, split)} for split in SPLITS}
    assert not stems["train"] & stems["validation"]
    assert not stems["train"] & stems["test"]
    assert not stems["validation"] & stems["test"]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_a_label_carrying_word(name):
    for split in SPLITS:
        own = carriers(name, split)
        assert all(own & set(tokens(row)) for row in rows_of(name, split))


@pytest.mark.parametrize("name", NAMES)
def test_classes_differ_in_label_carrying_words_only(name):
    """Without label words (and a or an before them) all classes have the same multiset of sentences."""
    for split in SPLITS:
        own, rest = carriers(name, split), defaultdict(Counter)
        for row in rows_of(name, split):
            rest[row["label"]][" ".join(t for t in tokens(row) if t not in own and t not in ("a", "an"))] += 1
        smallest = min(counter.total() for counter in rest.values())
        for label in rest:
            assert (rest[0] & rest[label]).total() >= smallest - 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("longest", [1, 2])
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_counting_words_stays_at_the_majority(name, longest):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    linear = pytest.importorskip("sklearn.linear_model")
    train, test = rows_of(name, "train"), rows_of(name, "test")
    vectorizer = text.CountVectorizer(ngram_range=(1, longest))
    features = vectorizer.fit_transform([f"{row['text_a']} {row['text_b']}" for row in train])
    model = linear.LogisticRegression(max_iter=100).fit(features, [row["label"] for row in train])
    predicted = model.predict(vectorizer.transform([f"{row['text_a']} {row['text_b']}" for row in test]))
    accuracy = sum(int(p == row["label"]) for p, row in zip(predicted, test, strict=True)) / len(test)
    assert abs(accuracy - 1 / CLASSES[name]) <= 0.05


@pytest.mark.parametrize("name", NAMES)
def test_length_does_not_tell_the_label(name):
    """Mean lengths of the first and of the second text differ between classes by at most a tenth of a word."""
    for column in ("text_a", "text_b"):
        means = defaultdict(list)
        for row in rows_of(name, "train"):
            means[row["label"]].append(len(row[column].split()))
        values = [sum(lengths) / len(lengths) for lengths in means.values()]
        assert max(values) - min(values) < 0.1


def test_two_processes_with_other_hash_seeds_agree():
    code = "import sys; sys.path.insert(0, 'tests'); import test_builtin; print(test_builtin.fingerprint())"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    out = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert out[0] == out[1]
    assert int(out[0]) == fingerprint()


def test_a_task_takes_less_than_a_second():
    start = time.process_time()
    for name in NAMES:
        for split in SPLITS:
            builtin_rows(name, split)
    assert time.process_time() - start < 1.0 * len(NAMES)


def test_enough_templates():
    assert all(len(templates) == len(set(templates)) >= 12 for templates in TEMPLATES.values())


def test_unknown_names_are_user_errors():
    with pytest.raises(UserError, match="builtin_movies"):
        builtin_rows("builtin_songs", "train")
    with pytest.raises(UserError, match="validation"):
        builtin_rows("builtin_movies", "dev")


def test_fill_repeats_a_slot_and_never_a_word():
    banks = {"adj": ("old", "new")}
    text = fill("{adj} and {adj2}, {adj} {other}", banks, seeded("x"))
    first, second = text.split(" and ")
    assert second == f"{({'old', 'new'} - {first}).pop()}, {first} {{other}}"


def test_sentence_articles_and_capitals():
    assert sentence("a owl saw a dog. it was a eagle.") == "An owl saw a dog. It was an eagle."


def test_every_built_in_task_has_its_writer() -> None:
    writers = {**builtin._WRITERS, **builtin._TEXT_WRITERS}
    assert [task.name for task in BUILTIN_TASKS] == [f"builtin_{name}" for name in writers]
