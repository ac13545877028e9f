"""Tables: tidy files, and printed tables that fit 80 columns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prompt_transfer.cli import main
from prompt_transfer.tasks.registry import task_names
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_common_columns_come_first_and_what_is_missing_is_empty() -> None:
    frame = results.table([{"extra": 1, "value": 0.5}])
    assert list(frame.columns) == [*results.COLUMNS, "extra"]
    assert frame["task"].isna().all()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_survives_its_file(suffix: str, tmp_path: Path) -> None:
    path = results.write(results.table([{"task": "a", "value": 0.25}]), tmp_path / f"new/t{suffix}")
    frame = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    assert frame.loc[0, "value"] == 0.25


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.csv or \.parquet"):
        results.write(results.table([]), tmp_path / "t.xlsx")


def test_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    results.show([{"[b]path": "[/no]/[red]/x.safetensors", "words": ["terrible", "great"]}])
    out = "\n".join(shown(capsys))
    assert "[b]path" in out
    assert "[/no]/[red]/x.safetensors" in out
    assert "terrible, great" in out


def test_a_narrow_table_breaks_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "task": "builtin_restaurants",
        "split": "validation (cut from train, seed 0)",
        "metric": "accuracy",
        "what": "random prompt",
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "n": 600,
    }
    results.show([row])
    lines = shown(capsys)
    assert max(map(len, lines)) <= 80
    out = "\n".join(lines)
    for word in ("builtin_restaurants", "validation", "accuracy", "random", "0.500", "600"):
        assert word in out


def test_only_the_widest_word_is_broken_where_nothing_else_helps() -> None:
    assert results.fit_widths([["p" * 50, "two words", "7"]], 20) == [14, 5, 1]


def test_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    results.show([])
    assert shown(capsys) == ["(nothing)"]


def test_the_list_of_tasks_has_one_line_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "list"]) == 0
    lines = shown(capsys)
    rows = [line for line in lines if line.split(" ")[0] in task_names()]
    assert len(rows) == len(task_names())
    assert any("builtin_ethics_deeds" in row and "wrong, right" in row for row in rows)
    assert main(["tasks", "hub"]) == 0
    assert any("nyu-mll/glue/sst2 (unverified)" in line for line in shown(capsys))


def test_names_are_broken_at_their_marks() -> None:
    assert results.fold("builtin_restaurants/prompt", 20).splitlines() == ["builtin_restaurants/", "prompt"]
    assert results.fold("a builtin_restaurants", 12).splitlines() == ["a builtin_", "restaurants"]
    assert results.fold("abcdefgh", 3).splitlines() == ["abc", "def", "gh"]
    assert results.fold("", 3) == ""
    # An interval and a negative number are not split.
    assert results.fold("0.955 " + results.interval(-0.12, 1, 2), 13).splitlines() == ["0.955", "-0.12 to 1.00"]
    assert results.interval(float("nan"), float("nan"), 2) == "-"


def test_spare_columns_give_way_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"name": "n" * 20, "first": "f" * 20, "second": "s" * 20}]
    for width, shown in ((80, "name first second"), (50, "name second"), (24, "name")):
        monkeypatch.setenv("COLUMNS", str(width))
        results.show(rows, spare=("first", "second"))
        assert capsys.readouterr().out.splitlines()[0].split() == shown.split()


def test_tables_are_kept_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "half": np.float32(0.5),
        "count": np.int64(3),
        "nothing": float("nan"),
        "missing": pd.NA,
        "path": Path("a/b"),
        "words": ("yes", None),
        "sure": np.bool_(True),
    }
    with results.kept() as tables:
        assert results.keeping()
        results.show([row], "title", columns=["half"])
        results.show([{"shown": "in words"}], data=[{"shown": 1}])
    assert not results.keeping()
    first, second = tables
    assert first["title"] == "title"
    assert first["rows"] == [
        {"half": 0.5, "count": 3, "nothing": None, "missing": None, "path": "a/b", "words": ["yes", None], "sure": True}
    ]
    assert second["rows"] == [{"shown": 1}]
    assert json.loads(json.dumps(tables)) == tables
    assert capsys.readouterr().out == ""


def test_what_all_rows_have_in_common_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"task": "films", "split": "test (official)", "what": what, "value": 0.5} for what in ("own", "random")]
    results.show(rows, "scores", common=("task", "split", "value"), columns=["task", "split", "what", "value"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "scores, films, test (official), 0.500"
    assert lines[1].split() == ["what"]
    results.show([*rows, {**rows[0], "task": "books"}], common=("task", "split"), columns=["task", "split", "what"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test (official)"
    assert lines[1].split() == ["task", "what"]


LONG = (
    "tweet_eval_sentiment",
    "builtin_ethics_deeds",
    "movie_rationales",
    "builtin_restaurants",
    "averyveryverylongtaskname",
)
# Column names of the tables that commands print; texts take the longest task names.
TABLES = [
    ("task", "split", "metric", "what", "value", "low", "high", "n"),
    ("target", "own", "best other", "of", "vocabulary", "uniform", "majority", "learned"),
    ("task", "seed", "learning_rate", "held_out", "split", "metric", "value", "majority", "n", "best_step"),
    ("task", "what", "value", "ahead", "ahead_low", "ahead_high"),
    ("task", "source", "measure", "unit", "n", "result"),
    ("place", "source", "prompt", "sample_score", "neuron_overlap", "label_word_overlap", "cosine_average"),
    ("ranking", "seconds", "needs", "nDCG", "Regret@1", "Regret@3", "Spearman"),
    ("path", "task", "backbone", "rows", "mode", "kind", "score", "seed"),
    ("run", "task", "learning_rate", "attention", "init", "metric", "value", "majority", "best_step"),
    ("name", "task", "backbone", "rows", "width", "layout", "kind"),
    ("mask", "mask_source", "method", "ratio", "masked", "value", "low", "high", "unmasked", "drop", "majority"),
    tuple(f"a_rather_long_column_{number}" for number in range(14)),
]
TEXTS = {
    "split": "validation (cut from train, seed 0)", "metric": "accuracy", "what": "random prompt", "learned": "yes",
    "measure": "comparable result", "unit": "step", "result": "1.73 [1.31, 2.44]", "mode": "mask_first full",
    "kind": "projected random", "score": "accuracy 0.805", "needs": "labelled examples, a backward pass", "init":
    "prompt_transfer.prompts.initializers.Vocabulary", "attention": "shared", "layout": "start_answer_last",
    "path": "runs/cross_task/runs/tweet_eval_sentiment-seed0/prompt-seed0.safetensors", "method": "zero",
}  # fmt: skip
WORDS = ("task", "target", "of", "source", "prompt", "run", "name", "ranking", "mask_source", "backbone", "mask")


@pytest.mark.parametrize("columns", TABLES, ids=lambda columns: columns[1])
def test_no_word_takes_six_lines_in_eighty_columns(
    columns: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {name: TEXTS[name] if name in TEXTS else LONG[number] if name in WORDS else number + 0.731 for name in columns}
        for number in range(len(LONG))
    ]
    results.show(rows)
    lines = shown(capsys)
    assert max(map(len, lines)) <= 80
    body = "\n".join(lines)
    for number in range(len(LONG)):
        # Numbers are never broken.
        assert body.count(f"{number + 0.731:.3f}") == sum(name not in TEXTS and name not in WORDS for name in columns)
    # Each row of a table takes at most five lines a word and a few for spaces; a block takes a line per column.
    texts = [max(len(value.split()) for value in map(str, row.values())) for row in rows]
    assert len(lines) <= 2 + 5 + sum(max(5 * count, 2 * len(columns) + 1) for count in texts)


def test_a_table_that_cannot_fit_is_printed_as_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [f"a_rather_long_column_{number}" for number in range(14)]
    results.show([dict.fromkeys(columns, 0.5), dict.fromkeys(columns, 0.25)], "two rows")
    lines = shown(capsys)
    assert lines[0] == "two rows"
    assert lines[1] == "a_rather_long_column_0   0.500"
    assert lines[15] == ""
    assert lines[-1] == "a_rather_long_column_13  0.250"


def test_numbers_are_not_broken_by_long_names() -> None:
    rows = [["target", "vocabulary", "value"], ["x" * 60, "0.731", "0.500"]]
    assert results.fit_widths(rows, 26, [False, True, True]) == [12, 9, 5]
    assert sum(results.fit_widths(rows, 20, [False, True, True])) > 20
