"""Users' own rows as a task: DataFrames, Datasets, rows in memory, and table files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from own_rows import rows

from prompt_transfer import Prompt, TaskDataModule
from prompt_transfer.data.columns import Columns, classes
from prompt_transfer.data.own import defined_tasks, table_name
from prompt_transfer.projectors.file import KEPT
from prompt_transfer.prompts.arithmetic import add
from prompt_transfer.tasks.definition import KEY, definitions, stored_tasks
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError


def texts_and_labels(data: TaskDataModule, split: str) -> list[tuple[str, int]]:
    found = data.data[0].split(split)
    return list(zip(found["text_a"][:], found["label"][:], strict=True))


def test_all_sources_of_rows_are_the_same_task() -> None:
    listed = rows(40)
    dataset = Dataset.from_list(listed)
    modules = [
        TaskDataModule.from_rows(listed),
        TaskDataModule.from_rows(pd.DataFrame(listed)),
        TaskDataModule.from_rows(dataset),
        TaskDataModule.from_rows(DatasetDict(train=dataset)),
        TaskDataModule.from_rows({"train": listed}),
    ]
    assert len({module.data[0].fingerprint for module in modules}) == 1
    task = modules[0].tasks[0]
    assert (task.name, task.label_words, task.class_labels) == ("own", ("bad", "good"), ("bad", "good"))
    # As everywhere: a tenth each, by seed.
    assert modules[0].data[0].origin == {
        "train": "official less the rows cut from it",
        "validation": "cut from train, seed 0",
        "test": "cut from train, seed 0",
    }
    parts = [texts_and_labels(modules[0], split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [32, 4, 4]
    expected = [(row["text"], int(row["label"] == "good")) for row in listed]
    assert sorted(pair for part in parts for pair in part) == sorted(expected)


def test_given_splits_are_used() -> None:
    data = TaskDataModule.from_rows(rows(20), validation=rows(30)[20:26], test=pd.DataFrame(rows(40)[26:]))
    assert [len(data.data[0].split(split)) for split in ("train", "validation", "test")] == [20, 6, 14]
    assert set(data.data[0].origin.values()) == {"official"}
    dictionary = TaskDataModule.from_rows(
        DatasetDict(train=Dataset.from_list(rows(20)), dev=Dataset.from_list(rows(6)))
    )
    assert dictionary.data[0].origin["test"] == "official validation"


def test_numbers_need_words_and_are_ordered_by_value() -> None:
    frame = pd.DataFrame(rows(40, (10, 9)))
    with pytest.raises(UserError, match=r"labels 9, 10 .* are not words: give each its word with label_words"):
        TaskDataModule.from_rows(frame)
    data = TaskDataModule.from_rows(frame, label_words=["good", "bad"])
    # 9 is the smaller number and the good one, although "10" < "9" as text.
    assert data.tasks[0].class_labels == (9, 10)
    assert all((label == 0) == ("good" in text) for text, label in texts_and_labels(data, "train"))


def test_words_are_matched_to_labels() -> None:
    frame = pd.DataFrame(rows(40, ("neg", "pos")))
    for words in ({"pos": "great", "neg": "terrible"}, "pos=great,neg=terrible", '{"pos": "great", "neg": "terrible"}'):
        task = TaskDataModule.from_rows(frame, label_words=words).tasks[0]
        assert dict(zip(task.class_labels, task.label_words, strict=True)) == {"pos": "great", "neg": "terrible"}
    # A list follows the sorted labels, which is said, unless the words are the labels.
    with pytest.warns(UserWarning, match="label_words means neg=terrible,pos=great"):
        task = TaskDataModule.from_rows(frame, label_words=["terrible", "great"]).tasks[0]
    assert dict(zip(task.class_labels, task.label_words, strict=True)) == {"pos": "great", "neg": "terrible"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = TaskDataModule.from_rows(rows(40), label_words=["good", "bad"]).tasks[0]
        assert task.class_labels == task.label_words == ("good", "bad")
        task = TaskDataModule.from_rows(frame, labels=["pos", "neg"], label_words=["great", "terrible"]).tasks[0]
        assert task.class_labels == ("pos", "neg")


def test_names_of_class_labels_are_the_words() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["good", "bad"])})
    dataset = Dataset.from_list(rows(40, (1, 0)), features=features)
    data = TaskDataModule.from_rows(dataset)
    assert data.tasks[0].label_words == ("good", "bad")
    assert all((label == 0) == ("good" in text) for text, label in texts_and_labels(data, "train"))
    # Given in another order they are still those names.
    assert TaskDataModule.from_rows(dataset, label_words=["bad", "good"]).tasks[0].class_labels == (1, 0)
    mapped = TaskDataModule.from_rows(dataset, label_words={"bad": "terrible", "good": "great"}).tasks[0]
    assert dict(zip(map(str, mapped.class_labels), mapped.label_words, strict=True)) == {"1": "terrible", "0": "great"}


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([f"t{i}" for i in range(12)], {}, "12 different values in 12 rows, such as 't0': is it the label"),
        ([i / 7 for i in range(1, 6)], {}, "is a number on a scale"),
        (["a", "b"] * 3, {"label_words": ["x", "y", "z"]}, r"2 labels \(a, b\) and 3 label words \(x, y, z\)"),
        (["a", "b"] * 3, {"label_words": {"a": "x"}}, "the label b has no word in label_words"),
        (["a", "b"] * 3, {"label_words": "a=x,y"}, "must be words, or LABEL=WORD"),
        (["a", "b"] * 3, {"label_words": ["x", "x"]}, "two or more different words"),
        (["a", "b"] * 3, {"labels": ["a", "c"], "label_words": ["x", "y"]}, "holds b, none of the labels a, c"),
        (["a"] * 6, {}, "two or more different words, one a class, not a"),
        ([True, False] * 3, {}, "are not words"),
        (["a", "b"] * 3, {"label_words": ["x", 1]}, "the label word 1 is not a word"),
    ],
)
def test_labels_are_checked(values: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        classes(Columns("text", "label", **options), values)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (
            rows(20),
            {"text": "txt"},
            r"the train rows \(list\) has no column 'txt' \(text\); its columns are text, label",
        ),
        (rows(20), {"label": "y"}, "no column 'y'"),
        ("reviews.csv", {}, "the train rows are str; give a pandas.DataFrame"),
        ([["a", 1]], {}, r"row 0 \(counted from 0\) of the train rows \(list\) is list, not a dict"),
        ({"text": ["a"], "label": [1]}, {}, "a dict of splits has the keys train, validation and test"),
        ([*rows(20), {"text": "x"}], {}, "row 20 .* has no label"),
        ([*rows(20), {"text": None, "label": "bad"}], {}, "has 1 missing text"),
        (rows(20), {"name": "sst2"}, "the name 'sst2' cannot be that of a new task"),
        (rows(20), {"labl_words": ["a"]}, "from_rows has no option labl_words: did you mean label_words?"),
        (rows(20), {"metric": "rougeL"}, "metric must be one of accuracy, f1, matthews"),
    ],
)
def test_rows_are_checked(train: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = TaskDataModule.from_rows(train, **options).data


def test_missing_values_of_pandas_are_missing_labels() -> None:
    frame = pd.DataFrame(rows(20, (0, 1)))
    frame["label"] = frame["label"].astype("Int64")
    frame.loc[3, "label"] = pd.NA
    with pytest.raises(UserError, match=r"row 3 .* has no label"):
        _ = TaskDataModule.from_rows(frame, label_words=["bad", "good"]).data


def test_texts_to_generate_need_no_labels() -> None:
    train = [{"text": f"say {i}", "answer": [f"word {i}", "other"]} for i in range(20)]
    data = TaskDataModule.from_rows(train, target="answer", metric="exact_match")
    assert data.tasks[0].is_generation
    assert data.data[0].split("train")["target"][0] in [row["answer"] for row in train]


# Table files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_is_a_task(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film reviews.{suffix}"
    frame = pd.DataFrame(rows(40, ("neg", "pos"), "review")).assign(other=1)
    write = {"csv": frame.to_csv, "parquet": frame.to_parquet}.get(suffix)
    if write is None:
        frame.to_json(path, orient="records", lines=True)
    else:
        write(path, index=False)
    data = TaskDataModule(str(path), text="review", label="label", label_words="neg=bad,pos=good")
    assert data.tasks[0].name == "film_reviews"
    assert data.selection.source == "local"
    memory = TaskDataModule.from_rows(frame, "review", label_words={"neg": "bad", "pos": "good"})
    assert data.data[0].fingerprint == memory.data[0].fingerprint


def test_the_name_of_a_table_is_new(tmp_path: Path) -> None:
    assert table_name(tmp_path / "sst2.csv") == "sst2_csv"
    assert table_name(tmp_path / "my films" / "train.csv") == "my_films"
    assert table_name(tmp_path / "builtin_x.jsonl") == "builtin_x_jsonl"


def test_other_splits_are_tables_too(tmp_path: Path) -> None:
    for name, part in {"train": rows(20), "dev": rows(26)[20:], "new": rows(30)[26:]}.items():
        pd.DataFrame(part).to_csv(tmp_path / f"{name}.csv", index=False)
    paths = {name: str(tmp_path / f"{file}.csv") for name, file in (("validation", "dev"), ("test", "new"))}
    data = TaskDataModule(str(tmp_path / "train.csv"), text="text", label="label", **paths)
    assert [len(data.data[0].split(split)) for split in ("train", "validation", "test")] == [20, 6, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs the column of the text: --data.text COLUMN \(there are text, label\)"),
        ({"text": "text"}, r"needs the column of the label: --data.label COLUMN"),
        ({"text": "text", "label": "y"}, "has no column 'y'"),
        ({"text": "text", "label": "label", "test": "x.txt"}, "--data.test x.txt is not a table"),
        ({"text": "text", "label": "label", "source": "hub"}, "has its own rows, leave the source out"),
    ],
)
def test_the_columns_of_a_table_are_needed(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "r.csv"
    pd.DataFrame(rows(20)).to_csv(path, index=False)
    with pytest.raises(UserError, match=message):
        TaskDataModule(str(path), **options)


def test_columns_without_a_table_are_refused() -> None:
    with pytest.raises(UserError, match=r"--data.task x.tsv: save the table as .jsonl, .csv or .parquet"):
        TaskDataModule("x.tsv", text="review")
    with pytest.raises(UserError, match=r"--data.text review is for a table"):
        TaskDataModule("builtin_movies", text="review")
    with pytest.raises(UserError, match=r"--data.label_words a,b is for a table.*default or paper"):
        TaskDataModule("builtin_movies", label_words="a,b")
    with pytest.raises(UserError, match=r"x\.csv is a table, which only --data.task takes"):
        get_task("x.csv")


def test_a_folder_in_a_task_file_implies_the_source_local(toy: Path) -> None:
    data = TaskDataModule(str(toy))
    assert data.selection.source == "local"
    assert data.num_examples("train") == 40
    # Other tasks have the default that they had.
    assert TaskDataModule("builtin_movies").selection.source == "builtin"
    with pytest.raises(UserError, match=r"task sst2 is not built in; use --data.source hub"):
        TaskDataModule("sst2")


# The task in a prompt file -------------------------------------------------------------------------------------------


def test_a_definition_is_read_back_equal() -> None:
    task = Task(
        "own", "topic", "a", "b", labels=(1, "x", True), label_words=("u", "v", "w"), metric="f1", cue="Say:",
        drop_labels=(-1,), token_ids={"bert": (1, 2, 3)}, seq2seq_frame=("q", "r"), max_length=9,
    )  # fmt: skip
    text = definitions([task, get_task("sst2")])
    assert set(json.loads(text)) == {"own"}
    assert stored_tasks({KEY: text}, "p") == {"own": task}
    assert stored_tasks({}, "p") == {}
    with pytest.raises(UserError, match="p is damaged"):
        stored_tasks({KEY: "[1"}, "p")
    with pytest.raises(UserError, match="defines its task with shape, unknown to this release"):
        stored_tasks({KEY: json.dumps({"own": {"name": "own", "shape": 1}})}, "p")


def test_a_table_takes_missing_columns_from_the_definition(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    pd.DataFrame(rows(20, ("neg", "pos"), "review")).to_csv(path, index=False)
    defined = Task("own", "topic", "review", labels=("pos", "neg"), label_words=("great", "terrible"), cue="Say:")
    with defined_tasks({"own": defined}):
        task = TaskDataModule(str(path)).tasks[0]
        assert TaskDataModule("own").tasks == [defined]
        with pytest.raises(UserError, match="the prompt file defines it but has no rows"):
            _ = TaskDataModule("own").data
    assert (task.name, task.cue, task.class_labels) == ("new", "Say:", ("pos", "neg"))
    with pytest.raises(UserError, match="needs the column of the text"):
        TaskDataModule(str(path))


def test_a_table_takes_template_and_all_words_from_the_definition(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    pd.DataFrame(rows(20, ("neg", "pos"), "review")).to_csv(path, index=False)
    words = (("great", "good"), ("terrible", "bad"))
    defined = Task("own", "topic", "review", labels=("pos", "neg"), label_words=words, template="{text_a}\nSo:")
    with defined_tasks({"own": defined}):
        task = TaskDataModule(str(path)).tasks[0]
        assert (task.class_words, task.template) == (words, "{text_a}\nSo:")
        task = TaskDataModule(str(path), label_words="pos=fine,neg=awful").tasks[0]
        assert task.class_words == (("fine",), ("awful",))
    choice = Task("copa", "qa", "review", choices=("one", "two"))
    with defined_tasks({"copa": choice}), pytest.raises(UserError, match="copa is multiple choice"):
        TaskDataModule(str(path))


def test_definitions_survive_arithmetic_and_projection() -> None:
    defined = {name: definitions([Task(name, "topic", "text", label_words=("a", "b"))]) for name in ("one", "two")}
    start = torch.zeros(2, 4)
    prompts = [
        Prompt(start + number, {"backbone": "b", "task": name, KEY: text}, start)
        for number, (name, text) in enumerate(defined.items(), 1)
    ]
    assert set(stored_tasks(add(prompts).metadata, "p")) == {"one", "two"}
    assert KEY in KEPT
