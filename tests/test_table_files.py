"""Users' tables: no column shifts silently; errors name the file and the line or row."""

from __future__ import annotations

import csv
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prompt_transfer.data.sources import load_task
from prompt_transfer.data.texts import load_texts, texts_to_predict
from prompt_transfer.tasks.registry import Task
from prompt_transfer.utils.errors import UserError

SINGLE = Task(name="toy", type="topic", text_a="text", labels=(0, 1), label_words=("bad", "good"))
QA = Task(name="toy", type="qa", text_a="text", label_column=None, target_column="answers", metric="squad_f1")


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / "toy").mkdir(exist_ok=True)
    path = folder / "toy" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _rows(folder: Path, task: Task = SINGLE) -> list[tuple[str, Any]]:
    """Return text and answer of each row of train, in file order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = load_task(task, "local", folder)
    answer = "target" if task.is_generation else "label"
    found = [(row["id"], row["text_a"], row[answer]) for part in data.splits.values() for row in part]
    return [row[1:] for row in sorted(found)]


def _complaint(folder: Path, path: Path, task: Task = SINGLE) -> str:
    """Return the error of both ways to read a file: one line that names it."""
    messages = []
    for read in (lambda: load_task(task, "local", folder), lambda: load_texts(path, task)):
        with pytest.raises(UserError) as caught:
            read()
        messages.append(str(caught.value))
    assert str(path) in messages[0]
    assert "\n" not in messages[0]
    assert messages[0].removeprefix("task toy: ") == messages[1].removeprefix("task toy: ")
    return messages[0]


PLAIN = "".join(f"text {row},{row % 2}\n" for row in range(6))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # In the first row, in all rows, and after a valid one: pandas takes surplus fields for an index.
        ("I hated it, really,0\n" + PLAIN, "line 2 has 3 columns and the first line 2: put texts"),
        ("".join(f"I hated it, really {row},{row % 2}\n" for row in range(6)), "line 2 has 3 columns"),
        (PLAIN + "I hated it, really,0\n", "line 8 has 3 columns"),
        (PLAIN + "one, two, three, four,0\n", "line 8 has 5 columns"),
        ("a,0,\n" + PLAIN, "line 2 has 3 columns"),
        # Line numbers are physical: after a text of three lines, and blank lines.
        ('"a\nb\r\nc",0\n\n  \nlong, and bad,1\n' + PLAIN, "line 7 has 3 columns"),
        ("no label\n" + PLAIN, "line 2 has 1 column and the first line 2: fill in what is missing"),
        (PLAIN + '"a\nb, c"\n', "line 8 has 1 column and"),
        # Backslash escapes.
        ('"he said \\"no\\", really",0\n' + PLAIN, "line 2 goes on after a closing quote: write a quote inside"),
        ('"say \\", he said",0\n' + PLAIN, "line 2 has 3 columns"),
        (PLAIN + '"it ends with \\"",0\n', "a quoted text that begins in line 8 has no end"),
        (PLAIN + '"it ends with \\"",0\n"next",1\n', "line 8 goes on after a closing quote"),
        ('"it ends with \\"",0\nplain,1\nof size 5",1\n' + PLAIN, "line 2 can be read in two ways"),
        ('"never closed,0\n' + PLAIN, "a quoted text that begins in line 2 has no end"),
    ],
)  # fmt: skip
def test_records_with_more_or_fewer_fields_than_the_header_are_refused(
    tmp_path: Path, lines: str, expected: str
) -> None:
    assert expected in _complaint(tmp_path, _write(tmp_path, "train.csv", "text,label\n" + lines))


def test_fields_follow_rfc_4180(tmp_path: Path) -> None:
    texts = [
        'a, "b"\nc', 'print(\\"x\\",\n y)', "C:\\", 'ends \\"', " blank ", "5 inches", "\u00e9\u2028\u0085x", 'q","0',
        "\\", "x\r\ny",
    ]  # fmt: skip
    path = _write(tmp_path, "train.csv", b"")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id, of it", "text", "label"])
        for row, text in enumerate(texts):
            writer.writerow([row, text, row % 2])
        file.write('11,size 5",1\n\n12,a \\"word\\",0')
    found = [(text, row % 2) for row, text in enumerate(texts)]
    assert _rows(tmp_path) == [*found, ('size 5"', 1), ('a \\"word\\"', 0)]


def test_a_long_field_is_read(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    _write(tmp_path, "train.csv", f"text,label\n{'x ' * 200_000},0\n{PLAIN}")
    assert len(_rows(tmp_path)[0][0]) == 400_000
    assert csv.field_size_limit() == limit


def test_67_thousand_records_are_read_in_less_than_three_seconds(tmp_path: Path) -> None:
    texts = 'a gorgeous and \\"witty\\" movie,1\n"as long as those of the real task, or nearly",0\n'
    path = _write(tmp_path, "t.csv", "text,label\n" + texts * 33_500)
    tracer = sys.gettrace()
    # Tracing for coverage would take longer than reading.
    sys.settrace(None)
    try:
        started = time.process_time()
        assert len(load_texts(path, SINGLE)) == 67_000
        seconds = time.process_time() - started
    finally:
        sys.settrace(tracer)
    assert seconds < 3


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.parquet"])
def test_duplicate_columns_are_refused_if_they_are_used(tmp_path: Path, name: str) -> None:
    def write(names: list[str]) -> Path:
        values = ["a", "b", 0]
        if name.endswith("parquet"):
            path = _write(tmp_path, name, b"")
            pq.write_table(pa.Table.from_arrays([pa.array([value] * 6) for value in values], names=names), path)
            return path
        if name.endswith("csv"):
            return _write(tmp_path, name, f"{','.join(names)}\n" + "a,b,0\n" * 6)
        pairs = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in zip(names, values, strict=True))
        return _write(tmp_path, name, '{"text": "x", "label": 1}\n' + f"{{{pairs}}}\n" * 5)

    message = _complaint(tmp_path, write(["text", "text", "label"]))
    where = {"train.csv": "line 1", "train.jsonl": "line 2", "train.parquet": "it"}[name]
    assert f"{where} has 2 columns named 'text'; keep one" in message
    # Columns that no task reads may have any name.
    assert load_texts(write(["note", "text", "note"]), SINGLE)["text_a"][-1] == "b"


def test_duplicate_keys_inside_an_answer_are_refused(tmp_path: Path) -> None:
    good = '{"text": "a", "answers": {"text": ["b"]}}\n'
    path = _write(tmp_path, "train.jsonl", good * 4 + '{"text": "a", "answers": {"text": ["b"], "text": ["c"]}}\n')
    with pytest.raises(UserError, match="line 5 in its 'answers' has 2 columns named 'text'"):
        load_task(QA, "local", tmp_path)
    assert len(load_texts(path, QA)) == 5


@pytest.mark.parametrize(
    "answers",
    [
        '{"text": ["b"], "more": {"start": 1, "start": 2}}',
        '{"text": ["b"], "more": [[1, {"start": 1, "start": 1}]]}',
        '[{"start": "b", "start": "c"}]',
        '{"text": [{"a": [{"b": {"start": 0, "start": 1}}]}]}',
    ],
)
def test_duplicate_keys_are_refused_at_any_depth(tmp_path: Path, answers: str) -> None:
    good = '{"text": "a", "answers": {"text": ["b"]}, "other": [{"a": 1, "a": 2}]}\n'
    _write(tmp_path, "train.jsonl", good * 4 + f'{{"text": "a", "answers": {answers}}}\n')
    with pytest.raises(UserError, match="line 5 in its 'answers' has 2 columns named 'start'"):
        load_task(QA, "local", tmp_path)


@pytest.mark.parametrize("key", ["text", "label"])
def test_a_lone_surrogate_is_reported_with_its_line(tmp_path: Path, key: str) -> None:
    other = {"text": '"label": 1', "label": '"text": "a"'}[key]
    good = '{"text": "a \\ud83d\\ude00", "label": 0}\n'
    path = _write(tmp_path, "train.jsonl", good * 3 + "\n" + f'{{"{key}": "b \\ud83d", {other}}}\n' + good)
    with pytest.raises(UserError) as caught:
        load_task(SINGLE, "local", tmp_path)
    assert f"cannot read {path}: line 5 has in its column '{key}' half of a surrogate pair" in str(caught.value)
    if key == "text":
        assert "line 5" in _complaint(tmp_path, path)


def test_lone_surrogates_in_answers_and_in_texts_from_python_are_refused(tmp_path: Path) -> None:
    good = '{"text": "a", "answers": {"text": ["b"]}}\n'
    _write(tmp_path, "train.jsonl", good * 4 + '{"text": "a", "answers": {"text": ["b", "\\udc00"]}}\n')
    with pytest.raises(UserError, match="line 5 has in its column 'answers' half of a surrogate pair"):
        load_task(QA, "local", tmp_path)
    with pytest.raises(UserError, match=r"text 1 \(counted from 0\) has half of a surrogate pair"):
        texts_to_predict(["a", "b \ud800"])
    with pytest.raises(UserError, match=r"text 0 \(counted from 0\) has half of a surrogate pair"):
        texts_to_predict(["a", "b"], ["\udfff", "c"])


def test_parquet_text_that_is_not_utf8_is_reported_with_its_row(tmp_path: Path) -> None:
    path = _write(tmp_path, "train.parquet", b"")
    texts = pa.array([b"a", b"b", "\u00e9".encode("latin-1")] * 2).view(pa.string())
    pq.write_table(pa.table({"text": texts, "label": [0, 1, 0] * 2}), path)
    expected = "row 2 (counted from 0) has in its column 'text' a value that is not UTF-8 text"
    assert expected in _complaint(tmp_path, path)


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_text_files_that_are_not_utf8_are_reported_with_the_line(tmp_path: Path, name: str) -> None:
    path = _write(
        tmp_path, name, b"text,label\na,1\ncaf\xe9,0\n" if name == "train.csv" else b'{"text": "a"}\n\n"\xe9"'
    )
    assert "it is not UTF-8 text; save it as UTF-8 (line 3 holds the byte 0xe9)" in _complaint(tmp_path, path)


def test_parquet_files_of_pandas_and_pyarrow_are_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": [f"t{row}" for row in range(6)], "label": [0, 1] * 3})
    expected = [(f"t{row}", row % 2) for row in range(6)]
    path = _write(tmp_path, "train.parquet", b"")
    frame.set_index("text").to_parquet(path)
    assert _rows(tmp_path) == expected
    assert load_texts(path, SINGLE)["text_a"][:] == [text for text, _ in expected]
    frame.set_index(["label", "text"]).to_parquet(path)
    assert _rows(tmp_path) == expected
    frame.astype({"text": "category", "label": "Int64"}).to_parquet(path)
    assert _rows(tmp_path) == expected
    frame.loc[0, "text"] = None
    frame.astype({"text": "category"}).to_parquet(path)
    with pytest.warns(UserWarning, match="1 row of the file has an empty text"):
        assert load_texts(path, SINGLE)["text_a"][:2] == ["", "t1"]
    dotted = Task(**{**SINGLE.__dict__, "text_a": "a.b"})
    pq.write_table(pa.table({"a.b": ["x", "y"] * 3, "a": [{"b": "z"}] * 6, "label": [0, 1] * 3}), path)
    assert _rows(tmp_path, dotted) == [("x", 0), ("y", 1)] * 3


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "label=1"
    folder.mkdir()
    path = _write(folder, "train.parquet", b"")
    pd.DataFrame({"text": ["a", "b"] * 3, "label": [0, 1] * 3}).to_parquet(path)
    assert _rows(folder) == [("a", 0), ("b", 1)] * 3


def test_messages_quote_a_file_in_one_short_line(tmp_path: Path) -> None:
    path = _write(tmp_path, "train.csv", '"two\nlines",' + "x" * 500 + "\n" + "a,b\n" * 5)
    message = _complaint(tmp_path, path)
    assert "'two\\nlines', xxx" in message
    assert len(message) < 300 + len(str(path))
    _write(tmp_path, "train.csv", "text,label\n" + 'a,"many\nwords, ' + "x" * 500 + '"\nb,1\n')
    with pytest.raises(UserError) as caught:
        load_task(SINGLE, "local", tmp_path)
    assert "label 'many\\nwords, xx" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_an_empty_file_and_deeply_nested_json_are_refused(tmp_path: Path) -> None:
    assert "it is empty; its first line must name the columns" in _complaint(
        tmp_path, _write(tmp_path, "train.csv", "")
    )
    (tmp_path / "toy" / "train.csv").unlink()
    path = _write(tmp_path, "train.jsonl", '{"text": "a", "label": 0}\n{"text": ' + "[" * 200_000)
    assert "line 2 is not JSON" in _complaint(tmp_path, path)
