"""`compare` on few examples and on users' own tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from comparisons import cell, options
from own_rows import rows
from test_cli import error_of

from prompt_transfer.api.classification import classify
from prompt_transfer.cli import main
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.compare.settings import CompareData
from prompt_transfer.utils.errors import UserError


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "250")


def table(tiny_roberta: Path, tmp_path: Path, *more: str) -> list[str]:
    """Return the command of a comparison on a table with custom columns and labels."""
    files = {}
    for split, count in (("train", 40), ("other", 12)):
        files[split] = tmp_path / f"{split}_reviews.csv"
        pd.DataFrame(rows(count, ("neg", "pos"), "line")).rename(columns={"label": "mood"}).to_csv(files[split])
    own = ["--data.text", "line", "--data.label", "mood", "--data.label_words", "bad,good", "--data.source", "null"]
    own += ["--data.validation", str(files["other"]), "--data.test", str(files["other"]), "--seeds", "0"]
    return options(files["train"], tiny_roberta, tmp_path / "out", *own, *more)


def test_own_tables_are_compared(tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(table(tiny_roberta, tmp_path, "--methods", "prompt,linear_probe")) == 0
    frame = pd.read_csv(tmp_path / "out" / "results.csv")
    assert {"prompt", "linear_probe"} <= set(frame["method"])
    assert set(frame["task"]) == {"train_reviews"}
    assert set(frame["n"]) == {12}
    # The prompt stores its task: `classify`, and `test` from another folder.
    path = cell(tmp_path / "out", "prompt") / "prompt.safetensors"
    facts = Prompt.load(path).metadata
    assert json.loads(facts["data_task"]) == [str(tmp_path / "train_reviews.csv")]
    assert facts["data_test"] == str(tmp_path / "other_reviews.csv")
    assert set(classify(["the dog is good"], path)[0].probabilities) == {"neg", "pos"}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["test", "--prompt", str(path), "--random_prompts", "0", "--output", str(tmp_path / "test")]) == 0
    tested = pd.read_csv(tmp_path / "test" / "results.csv")
    value = frame[frame["method"] == "prompt"]["value"].iloc[0]
    assert tested["value"].iloc[0] == pytest.approx(value)


def test_all_methods_see_the_same_shots(tiny_roberta: Path, tmp_path: Path) -> None:
    shots = ["--data.shots", "3", "--data.validation_shots", "2", "--methods", "prompt"]
    assert main(table(tiny_roberta, tmp_path, *shots)) == 0
    facts = Prompt.load(cell(tmp_path / "out", "prompt") / "prompt.safetensors").metadata
    assert (facts["data_shots"], facts["data_validation_shots"]) == ("3", "2")
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    data = CompareData(
        source=None, text="line", label="mood", label_words="bad,good", shots=3, validation_shots=2,
        validation=str(tmp_path / "other_reviews.csv"),
    )  # fmt: skip
    made = data.module(str(tmp_path / "train_reviews.csv"), 0)
    assert made.label_counts("train") == [3, 3]
    assert made.label_counts("validation") == [2, 2]
    # A comparison on other examples is refused.
    before = settings["common"]["examples"]["train"]
    assert main(table(tiny_roberta, tmp_path, *shots, "--data.shots", "4")) == 2
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["common"]["examples"]["train"] == before


def test_the_template_is_stored_with_the_prompt(tiny_roberta: Path, tmp_path: Path) -> None:
    template = "Review: {text_a} It is"
    assert main(table(tiny_roberta, tmp_path, "--methods", "prompt", "--data.template", template)) == 0
    assert Prompt.load(cell(tmp_path / "out", "prompt") / "prompt.safetensors").metadata["data_template"] == template


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--data.shots", "0"], "--data.shots must be 1 or more"),
        (["--data.shots", "2", "--data.limit_train", "9"], "exclude each other"),
        (["--data.validation_shots", "3"], "give --data.shots too"),
        (["--data.label", "nothing"], "has no column 'nothing'"),
        (["--task", "sst2"], "is for a table"),
    ],
)
def test_mistakes_are_one_line(
    more: list[str], expected: str, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in error_of(capsys, main(table(tiny_roberta, tmp_path, "--methods", "prompt", *more)))


def test_label_words_of_named_tasks() -> None:
    assert CompareData(label_words="paper").word_set == "paper"
    assert CompareData(label_words="bad,good").word_set == "default"
    with pytest.raises(UserError, match="must be 1 or more"):
        CompareData(shots=2, validation_shots=0).check()
