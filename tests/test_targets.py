"""Generation tasks: from a source's answers to `target_ids`, and back from ids to answers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from fake_encoder import END, FakeEncoder, words

from prompt_transfer.data.baselines import trivial_score
from prompt_transfer.data.batches import IGNORED, collate
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.download import download_tasks
from prompt_transfer.data.sources import load_task
from prompt_transfer.data.tokens import TokenTable, cache_path, tokenise
from prompt_transfer.tasks.registry import Task, get_task
from prompt_transfer.utils.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
QA = Task(name="toy", type="qa", text_a="q", label_column=None, target_column="answers", metric="squad_f1")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PROMPT_TRANSFER_DATA", raising=False)
    datasets.disable_progress_bars()


def _folder(root: Path, name: str = "toy", **splits: list[dict[str, Any]]) -> Path:
    (root / name).mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (root / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def _questions(count: int, prefix: str = "t") -> list[dict[str, Any]]:
    """Return rows whose first answer has i % 3 + 1 words."""
    return [{"q": f"{prefix}{i}", "answers": [" ".join(["w" * (i + 1)] * (i % 3 + 1)), "other"]} for i in range(count)]


def _yaml(root: Path, name: str = "toy", **keys: Any) -> str:
    lines = {"name": name, "columns": {"text_a": "q"}, "local": name, **keys}
    (root / f"{name}.yaml").write_text(json.dumps(lines))
    return str(root / f"{name}.yaml")


def _written(root: Path, **keys: Any) -> str:
    """Write a task file of questions, with its folder next to it."""
    _folder(root, train=_questions(12), validation=_questions(5, "v"), test=_questions(4, "s"))
    return _yaml(root, **{"target_column": "answers", "metric": "squad_f1", "max_target_length": 4, **keys})


def _module(task: str | list[str], **options: Any) -> TaskDataModule:
    encoder = options.pop("encoder", None) or FakeEncoder()
    return TaskDataModule(task, **{"source": "local", "batch_size": 4, **options}).connect(encoder)


# Answers of a source.


def _load(root: Path, train: list[Any], **more: list[Any]) -> list[list[str]]:
    rows = {"train": train, "validation": ["v"], "test": ["w"], **more}
    made = {
        split: [{"q": f"{split} {i}", "answers": answer} for i, answer in enumerate(answers)]
        for split, answers in rows.items()
    }
    return load_task(QA, "local", _folder(root, **made)).splits["train"]["target"][:]


def test_answers_may_be_a_text_a_list_or_a_list_in_a_dict(tmp_path: Path) -> None:
    assert _load(tmp_path, ["a", ["b", "c"], {"text": ["d"], "answer_start": [3]}, ["", "e", "  "]]) == [
        ["a"],
        ["b", "c"],
        ["d"],
        ["e"],
    ]


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"5 train rows without an answer in column 'answers' .* first is row 1 "):
        assert _load(tmp_path, ["a", "", [], [" "], None, {"text": []}, "b"]) == [["a"], ["b"]]


def test_missing_answers_of_a_csv_file_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    lines = "".join(f"q{index},{'' if index == 2 else index}\n" for index in range(20))
    (tmp_path / "toy" / "train.csv").write_text("q,answers\n" + lines)
    with pytest.warns(UserWarning, match="1 train rows without an answer"):
        data = load_task(QA, "local", tmp_path)
    ids = sorted(number for part in data.splits.values() for number in part["id"])
    assert ids == [number for number in range(20) if number != 2]


def test_answers_that_are_no_texts_are_named(tmp_path: Path) -> None:
    for wrong, shown in ((3, "3"), (["a", 4], "4"), (["a", None], "None")):
        with pytest.raises(UserError, match=rf"'answers' of the train split is not text: {shown} in row 1 \(counted"):
            _load(tmp_path, ["a", wrong])


def test_a_split_without_answers_is_unlabelled(tmp_path: Path) -> None:
    rows = {"train": _questions(20), "validation": _questions(3, "v"), "test": [{"q": "w", "answers": []}]}
    data = load_task(QA, "local", _folder(tmp_path, **rows))
    assert data.origin["test"] == "official validation"
    assert data.origin["validation"] == "cut from train, seed 0"
    with pytest.raises(UserError, match="the training split has no answers in its column 'answers'"):
        load_task(QA, "local", _folder(tmp_path / "other", train=[{"q": "w", "answers": ""}] * 3))


# Tables and batches.


def _table(targets: list[list[int]] | None, rows: int = 3) -> TokenTable:
    numbers = np.arange(rows)
    columns = (numbers.astype(np.int32) + 10, np.arange(rows + 1), numbers * 0 - 1, numbers * 0, numbers)
    if targets is None:
        return TokenTable(*columns)
    flat = np.array([token for target in targets for token in target], dtype=np.int32)
    return TokenTable(*columns, flat, np.cumsum([0, *map(len, targets)]))


def test_target_ids_are_padded_with_what_the_loss_ignores() -> None:
    table = _table([[5, 2], [6, 7, 8, 2], [2]])
    batch = collate(table, np.array([0, 2]), 0, pad_multiple=4)
    assert batch["target_ids"].tolist() == [[5, 2], [2, IGNORED]]
    assert batch["input_ids"].tolist() == [[10, 0, 0, 0], [12, 0, 0, 0]]
    assert batch["target_ids"].dtype == torch.int64
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED
    assert table.longest_target == 4
    assert "target_ids" not in collate(_table(None), np.array([0]), 0)


def test_a_mixture_has_empty_targets_where_there_are_none() -> None:
    mixed = TokenTable.concatenate([_table(None, 2), _table([[5, 2], [6, 7, 2]], 2), _table(None, 1)])
    assert mixed.target_offsets is not None
    assert mixed.target_offsets.tolist() == [0, 0, 0, 2, 5, 5]
    assert mixed.target_lengths.tolist() == [0, 0, 2, 3, 0]
    batch = collate(mixed, np.array([0, 3]), 0)
    assert batch["target_ids"].tolist() == [[IGNORED] * 3, [6, 7, 2]]
    assert collate(mixed, np.array([0, 4]), 0)["target_ids"].tolist() == [[IGNORED], [IGNORED]]
    plain = TokenTable.concatenate([_table(None, 2), _table(None, 1)])
    assert plain.target_values is plain.target_offsets is None
    assert plain.longest_target == 0


def _tokenise(**options: Any) -> TokenTable:
    targets = [["one two three", "x"], ["a"], ["bb bb bb bb bb bb"]]
    rows = datasets.Dataset.from_dict({"id": [0, 1, 2], "text_a": ["a"] * 3, "text_b": [""] * 3, "target": targets})
    encoder = options.pop("encoder", None) or FakeEncoder()
    return tokenise(rows.select(options.pop("rows", range(3))), encoder, 8, pairs=False, **options)


def test_the_first_target_is_written_and_cutting_keeps_its_end(tmp_path: Path) -> None:
    table = _tokenise(max_target_length=4)
    assert table.target_values is not None
    assert table.target_values.tolist() == [*words("one two three"), END, *words("a"), END, *words("bb bb bb"), END]
    assert table.target_lengths.tolist() == [4, 2, 4]
    assert (table.target_values.dtype, table.target_offsets.dtype) == (np.int32, np.int64)  # type: ignore[union-attr]
    assert table.labels.tolist() == [-1, -1, -1]
    assert _tokenise().target_values is None
    empty = _tokenise(max_target_length=4, rows=[])
    assert (len(empty), empty.longest_target) == (0, 0)
    file = cache_path(tmp_path, "x", {})
    first, again = (_tokenise(max_target_length=4, cache_file=file) for _ in range(2))
    assert np.array_equal(first.target_values, again.target_values)  # type: ignore[arg-type]
    assert again.target_lengths.tolist() == [4, 2, 4]


# The data module.


def test_batches_of_a_generation_task(tmp_path: Path) -> None:
    data = _module(_written(tmp_path), eval_batch_size=3)
    data.setup()
    train = [part for batch in data.train_dataloader() for part in batch["micro_batches"]]
    assert sum(len(part["target_ids"]) for part in train) == 12
    first = next(iter(data.val_dataloader()))
    assert first["ids"].tolist() == [0, 1, 2]
    assert first["target_ids"].tolist() == [[4, END, -100, -100], [5, 5, END, -100], [6, 6, 6, END]]
    assert first["labels"].tolist() == [-1, -1, -1]
    assert data.targets("validation", first["ids"][1:]) == [["ww ww", "other"], ["www www www", "other"]]
    assert data.label_counts("test") == []
    assert data.num_examples("test") == 4


def test_describe_tells_of_targets(tmp_path: Path) -> None:
    data = _module(_written(tmp_path), limit_eval=3)
    data.setup("validate")
    facts = data.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["label_words"] == {"toy": []}
    assert facts["max_target_length"] == {"toy": 4}
    # The seed selects 3 of the 5 rows; targets of three words fill 4 tokens.
    known = data.targets("validation", torch.tensor(data.selection.rows("validation")["id"][:]))
    full = sum(len(answers[0].split()) == 3 for answers in known)
    split = facts["splits"]["toy"]["validation"]
    assert split == {
        "rows": 3,
        "available": 5,
        "origin": "official",
        "at_max_length": 0,
        "at_max_target_length": full,
    }


def test_targets_are_those_of_the_rows_whatever_the_split_and_task(tmp_path: Path) -> None:
    _folder(tmp_path, train=_questions(30))
    files = [_yaml(tmp_path, target_column="answers"), _yaml(tmp_path, "twin", target_column="answers", local="toy")]
    data = _module(files, eval_batch_size=2)
    data.setup()
    seen = 0
    for split, loader in (("validation", data.val_dataloader()), ("test", data.test_dataloader())):
        for batch in loader:
            for number, answers in zip(batch["ids"].tolist(), data.targets(split, batch["ids"]), strict=True):
                assert answers == _questions(30)[number % 2**32]["answers"]
                seen += 1
    assert seen == 2 * (3 + 3)


def test_a_classification_and_a_generation_task_in_one_run(tmp_path: Path) -> None:
    labelled = [{"q": f"c{i}", "label": i % 2} for i in range(10)]
    _folder(tmp_path, "side", train=labelled, validation=[{"q": "x", "label": 0}], test=[{"q": "y", "label": 0}])
    data = _module([_yaml(tmp_path, "side", label_words=["no", "yes"]), _written(tmp_path)])
    data.setup()
    batches = [part for batch in data.train_dataloader() for part in batch["micro_batches"]]
    for part in batches:
        without = (part["target_ids"] == IGNORED).all(dim=1)
        assert torch.equal(without, part["task_ids"] == 0)
        assert torch.equal(part["labels"] >= 0, without)
    assert any(len(part["task_ids"].unique()) == 2 for part in batches)
    assert trivial_score(data, "validation", 0) == 1.0
    with pytest.raises(ValueError, match="side has classes"):
        data.targets("test", torch.tensor([0]))


def test_the_cache_key_has_what_targets_and_cue_depend_on(tmp_path: Path) -> None:
    def calls(**keys: Any) -> tuple[int, int]:
        encoder = FakeEncoder()
        _module(_written(tmp_path, **keys), encoder=encoder).setup("validate")
        return encoder.calls, encoder.target_calls

    assert calls() == (1, 1)
    assert calls() == (0, 0)
    assert calls(max_target_length=3) == (1, 1)
    assert calls(cue="So:") == (1, 1)
    # Another first answer changes the data's fingerprint.
    rows = [{**row, "answers": row["answers"][::-1]} for row in _questions(5, "v")]
    file = _written(tmp_path)
    _folder(tmp_path, validation=rows)
    encoder = FakeEncoder()
    data = _module(file, encoder=encoder)
    data.setup("validate")
    assert encoder.target_calls == 1
    assert next(iter(data.val_dataloader()))["target_ids"].tolist() == [[8, END]] * 5


def test_the_cue_stands_behind_the_text_of_a_causal_model(tmp_path: Path) -> None:
    data = _module(_written(tmp_path, cue="So then:"), encoder=FakeEncoder(causal=True), batch_size=12)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert batch["input_ids"][0].tolist() == [1, *words("s0"), *words("So then:")]
    data.set_predict_texts(["a bb"])
    assert next(iter(data.predict_dataloader()))["input_ids"].tolist() == [[1, 4, 5, *words("So then:")]]


def test_a_causal_model_keeps_room_for_the_target(tmp_path: Path) -> None:
    file = _written(tmp_path, max_target_length=10)
    for causal, length in ((False, 20), (True, 10)):
        data = _module(file, encoder=FakeEncoder(20, causal))
        data.setup("fit")
        assert data.describe()["max_length"] == {"toy": length}
    with pytest.raises(UserError, match=r"has 20 positions, prompt \(2\), answer slot and target \(10\) leave 7"):
        _module(file, encoder=FakeEncoder(17, causal=True)).setup("fit")


def test_targets_count_in_the_budget_of_positions(tmp_path: Path) -> None:
    file = _written(tmp_path)
    # 3 tokens of text, 3 of prompt and answer slot, 4 of the longest target.
    with pytest.raises(UserError, match=r"3 positions of text and 7 of .* of them 4 of target; use 10 or more"):
        _module(file, max_tokens=9).setup("fit")
    data = _module(file, max_tokens=20)
    data.setup("fit")
    parts = [part for batch in data.train_dataloader() for part in batch["micro_batches"]]
    assert {len(part["ids"]) for part in parts} == {2}


def test_texts_to_predict_have_no_targets(tmp_path: Path) -> None:
    data = _module("samsum", root=str(tmp_path))
    data.set_predict_texts(["a bb"])
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels", "task_ids", "ids"}


# Tasks of the registry.


def test_a_built_in_task_needs_no_folder() -> None:
    data = TaskDataModule("builtin_questions", limit_eval=20).connect(FakeEncoder())
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    found = data.targets("test", batch["ids"])
    assert len(found) == 20
    assert batch["target_ids"][:, 0].tolist() == [words(texts[0])[0] for texts in found]


def _news(count: int, prefix: str) -> list[dict[str, str]]:
    return [
        {"document": f"{prefix} {i} first story ||||| second story", "summary": f"\u2013 Two stories {i}."}
        for i in range(count)
    ]


def test_multi_news_on_rows_of_our_own(tmp_path: Path) -> None:
    rows = {"train": _news(9, "a"), "validation": _news(4, "b"), "test": _news(3, "c")}
    # As in the real data, a few documents have no summary.
    rows["train"].append({"document": "a 9", "summary": ""})
    data = _module("multi_news", root=str(_folder(tmp_path, "multi_news", **rows)), eval_batch_size=2)
    with pytest.warns(UserWarning, match="1 train rows without an answer in column 'summary'"):
        data.setup()
    assert [data.num_examples(split) for split in ("train", "validation", "test")] == [9, 4, 3]
    batch = next(iter(data.test_dataloader()))
    assert batch["target_ids"].tolist() == [[*words("\u2013 Two stories 0."), END]] * 2
    assert data.targets("test", batch["ids"])[0] == ["\u2013 Two stories 0."]


def _hub(**splits: list[dict[str, Any]]) -> datasets.DatasetDict:
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})


@pytest.mark.parametrize("name", ["squad", "nq_open", "samsum"])
def test_download_keeps_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def rows(prefix: str, count: int) -> list[dict[str, Any]]:
        texts = [f"{prefix} {i}" for i in range(count)]
        if name == "samsum":
            return [{"id": text, "dialogue": text, "summary": f"{text}."} for text in texts]
        if name == "nq_open":
            return [{"question": text, "answer": [f"a {text}", "b"]} for text in texts]
        shape = {"text": ["a", "b"], "answer_start": [0, 1]}
        return [{"id": text, "title": "t", "context": text, "question": "q", "answers": shape} for text in texts]

    splits = {"train": rows("t", 20), "validation": rows("v", 4)}
    if name == "samsum":
        splits["test"] = rows("w", 3)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: _hub(**splits))
    assert download_tasks(name, tmp_path)[0]["rows"] == {split: len(part) for split, part in splits.items()}
    columns = list(pd.read_parquet(tmp_path / name / "train.parquet").columns)
    task = get_task(name)
    assert columns == [column for column in (task.text_a, task.text_b, task.target_column) if column]
    local, hub = load_task(task, "local", tmp_path), load_task(task, "hub")
    assert local.fingerprint == hub.fingerprint
    assert local.origin == hub.origin
    assert local.origin["test"] == ("official" if name == "samsum" else "official validation")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "answers", "sizes"),
    [
        ("squad", (1, 6), (10689, 1188, 10000)),
        ("nq_open", (1, 12), (3212, 357, 3610)),
        ("samsum", (1, 1), (540, 60, 219)),
    ],
)
def test_real_rows_become_targets(name: str, answers: tuple[int, int], sizes: tuple[int, int, int]) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no real data for {name} at {SHARED / name}")
    data = _module(name, root=str(SHARED), limit_train=50, limit_eval=50, encoder=FakeEncoder(400))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.setup()
    assert tuple(len(data.data[0].splits[split]) for split in ("train", "validation", "test")) == sizes
    limit = data.tasks[0].max_target_length
    seen = 0
    for batch in data.test_dataloader():
        assert 2 <= batch["target_ids"].shape[1] <= limit
        assert ((batch["target_ids"] == END).sum(dim=1) == 1).all()
        found = data.targets("test", batch["ids"])
        assert all(answers[0] <= len(texts) <= answers[1] for texts in found)
        assert all(text.strip() for texts in found for text in texts)
        assert batch["target_ids"][:, 0].tolist() == [words(texts[0])[0] for texts in found]
        seen += len(found)
    assert seen == 50
