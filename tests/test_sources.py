"""Loading tasks: folders for every rule and error, and the real data if available."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from prompt_transfer.data.download import download_tasks
from prompt_transfer.data.sources import TaskData, load_task
from prompt_transfer.data.texts import load_texts
from prompt_transfer.tasks.catalogue import ROWS
from prompt_transfer.tasks.registry import Task, get_task
from prompt_transfer.utils.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
SINGLE = Task(name="toy", type="topic", text_a="text", labels=(0, 1), label_words=("bad", "good"))
PAIR = Task(name="toy", type="nli", text_a="a", text_b="b", label_words=("no", "maybe", "yes"))


@pytest.fixture(autouse=True)
def _no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPT_TRANSFER_DATA", raising=False)


def _rows(count: int, prefix: str = "t") -> list[dict[str, Any]]:
    return [{"text": f"{prefix}{index}", "label": index % 2} for index in range(count)]


def _folder(root: Path, name: str = "toy", **splits: list[dict[str, Any]]) -> Path:
    (root / name).mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        pd.DataFrame(rows).to_parquet(root / name / f"{split}.parquet")
    return root


def _load(task: Task, root: Path, **more: Any) -> TaskData:
    return load_task(task, "local", root, **more)


def _complaint(task: Task, root: Path | None, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_task(task, "local", root, **more)
    message = str(caught.value)
    assert "\n" not in message
    assert "toy" in message
    return message


@pytest.mark.filterwarnings("ignore:task toy")
def test_normalised_columns_and_types(tmp_path: Path) -> None:
    rows = [{"a": "p0", "b": "h0", "label": 2}, {"a": "p1", "b": "h1", "label": 0}, {"a": "p2", "b": "h2", "label": 1}]
    task = Task(**{**PAIR.__dict__, "labels": (2, 1, 0)})
    data = _load(task, _folder(tmp_path, train=rows, validation=rows[:1], test=rows[1:]))
    assert data.split("train")[:] == {
        "id": [0, 1, 2],
        "text_a": ["p0", "p1", "p2"],
        "text_b": ["h0", "h1", "h2"],
        "label": [0, 2, 1],
    }
    assert {name: str(field.dtype) for name, field in data.splits["train"].features.items()} == {
        "id": "int64",
        "text_a": "string",
        "text_b": "string",
        "label": "int64",
    }
    assert data.origin == {"train": "official", "validation": "official", "test": "official"}


def test_single_text_has_an_empty_second_one(tmp_path: Path) -> None:
    data = _load(SINGLE, _folder(tmp_path, train=_rows(4), validation=_rows(2, "v"), test=_rows(2, "w")))
    assert data.splits["train"]["text_b"] == [""] * 4


def test_labelled_test_and_no_validation_cuts_a_tenth_by_seed(tmp_path: Path) -> None:
    root = _folder(tmp_path, train=_rows(40), test=_rows(6, "w"))
    data, again, other = _load(SINGLE, root), _load(SINGLE, root), _load(SINGLE, root, seed=1)
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 36, "validation": 4, "test": 6}
    assert data.origin == {
        "train": "official less the rows cut from it",
        "validation": "cut from train, seed 0",
        "test": "official",
    }
    train, validation = set(data.splits["train"]["id"]), set(data.splits["validation"]["id"])
    assert train | validation == set(range(40))
    assert not train & validation
    assert data.splits["train"]["text_a"] == [f"t{row}" for row in data.splits["train"]["id"]]
    assert again.fingerprint == data.fingerprint
    assert other.splits["validation"]["id"] != data.splits["validation"]["id"]
    assert other.fingerprint != data.fingerprint


def test_the_cut_is_at_most_2000_rows(tmp_path: Path) -> None:
    data = _load(SINGLE, _folder(tmp_path, train=_rows(30_000), test=_rows(2, "w")))
    assert len(data.splits["validation"]) == 2000


@pytest.mark.parametrize("unlabelled", [[{"text": "w", "label": -1}], [{"text": "w"}], [{"text": "w", "label": None}]])
def test_unlabelled_test_makes_validation_the_test_split(tmp_path: Path, unlabelled: list[dict[str, Any]]) -> None:
    root = _folder(tmp_path, train=_rows(20), validation=_rows(4, "v"), test=unlabelled)
    data = _load(SINGLE, root)
    assert data.splits["test"]["text_a"] == ["v0", "v1", "v2", "v3"]
    assert data.origin["test"] == "official validation"
    assert data.origin["validation"] == "cut from train, seed 0"
    assert len(data.splits["validation"]) == 2


def test_train_alone_gives_three_disjoint_splits_and_a_test_split_that_no_seed_moves(tmp_path: Path) -> None:
    root = _folder(tmp_path, train=_rows(50))
    data, other = _load(SINGLE, root), _load(SINGLE, root, seed=7)
    parts = [set(part["id"]) for part in data.splits.values()]
    assert set.union(*parts) == set(range(50))
    assert sum(map(len, parts)) == 50
    assert data.splits["test"]["id"] == other.splits["test"]["id"]
    assert other.origin["test"] == "cut from train, seed 0"
    assert other.origin["validation"] == "cut from train, seed 7"


def test_asking_for_an_unknown_split(tmp_path: Path) -> None:
    data = _load(SINGLE, _folder(tmp_path, train=_rows(20)))
    with pytest.raises(UserError, match="there are train, validation, test"):
        data.split("dev")


def test_csv_texts_stay_as_they_are_written_and_labels_may_be_words(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.csv").write_text(
        'text,label\n007,bad\nnull,good\n"a, b",bad\nNA,good\n', encoding="utf-8-sig"
    )
    (tmp_path / "toy" / "test.csv").write_text("text,label\n1.50,good\n")
    task = Task(**{**SINGLE.__dict__, "labels": ("bad", "good")})
    data = _load(task, tmp_path)
    both = sorted((row["text_a"], row["label"]) for name in ("train", "validation") for row in data.splits[name])
    assert both == [("007", 0), ("NA", 1), ("a, b", 0), ("null", 1)]
    assert data.splits["test"]["text_a"] == ["1.50"]


@pytest.mark.parametrize("written", [("0", "1"), ("False", "True"), ("0.0", "1.0"), ("false", "true")])
def test_csv_labels_may_be_numbers_or_booleans(tmp_path: Path, written: tuple[str, str]) -> None:
    (tmp_path / "toy").mkdir()
    lines = "".join(f"t{index},{written[index % 2]}\n" for index in range(10))
    for split in ("train", "validation", "test"):
        (tmp_path / "toy" / f"{split}.csv").write_text(f"text,label\n{lines}")
    task = Task(name="toy", type="topic", text_a="text", label_words=("bad", "good"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert _load(task, tmp_path).splits["test"]["label"] == [0, 1] * 5


def test_jsonl_keeps_dates_as_text_and_files_of_other_names_are_no_splits(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    for split, day in (("train", 1), ("validation", 2), ("validation_full", 3)):
        rows = [{"text": f"2020-01-{day:02d} {index}", "label": bool(index % 2)} for index in range(10)]
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / "toy" / f"{split}.jsonl").write_text(text + "\n\n")
    task = Task(name="toy", type="topic", text_a="text", labels=(False, True), label_words=("bad", "good"))
    data = _load(task, tmp_path)
    assert data.splits["test"]["text_a"][0] == "2020-01-02 0"
    assert len(data.splits["test"]) == 10


@pytest.mark.filterwarnings("ignore:task toy")
def test_generation_targets_are_lists_of_texts(tmp_path: Path) -> None:
    task = Task(name="toy", type="qa", text_a="q", label_column=None, target_column="answers", metric="squad_f1")
    shapes = [{"text": ["a", "b"], "answer_start": [0, 1]}, {"text": ["c"], "answer_start": [2]}]
    rows = [{"q": f"q{index}", "answers": shapes[index % 2]} for index in range(4)]
    data = _load(task, _folder(tmp_path, train=rows, validation=rows[:1], test=[{"q": "x", "answers": shapes[0]}]))
    assert data.splits["train"]["target"] == [["a", "b"], ["c"]] * 2
    assert set(data.splits["train"].column_names) == {"id", "text_a", "text_b", "target"}
    _folder(tmp_path, train=[{"q": "q", "answers": {"text": [], "answer_start": []}}] * 3)
    assert "the training split has no answers in its column 'answers'" in _complaint(task, tmp_path)


def test_dropped_labels_keep_the_row_numbers_and_are_reported(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": -1}, *_rows(4)]
    task = Task(**{**SINGLE.__dict__, "drop_labels": (-1,)})
    root = _folder(tmp_path, train=rows, validation=_rows(2, "v"), test=_rows(2, "w"))
    with pytest.warns(UserWarning, match="1 train rows with label -1 are left out"):
        data = _load(task, root)
    assert data.splits["train"]["id"] == [1, 2, 3, 4]


def test_paper_words_swap_the_texts_and_join_them(tmp_path: Path) -> None:
    rows = [{"premise": f"p{index}", "hypothesis": f"h{index}", "label": index % 3} for index in range(6)]
    root = _folder(tmp_path, "mnli", train=rows, validation=rows, test=rows)
    with pytest.warns(UserWarning, match="in train too"):
        data = load_task(get_task("mnli"), "local", root, label_words="paper")
    assert (data.splits["train"]["text_a"][0], data.splits["train"]["text_b"][0]) == ("h0", "p0")
    assert data.splits["train"]["label"] == [2, 1, 0] * 2
    assert data.task.token_ids["bert"] == (2053, 8699, 2748)

    rows = [{"text": f"s{index}", "aspect": "a", "label": index % 4} for index in range(8)]
    root = _folder(
        tmp_path, "laptop", train=rows, validation=[{**rows[0], "text": "v"}], test=[{**rows[1], "text": "w"}]
    )
    data = load_task(get_task("laptop"), "local", root, label_words="paper")
    assert data.splits["train"][3] == {"id": 3, "text_a": "s3 a", "text_b": "", "label": 3}
    with pytest.warns(UserWarning, match="2 train rows with label 3 are left out"):
        data = load_task(get_task("laptop"), "local", root)
    assert data.splits["train"]["id"] == [0, 1, 2, 4, 5, 6]


def test_overlap_with_train_is_one_warning_with_counts(tmp_path: Path) -> None:
    root = _folder(tmp_path, train=_rows(6), validation=_rows(3), test=[*_rows(1), *_rows(2, "w")])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _load(SINGLE, root)
    assert [str(item.message) for item in caught] == [
        "task toy: 3 of 3 validation rows and 1 of 3 test rows have texts that are in train too"
    ]


def test_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    splits = {"train": _rows(6), "validation": _rows(2, "v"), "test": _rows(2, "w")}
    one = _load(SINGLE, _folder(tmp_path / "one", **splits))
    two = _load(SINGLE, _folder(tmp_path / "two", **splits))
    splits["test"][0]["label"] = 1
    three = _load(SINGLE, _folder(tmp_path / "three", **splits))
    assert one.fingerprint == two.fingerprint != three.fingerprint


def test_root_from_the_environment_and_local_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _folder(tmp_path / "root", train=_rows(20))
    monkeypatch.setenv("PROMPT_TRANSFER_DATA", str(root))
    assert len(load_task(SINGLE, "local").splits["train"]) == 16
    _folder(tmp_path, "folder", train=_rows(30))
    (tmp_path / "toy.yaml").write_text("name: toy\ncolumns: {text_a: text}\nlabel_words: [bad, good]\nlocal: folder\n")
    assert len(load_task(get_task(tmp_path / "toy.yaml"), "local", root).splits["train"]) == 24


def test_where_it_looked_and_how_to_set_it(tmp_path: Path) -> None:
    for message in (_complaint(SINGLE, None), _complaint(SINGLE, tmp_path)):
        assert "--data.root" in message
        assert "PROMPT_TRANSFER_DATA" in message
    assert str(tmp_path / "toy") in _complaint(SINGLE, tmp_path)
    _folder(tmp_path, validation=_rows(3))
    message = _complaint(SINGLE, tmp_path)
    assert "no train.parquet, train.jsonl or train.csv" in message
    assert "validation.parquet" in message


def test_two_files_for_one_split(tmp_path: Path) -> None:
    _folder(tmp_path, train=_rows(3))
    (tmp_path / "toy" / "train.csv").write_text("text,label\n")
    assert "train.parquet and train.csv" in _complaint(SINGLE, tmp_path)


def test_a_split_under_another_name_is_pointed_out(tmp_path: Path) -> None:
    _folder(tmp_path, train=_rows(20), dev=_rows(2, "v"))
    with pytest.warns(UserWarning, match=r"dev\.parquet is not read; name it validation\.parquet"):
        _load(SINGLE, tmp_path)


def test_missing_column_names_those_that_there_are(tmp_path: Path) -> None:
    _folder(tmp_path, train=[{"sentence": "a", "label": 0}, {"sentence": "b", "label": 1}])
    message = _complaint(SINGLE, tmp_path)
    assert "no column 'text'" in message
    assert "sentence, label" in message


def test_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.csv").write_bytes("text,label\ncaf\u00e9,1\n".encode("latin-1"))
    assert "it is not UTF-8 text; save it as UTF-8" in _complaint(SINGLE, tmp_path)


def test_another_separator_is_told(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.csv").write_text("sentence;label\na film;1\n")
    assert "separate the columns by commas" in _complaint(SINGLE, tmp_path)


def test_missing_texts_name_column_split_count_and_row(tmp_path: Path) -> None:
    rows = _rows(6)
    rows[2]["text"] = rows[4]["text"] = None
    message = _complaint(SINGLE, _folder(tmp_path, train=rows))
    assert "column 'text' of the train split has 2 missing texts, the first in row 2" in message


def test_a_missing_text_stops_training_but_not_predicting(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    good = "text,label\none,0\ntwo,1\nthree,1\nfour,0\n"
    (folder / "train.csv").write_text(good + ",1\n")
    assert "has 1 missing text, the first in row 4" in _complaint(SINGLE, tmp_path)
    (folder / "train.csv").write_text(good)
    (folder / "test.csv").write_text("number,text\n1,six\n2,\n")
    found = load_task(SINGLE, "local", tmp_path)
    with pytest.warns(UserWarning, match="1 row of the test split has an empty text, the first is row 1"):
        rows = found.to_predict("test")
    assert rows["text_a"][:] == ["six", ""]


def test_texts_that_are_numbers(tmp_path: Path) -> None:
    message = _complaint(SINGLE, _folder(tmp_path, train=[{"text": 5, "label": 0}, {"text": 6, "label": 1}]))
    assert "is not text: 5 in row 0" in message


def test_labels_that_are_words_are_listed(tmp_path: Path) -> None:
    rows = [{"text": f"t{row}", "label": word} for row, word in enumerate(["neg", "pos", "neg", "neu"])]
    message = _complaint(SINGLE, _folder(tmp_path, train=rows))
    assert "label 'neg' in row 0" in message
    assert "the column holds neg, pos, neu; list its values in `labels`" in message


@pytest.mark.parametrize("value", [2, -1, None])
def test_unknown_label_names_value_row_and_split(tmp_path: Path, value: int | None) -> None:
    rows = _rows(6, "v")
    rows[3]["label"] = value
    frame = [{**row, "label": row["label"]} for row in rows]
    message = _complaint(SINGLE, _folder(tmp_path, train=_rows(6), validation=frame))
    assert "row 3 (counted from 0) of the validation split" in message
    if value is None:
        assert "has no label" in message
        assert "fill in one of 0, 1" in message
    else:
        assert f"label {value}" in message
        assert "none of the labels 0, 1" in message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": 1}] * 4, "all 4 training rows are of one class ('good')"),
        ([{"text": "a", "label": -1}] * 4, "the training split has no labels"),
    ],
)
def test_training_splits_that_teach_nothing(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    assert message in _complaint(SINGLE, _folder(tmp_path, train=rows, validation=_rows(2, "v"), test=_rows(2, "w")))


def test_empty_training_split(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.csv").write_text("text,label\n")
    assert "the training split is empty" in _complaint(SINGLE, tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", b'{"text": "a"\n'),
        ("train.jsonl", b"[1]\n"),
        ("train.parquet", b"PAR"),
        ("train.csv", b"a\n\xff\xfe\n"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / name).write_bytes(content)
    assert f"{name}: " in _complaint(SINGLE, tmp_path)


def test_a_class_without_training_rows_is_reported(tmp_path: Path) -> None:
    rows = [{"a": f"a{index}", "b": "b", "label": index % 2} for index in range(20)]
    with pytest.warns(UserWarning, match="no training row is of class yes"):
        _load(PAIR, _folder(tmp_path, train=rows))


def test_sources_do_not_stand_in_for_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not built in"):
        load_task(SINGLE, "builtin")
    with pytest.raises(UserError, match=r"not on the hub; use --data\.source local"):
        load_task(SINGLE, "hub", _folder(tmp_path, train=_rows(20)))
    with pytest.raises(UserError, match="hub, local and builtin"):
        load_task(SINGLE, "disk")  # type: ignore[arg-type]


def test_builtin_tasks_load() -> None:
    from prompt_transfer.data.builtin import BUILTIN_TASKS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = load_task(BUILTIN_TASKS[0], "builtin")
    assert data.origin == {"train": "official", "validation": "official", "test": "official"}
    assert set(data.splits["train"]["label"]) == set(range(BUILTIN_TASKS[0].num_classes))


def _hub(**splits: list[dict[str, Any]]) -> datasets.DatasetDict:
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})


def test_hub_row_is_asked_for_by_id_config_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"premise": f"p{index}", "hypothesis": "h", "label": index % 3, "idx": index} for index in range(30)]
    calls: list[Any] = []

    def fake(*args: Any, **options: Any) -> datasets.DatasetDict:
        calls.append((args, options))
        return _hub(
            train=rows, validation_matched=[{**row, "premise": "v"} for row in rows], validation_mismatched=rows
        )

    monkeypatch.setattr(datasets, "load_dataset", fake)
    data = load_task(get_task("mnli"), "hub")
    assert calls == [(("nyu-mll/glue", "mnli"), {"revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"})]
    assert data.splits["test"]["label"][:3] == [2, 1, 0]
    assert data.origin["test"] == "official validation"


def test_hub_script_repositories_are_read_as_files(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"scenario": f"s{index}", "label": index % 2} for index in range(20)]
    calls: list[Any] = []

    def fake(*args: Any, **options: Any) -> datasets.DatasetDict:
        calls.append((args, options))
        return _hub(train=rows, test=rows, test_hard=rows)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    with pytest.warns(UserWarning, match="in train too"):
        load_task(get_task("ethics_justice"), "hub")
    base = "hf://datasets/hendrycks/ethics@b8b47c589f8bee77175b8648e5497278b68da48a/data/justice"
    files = {name: f"{base}/{name}.csv" for name in ("train", "test", "test_hard")}
    assert calls == [(("csv",), {"data_files": files})]


SEMEVAL = [
    {"text": f"s{index}", "span": "a", "label": ("negative", "neutral", "positive", "conflict")[index % 4]}
    for index in range(40)
]


def test_hub_columns_and_labels_are_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    test = [{**row, "label": ""} for row in SEMEVAL[:4]]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: _hub(train=SEMEVAL, test=test))
    with pytest.warns(UserWarning, match="10 train rows with label conflict are left out"):
        data = load_task(get_task("laptop"), "hub")
    row = data.splits["train"][0]
    assert (row["text_b"], row["label"]) == ("a", row["id"] % 4)
    assert data.origin["test"] == "cut from train, seed 0"


@pytest.mark.parametrize("error", [ConnectionError("Couldn't reach it"), TimeoutError("slow")])
def test_hub_without_a_network_is_one_line_with_the_way_out(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    for name in ("sst2", "movie_rationales"):
        with pytest.raises(UserError) as caught:
            load_task(get_task(name), "hub")
        message = str(caught.value)
        assert "--data.source local" in message
        assert f"prompt-transfer data download --tasks {name}" in message
        assert "\n" not in message


def test_hub_errors_of_the_http_client_and_of_offline_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    def fail(*_: Any, **__: Any) -> None:
        try:
            raise OfflineModeIsEnabled("offline mode is on")
        except OfflineModeIsEnabled as error:
            raise FileNotFoundError("dataset not found") from error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match="the hub was not reached for nyu-mll/glue/sst2"):
        load_task(get_task("sst2"), "hub")


def test_hub_row_that_does_not_fit_says_that_it_was_never_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("BuilderConfig 'sst2' not found.\nAvailable: a")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"BuilderConfig 'sst2' not found\. Available: a.*never verified"):
        load_task(get_task("sst2"), "hub")


def test_download_writes_the_local_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: _hub(train=SEMEVAL, test=SEMEVAL[:8]))
    written = download_tasks("laptop, restaurant", tmp_path)
    assert [(row["task"], row["status"], row["rows"]) for row in written] == [
        ("laptop", "written", {"train": 40, "test": 8}),
        ("restaurant", "written", {"train": 40, "test": 8}),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["laptop", "restaurant"]
    assert sorted(path.name for path in (tmp_path / "laptop").iterdir()) == [
        "SOURCE.md",
        "test.parquet",
        "train.parquet",
    ]
    frame = pd.read_parquet(tmp_path / "laptop" / "test.parquet")
    assert list(frame.columns) == ["text", "aspect", "label"]
    assert frame["label"].tolist() == [0, 1, 2, 3] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        local = load_task(get_task("laptop"), "local", tmp_path)
        hub = load_task(get_task("laptop"), "hub")
    assert local.fingerprint == hub.fingerprint
    assert download_tasks(["laptop"], tmp_path)[0]["status"] == "kept"
    assert download_tasks(["laptop"], tmp_path, overwrite=True)[0]["status"] == "written"


def test_download_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match="not reached"):
        download_tasks(["sst2"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_comma_too_many_is_told_with_its_line(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\na good film,1\nlong, and bad,0\n")
    with pytest.raises(UserError, match="line 3 has 3 columns and the first line 2: put texts"):
        load_task(SINGLE, "local", tmp_path)


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("one \n\n  \ntwo\r\n", encoding="utf-8")
    assert load_texts(path, SINGLE)[:] == {"id": [0, 3], "text_a": ["one", "two"], "text_b": ["", ""]}
    path.write_text("\n\n")
    with pytest.raises(UserError, match="holds no text"):
        load_texts(path, SINGLE)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_texts(path, SINGLE)
    with pytest.raises(UserError, match="cannot read"):
        load_texts(tmp_path / "absent.txt", SINGLE)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name not in ("imdb", "sst2")], ids=lambda row: row.name)
def test_real_data_load(row: Task, tmp_path: Path) -> None:
    """Load a few hundred rows of each real task; laptop and mrpc are small enough to load whole."""
    folder = SHARED / row.name
    if not folder.is_dir():
        pytest.skip(f"no real data for {row.name} at {folder}")
    import pyarrow.parquet as pq

    (tmp_path / row.name).mkdir()
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        step = 1 if row.name in ("laptop", "mrpc") else max(1, len(table) // 300)
        pq.write_table(table.take(list(range(0, len(table), step))), tmp_path / row.name / path.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = load_task(row, "local", tmp_path, label_words="paper" if row.name == "qqp" else "default")
    assert set(data.splits) == {"train", "validation", "test"}
    assert all(len(part) > 0 for part in data.splits.values())
    if row.name == "qnli":
        assert data.origin["test"] == "official validation"


def test_real_imdb_and_sst2_split_sizes() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    with pytest.warns(UserWarning, match="18 of 2000 validation rows and 40 of 10000 test rows"):
        imdb = load_task(get_task("imdb"), "local", SHARED)
    assert {name: len(part) for name, part in imdb.splits.items()} == {
        "train": 23000,
        "validation": 2000,
        "test": 10000,
    }
    sst2 = load_task(get_task("sst2"), "local", SHARED)
    assert {name: len(part) for name, part in sst2.splits.items()} == {"train": 67349, "validation": 872, "test": 1821}
    assert sst2.splits["validation"]["label"].count(1) == 444


@pytest.mark.parametrize(
    ("labels", "classes"),
    [((0, 1), [0, 1, 1]), ((1, 0), [1, 0, 0]), ((False, True), [0, 1, 1]), (("true", "false"), [1, 0, 0])],
)
@pytest.mark.parametrize("written", [(False, True, True), ("False", "true", " TRUE "), (0, 1, 1.0), ("0", "1", "1.0")])
def test_booleans_and_0_and_1_are_the_same_two_labels(
    tmp_path: Path, labels: tuple[Any, ...], classes: list[int], written: tuple[Any, ...]
) -> None:
    task = Task(**{**SINGLE.__dict__, "labels": labels})
    (tmp_path / "toy").mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"text": f"{split} {row}", "label": label} for row, label in enumerate(written)]
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / "toy" / f"{split}.jsonl").write_text(text)
    assert _load(task, tmp_path).splits["train"]["label"][:] == classes


@pytest.mark.parametrize("labels", [(1, 2), (0, 1, 2), ("no", "yes"), (-1, 1)])
def test_booleans_are_refused_where_they_may_mean_anything(tmp_path: Path, labels: tuple[Any, ...]) -> None:
    words = ("bad", "good", "fine")[: len(labels)]
    task = Task(**{**SINGLE.__dict__, "labels": labels, "label_words": words})
    rows = [{"text": f"t{row}", "label": bool(row % 2)} for row in range(6)]
    message = _complaint(task, _folder(tmp_path, train=rows))
    assert "label False in row 0" in message
    assert "the column holds false, true; list its values in `labels`" in message


def test_a_label_to_drop_is_no_other_way_to_write_one(tmp_path: Path) -> None:
    task = Task(**{**SINGLE.__dict__, "drop_labels": ("true",)})
    rows = [{"text": f"t{row}", "label": (0, 1, True)[row % 3]} for row in range(9)]
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="3 train rows with label true are left out"):
        _load(task, tmp_path)
