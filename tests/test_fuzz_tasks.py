"""Fuzzing of task files: the script detects a faulty reader and finds no fault in the project's."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pandas as pd
import pytest

from prompt_transfer.utils.errors import UserError

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fuzz_tasks")


@pytest.fixture
def files(fuzz: ModuleType) -> ModuleType:
    return importlib.import_module("task_files")


def test_the_reader_of_rfc_4180_by_hand(files: ModuleType) -> None:
    text = 'text,label\r\n"a ""b""\r\n, c",0\r\n  \r\nd "e",1'
    assert files.reference_csv(b"\xef\xbb\xbf" + text.encode(), "text") == ['a "b"\r\n, c', 'd "e"']
    assert files.reference_csv(b"text,label\nI hated it, really,0\n", "text") is None
    assert files.reference_csv(b'text,label\n"a" b,0\n', "text") is None
    assert files.reference_csv(b'text,label\n"a,0\n', "text") is None
    assert files.reference_csv(b"text,text\na,b\n", "text") is None


def test_a_reader_that_goes_wrong_is_seen(
    fuzz: ModuleType, files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fuzz.Fuzz(tmp_path, 0)
    task = files.Task("toy", "topic", "text", label_words=("bad", "good"))
    rows = [("tx0q a", "", 0), ("tx1q b", "", 1)]
    path = made.folder / "train.csv"

    def outcome(reads: Any, way: str = "same", place: str | None = None) -> str:
        one = files.Made("csv", task, rows, way, b"text,note\ntx0q a,nt0q\ntx1q b,nt1q\n")
        return made._outcome(one, path, lambda made, path: reads(), place)

    def fail(error: Exception) -> Any:
        raise error

    assert outcome(lambda: [("tx0q a",), ("tx1q b",)]) == "accepted"
    assert outcome(lambda: [("tx0q a",), ("nt1q",)]).startswith("shifted: ")
    assert outcome(lambda: [("tx0q a",)]).startswith("misread: ")
    assert outcome(lambda: [("tx0q a",), ("nt1q",)], "damage").startswith("shifted: ")
    assert outcome(lambda: [("tx0q a",), ("tx1q b",)], "fault comma", "line 2 ").startswith("misread: ")
    assert outcome(lambda: fail(KeyError("text"))) == "crash: KeyError: 'text'"
    refused = f"cannot read {path}: line 2 has 3 columns"
    assert outcome(lambda: fail(UserError(refused)), "fault comma", "line 2 ") == "refused"
    assert outcome(lambda: fail(UserError(refused)), "fault comma", "line 3 ").startswith("unnamed: ")
    assert outcome(lambda: fail(UserError(refused + "\n"))).startswith("unnamed: ")
    assert outcome(lambda: fail(UserError("line 2 has 3 columns"))).startswith("unnamed: ")
    assert outcome(lambda: fail(UserError(refused))).startswith("misread: ")

    # The earlier pandas call: surplus fields of a record become an index.
    def as_pandas(path: Path, task: Any) -> datasets.Dataset:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
        return datasets.Dataset.from_dict({"text_a": frame["text"].tolist(), "text_b": [""] * len(frame)})

    monkeypatch.setattr(fuzz, "load_texts", as_pandas)
    monkeypatch.setattr(made, "_readers", lambda made: [(fuzz.of_texts, made.texts_place)])
    assert {made.read(number)[1].partition(":")[0] for number in range(0, 300, 3)} >= {"misread", "crash"}


def test_three_hundred_task_files(fuzz: ModuleType, tmp_path: Path) -> None:
    report = fuzz.fuzzed(300, seed=1, keep=tmp_path / "kept", chunk=None)
    assert report["wrong"] == []
    assert report["accepted"] + report["refused"] == 300
    for kind in ("csv", "jsonl", "parquet"):
        assert report["by_kind"][f"{kind}_same accepted"] >= 20
        assert report["by_kind"][f"{kind}_fault refused"] >= 20
        assert report["by_kind"].get(f"{kind}_fault accepted", 0) == 0
