"""The task registry: names, label words, class order, and tasks from users' YAML files."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from prompt_transfer.tasks import registry
from prompt_transfer.tasks.catalogue import ROWS
from prompt_transfer.tasks.registry import Task, describe_tasks, get_task, register, task_names
from prompt_transfer.tasks.task import CHOICE_METRICS, CLASSIFICATION_METRICS, CUES, GENERATION_METRICS
from prompt_transfer.utils.errors import UserError

NAMES = [
    "imdb",
    "sst2",
    "laptop",
    "restaurant",
    "movie_rationales",
    "tweet_eval_sentiment",
    "mnli",
    "qnli",
    "snli",
    "ethics_deontology",
    "ethics_justice",
    "qqp",
    "mrpc",
    "squad",
    "nq_open",
    "multi_news",
    "samsum",
    "rotten_tomatoes",
    "rte",
    "cb",
    "boolq",
    "wic",
    "wsc",
    "copa",
    "multirc",
    "record",
]
NANO = Path(__file__).parents[2] / "shared" / "models" / "roberta-nano"

TREC = """
name: trec
type: topic
columns: {text_a: text, text_b: null}
label_column: label
labels: [0, 1]
label_words: [thing, place]
label_words_policy: first
metric: f1
local: folder
"""
NEWS = """
name: news
columns: {text_a: article}
target_column: headline
max_target_length: 16
metric: rougeL
metrics: [rouge2]
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "trec.yaml"
    path.write_text(text)
    return path


def test_the_registry_has_exactly_the_named_tasks() -> None:
    assert sorted(row.name for row in ROWS) == sorted(NAMES)
    names = task_names()
    assert set(NAMES) <= set(names)
    assert all(name.startswith("builtin_") for name in set(names) - set(NAMES))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_consistent(row: Task) -> None:
    assert row.metrics[0] == row.metric
    assert row.hub is not None
    assert not row.hub.verified
    assert "train" in row.hub.splits
    assert set(row.hub.splits) <= {"train", "validation", "test"}
    assert hash(row) == hash(dataclasses.replace(row))
    assert row.cue == CUES[row.type]
    if row.is_generation:
        assert (row.num_classes, row.label_column) == (0, None)
        assert set(row.metrics) <= set(GENERATION_METRICS)
        return
    if row.is_choice:
        assert (row.num_classes, row.label_words) == (0, ())
        assert set(row.metrics) <= set(CHOICE_METRICS)
        return
    assert set(row.metrics) <= set(CLASSIFICATION_METRICS)
    assert row.labels is not None
    assert row.num_classes == len(row.labels) == len(set(row.label_words))
    if row.paper is not None:
        variant = row.paper_variant()
        assert set(variant.token_ids) == {"roberta", "bert", "t5"}
        assert all(len(ids) == variant.num_classes for ids in variant.token_ids.values())


def test_class_order_puts_no_first() -> None:
    # Hub ids: MNLI, SNLI 0 entailment 1 neutral 2 contradiction; QNLI, RTE 0 entailment; CB 0 entailment 1
    # contradiction 2 neutral.
    assert {name: get_task(name).labels for name in ("mnli", "snli", "qnli", "rte", "cb")} == {
        "mnli": (2, 1, 0),
        "snli": (2, 1, 0),
        "qnli": (1, 0),
        "rte": (1, 0),
        "cb": (1, 2, 0),
    }
    assert get_task("mnli").label_words == ("no", "maybe", "yes")
    assert get_task("qnli").label_words == ("no", "yes")


def test_generation_rows() -> None:
    rows = {row.name: (row.metrics, row.max_target_length, row.cue) for row in ROWS if row.is_generation}
    assert rows == {
        "squad": (("squad_f1", "exact_match"), 20, "Answer:"),
        "nq_open": (("exact_match", "squad_f1"), 20, "Answer:"),
        "multi_news": (("rougeL", "rouge1", "rouge2"), 50, "Summary:"),
        "samsum": (("rougeL", "rouge1", "rouge2"), 50, "Summary:"),
    }
    assert get_task("squad").paper_variant().target_column == "answers"


def test_paper_variant_has_the_words_ids_and_order_of_release_1() -> None:
    mnli = get_task("mnli").paper_variant()
    assert mnli.label_words == ("no", "neutral", "yes")
    assert mnli.token_ids == {"roberta": (2362, 12516, 10932), "bert": (2053, 8699, 2748), "t5": (27252, 7163, 3)}
    assert (mnli.text_a, mnli.text_b) == ("hypothesis", "premise")
    assert mnli.labels == (2, 1, 0)

    laptop = get_task("laptop").paper_variant()
    assert laptop.labels == (0, 1, 2, 3)
    assert laptop.token_ids["roberta"] == (33407, 19397, 22173, 17075)
    assert laptop.join_texts
    assert laptop.drop_labels == ()
    assert get_task("laptop").drop_labels == (3,)

    assert get_task("ethics_justice").paper_variant().token_ids["roberta"] == (897, 32047)
    with pytest.raises(UserError, match="rte has no label words of the paper"):
        get_task("rte").paper_variant()


def test_label_words_are_one_token_each() -> None:
    if not NANO.is_dir():
        pytest.skip(f"no tokenizer of a lower-cased byte-level BPE at {NANO}")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    for row in ROWS:
        for word in row.label_words:
            assert len(tokenizer.encode(f" {word}", add_special_tokens=False).ids) == 1, (row.name, word)


def test_unknown_task_names_the_close_ones() -> None:
    with pytest.raises(UserError, match="did you mean sst2"):
        get_task("sst-2")
    with pytest.raises(UserError, match="tasks list"):
        get_task("qqqqqqqqqq")


def test_register_adds_a_task_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    mine = register(Task(name="mine", type="topic", text_a="text", label_words=("no", "yes")))
    assert get_task("mine") is mine
    with pytest.raises(UserError, match="already"):
        register(mine)


def test_the_labels_of_a_task_must_be_different() -> None:
    row = {"name": "mine", "type": "topic", "text_a": "text", "label_words": ("no", "maybe", "yes")}
    with pytest.raises(UserError, match=r"^task mine: labels .* 1 and '1.0' are read as the same label"):
        Task(**row, labels=(1, "1.0", "2"))
    with pytest.raises(UserError, match=r"^task mine: drop_labels has '2', which is read as the label 2 of a class"):
        Task(**row, drop_labels=("2",))
    # Values that look alike but are read as they are written.
    assert Task(**row, labels=("1", "01", "1.5"), drop_labels=(-1, "-1")).class_labels == ("1", "01", "1.5")
    assert Task(**row, drop_labels=(3,)).class_labels == (0, 1, 2)


def test_describe_tasks_has_a_row_for_every_task() -> None:
    rows = {row["name"]: row for row in describe_tasks()}
    assert list(rows) == task_names()
    assert rows["mnli"] == {
        "name": "mnli",
        "type": "nli",
        "classes": 3,
        "label_words": ["no", "maybe", "yes"],
        "metric": "accuracy",
        "sources": ["hub", "local"],
        "hub": "nyu-mll/glue/mnli (unverified)",
    }


def test_yaml_task(tmp_path: Path) -> None:
    task = get_task(_write(tmp_path, TREC))
    assert (task.name, task.type, task.text_a, task.text_b) == ("trec", "topic", "text", None)
    assert (task.labels, task.label_words, task.label_words_policy) == ((0, 1), ("thing", "place"), "first")
    assert (task.metric, task.metrics) == ("f1", ("f1",))
    assert task.local == str(tmp_path / "folder")
    assert task.cue == "Answer:"
    assert get_task(_write(tmp_path, TREC + 'cue: "It is about"\n')).cue == "It is about"
    assert get_task(_write(tmp_path, TREC + 'cue: ""\n')).cue == ""
    assert "trec" not in task_names()


def test_yaml_task_that_writes_a_text(tmp_path: Path) -> None:
    task = get_task(_write(tmp_path, NEWS))
    assert (task.is_generation, task.num_classes, task.label_column) == (True, 0, None)
    assert (task.target_column, task.max_target_length) == ("headline", 16)
    assert task.metrics == ("rougeL", "rouge2")
    plain = get_task(_write(tmp_path, "name: a\ncolumns: {text_a: t}\ntarget_column: answer\n"))
    assert (plain.metric, plain.max_target_length, plain.cue) == ("exact_match", 32, "Answer:")


def test_yaml_words_that_look_like_booleans_and_numbers_stay_words(tmp_path: Path) -> None:
    path = _write(
        tmp_path, "name: a\ncolumns: {text_a: t}\nlabel_words: [no, yes, off, true, 1]\nlabels: [no, yes, 2, 3, 4]\n"
    )
    task = get_task(str(path))
    assert task.label_words == ("no", "yes", "off", "true", "1")
    assert task.labels == ("no", "yes", 2, 3, 4)
    assert (task.label_column, task.metric, task.label_words_policy, task.local) == ("label", "accuracy", "error", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TREC + "colour: red\n", "unknown key colour in the file; allowed are name, type, columns"),
        (TREC.replace("text_b: null", "text_c: null"), "unknown key text_c in columns; allowed are text_a, text_b"),
        (TREC.replace("name: trec", "name: a b"), "name 'a b' must be"),
        (TREC.replace("name: trec", ""), "name is missing"),
        (TREC.replace("[thing, place]", "[thing]"), "label_words must be two or more"),
        (TREC.replace("[thing, place]", "[thing, thing]"), "label_words must be two or more"),
        (TREC.replace("[0, 1]", "[0, 1, 2]"), "give each label its word"),
        (TREC.replace("[0, 1]", '["1.0", "1"]'), "'1.0' and '1' are read as the same label"),
        (TREC.replace("[0, 1]", '[1, " 1.0 "]'), "1 and ' 1.0 ' are read as the same label"),
        (TREC.replace("[0, 1]", '[true, "true"]'), "True and 'true' are read as the same label"),
        (TREC.replace("[0, 1]", "[1, 1]"), "labels [1, 1] must be different values"),
        (TREC + "drop_labels: [2, 1]\n", "drop_labels has 1, which is read as the label 1 of a class: remove it"),
        (TREC + 'drop_labels: ["1.0"]\n', "drop_labels has '1.0', which is read as the label 1 of a class"),
        (
            TREC.replace("labels: [0, 1]\n", "") + "drop_labels: [0]\n",
            "drop_labels has 0, which is read as the label 0",
        ),
        (
            TREC.replace("metric: f1", "metric: bleu"),
            "metric must be one of accuracy, f1, matthews, group_exact_match, not 'bleu'",
        ),
        (TREC.replace("policy: first", "policy: last"), "label_words_policy must be one of error, first, mean"),
        (TREC.replace("{text_a: text, text_b: null}", "text"), "columns must be a mapping"),
        (TREC + "max_length: 0\n", "max_length must be"),
        (TREC + "cue: 3\n", "cue must be a word in quotes, not 3"),
        (TREC + "max_target_length: 3\n", "max_target_length is for tasks with a target_column"),
        (NEWS + "label_column: a\n", "a task with a target_column has no labels: leave out label_column"),
        (NEWS.replace("rougeL", "f1"), "metric must be one of exact_match, squad_f1, rouge1, rouge2, rougeL, not 'f1'"),
        (NEWS.replace("length: 16", "length: 0"), "max_target_length must be a whole number"),
        ("- a\n- b\n", "the file must be a mapping"),
        ("name: [\n", "is not a YAML file"),
    ],
)
def test_yaml_mistakes_are_one_line_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        get_task(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_yaml_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the task file"):
        get_task(tmp_path / "absent.yaml")


def test_importing_the_registry_imports_no_torch() -> None:
    code = (
        "import sys, prompt_transfer.tasks.registry as tasks; tasks.describe_tasks(); "
        "print('torch' in sys.modules, 'datasets' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
