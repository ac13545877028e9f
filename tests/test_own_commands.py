"""The command line on a user's own table, texts and classes, and `classify`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from own_rows import rows

from prompt_transfer import Prompt, Task, classify
from prompt_transfer.api import classification
from prompt_transfer.cli import main
from prompt_transfer.commands import own_classes
from prompt_transfer.commands.own_data import take_texts
from prompt_transfer.data.texts import typed_texts
from prompt_transfer.prompts.initializers import Initializer
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = ["the film is good", "the: dog is bad", "-5 story"]


def error_of(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


@pytest.fixture(scope="module")
def run(tiny_roberta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on a table, which has been moved away since."""
    folder = tmp_path_factory.mktemp("own")
    table = folder / "reviews.csv"
    pd.DataFrame(rows(40, ("neg", "pos"), "review")).to_csv(table, index=False)
    command = ["fit", "--model.backbone", str(tiny_roberta), "--data.task", str(table), "--data.text", "review"]
    command += ["--data.label", "label", "--data.label_words", "pos=great,neg=terrible", "--data.max_length", "12"]
    command += ["--model.prompt_length", "3", "--trainer.max_steps", "2", "--output", str(folder / "run")]
    assert main(command) == 0
    assert main(["fit", "--output", str(folder / "run"), "--resume", "--trainer.max_steps", "4"]) == 0
    table.rename(folder / "moved.csv")
    return folder / "run"


def test_fit_keeps_the_task_of_a_table_in_the_prompt(run: Path) -> None:
    metadata = Prompt.load(run).metadata
    (task,) = json.loads(metadata["task_definitions"]).values()
    assert (task["text_a"], task["labels"], task["label_words"]) == ("review", ["pos", "neg"], ["great", "terrible"])
    assert metadata["data_source"] == "local"
    assert metadata["steps"] in ("2", "4")


def test_texts_need_no_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "--prompt", str(run)]
    for text in TEXTS:
        command += ["--text", text]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    frame = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert frame["text_a"].tolist() == TEXTS
    assert "gold" not in frame
    assert frame["prediction"].tolist() == [{"great": "pos", "terrible": "neg"}[word] for word in frame["word"]]
    # The same in Python, for a file, a folder and a loaded prompt.
    found = classify(TEXTS, prompt=run)
    for answer, row in zip(found, frame.to_dict("records"), strict=True):
        assert (answer.text, answer.label, answer.word) == (row["text_a"], row["prediction"], row["word"])
        assert answer.probabilities == pytest.approx({"pos": row["p_great"], "neg": row["p_terrible"]}, abs=1e-6)
        assert answer.probability == max(answer.probabilities.values())
    assert classify(TEXTS, Prompt.load(run)) == found
    # Without a folder the predictions are printed, and nothing else.
    capsys.readouterr()
    assert main([*command, "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prediction"] for line in lines] == frame["prediction"].tolist()
    assert main([*command, "--format", "csv"]) == 0
    assert pd.read_csv(io.StringIO(capsys.readouterr().out))["text_a"].tolist() == TEXTS
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in TEXTS)


def test_texts_come_from_a_pipe(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "--prompt", str(run), "--input", "-", "--format", "jsonl"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("the film is good\n\nthe: dog is bad\n"))
    assert main(command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["id"], line["text_a"]) for line in lines] == [(0, "the film is good"), (2, "the: dog is bad")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert "standard input holds no text" in error_of(capsys, main(command))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_known_labels_are_kept(run: Path, tmp_path: Path, suffix: str) -> None:
    table = tmp_path / "new.csv"
    known = ["pos", None, "other", "neg"]
    pd.DataFrame({"review": [row["text"] for row in rows(4)], "label": known}).to_csv(table, index=False)
    output = tmp_path / "out"
    command = ["predict", "--prompt", str(run), "--input", str(table), "--output", str(output), "--format", suffix]
    assert main(command) == 0
    path = output / f"predictions.{suffix}"
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet}.get(suffix, lambda file: pd.read_json(file, lines=True))
    frame = read(path)
    assert [None if pd.isna(value) else value for value in frame["gold"]] == known
    assert list(frame.columns[:6]) == ["id", "task", "text_a", "gold", "prediction", "label"]
    # The answers of a split that is predicted are kept too.
    (tmp_path / "moved.csv").write_text((run.parent / "moved.csv").read_text())
    command = ["predict", "--prompt", str(run), "--data.task", str(tmp_path / "moved.csv"), "--output", str(output)]
    assert main(command) == 0
    frame = pd.read_parquet(output / "predictions.parquet")
    assert set(frame["gold"]) == {"pos", "neg"}
    assert ((frame["gold"] == "pos") == frame["text_a"].str.contains("good")).all()


def test_texts_with_unreadable_labels_are_predicted(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "new.csv"
    table.write_text("review,label,label\nthe film is good,pos,neg\n")
    command = ["predict", "--prompt", str(run), "--input", str(table), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert "gold" not in pd.read_parquet(tmp_path / "out" / "predictions.parquet")


def test_another_table_has_the_columns_and_words_of_the_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of(capsys, main(["test", "--prompt", str(run)]))
    assert "are not there: give a table with --data.task FILE.csv, or texts with predict --text" in error
    moved = str(run.parent / "moved.csv")
    assert main(["test", "--prompt", str(run), "--data.task", moved, "--output", str(tmp_path / "out")]) == 0
    frame = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(frame["task"]) == {"moved"}
    assert set(frame["split"]) == {"test (cut from train, seed 0)"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text"], "--text needs a text"),
        (["--text", "a", "--input", "x.txt"], "--text and --input exclude each other"),
        (["--text", "a", "--text", "b", "--text_b", "c"], "2 times --text and 1 times --text_b: give pairs"),
        (["--text", "a", "--text_b", "b"], "is about single texts and this is a pair"),
        (["--text", "a", "--format", "parquet"], "--format parquet needs a folder"),
        (["--text", "a", "--format", "xml"], "unknown --format 'xml': choose parquet, csv or jsonl"),
        (["--input", "x.txt"], "predict needs a folder for predictions.parquet"),
    ],
)
def test_wrong_texts_are_one_line(
    run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(capsys, main(["predict", "--prompt", str(run), *options]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("second", [(), ("a man", "")])
def test_a_single_text_for_pairs_is_an_error_without_a_warning(second: tuple[str, ...]) -> None:
    texts = ["a man is here", "a dog is here"]
    with pytest.raises(UserError, match=r"^task mnli is about pairs: .* second text .* --text_b$"):
        typed_texts(get_task("mnli"), texts, second)
    rows = typed_texts(get_task("mnli"), texts, ["no man", "no dog"])
    assert rows["text_b"][:] == ["no man", "no dog"]
    with pytest.raises(UserError, match="task copa is multiple choice: give a table"):
        typed_texts(get_task("copa"), texts)


def test_any_text_can_be_given() -> None:
    texts, rest = take_texts(["--text", "--text", "--x", "1", "--text=a: [b]", "--text_b", ""])
    assert texts is not None
    assert (texts.first, texts.second, rest) == (["--text", "a: [b]"], [""], ["--x", "1"])
    assert take_texts(["--input", "f"]) == (None, ["--input", "f"])


# classify ------------------------------------------------------------------------------------------------------------


def test_classify_loads_a_backbone_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classification._backbone.cache_clear()
    made = []
    backbone = classification.FrozenBackbone
    monkeypatch.setattr(classification, "FrozenBackbone", lambda *a, **k: made.append(a) or backbone(*a, **k))
    alone = [classify([text], run)[0] for text in TEXTS]
    assert len(made) == 1
    # Padding does not change an answer.
    for one, together in zip(alone, classify(TEXTS, run, batch_size=2), strict=True):
        assert one.probabilities == pytest.approx(together.probabilities, abs=1e-5)


def test_classify_knows_tasks_by_name_and_pairs(tiny_roberta: Path) -> None:
    prompt = Prompt.load("checkpoints/prompts/roberta-nano/mnli.safetensors")
    (found,) = classify(["a man is here"], prompt, ["no man is here"])
    assert found.text == ("a man is here", "no man is here")
    assert len(found.probabilities) == 3
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="about pairs and this text has no second one"):
        classify(["a man"], prompt)
    with pytest.raises(UserError, match="does not fit"):
        classify(["a man"], prompt, ["b"], backbone=str(tiny_roberta))


def test_wrong_calls_of_classify_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a list of texts, not one string: classify\(\[text\], ...\)"):
        classify("a film", run)
    with pytest.raises(UserError, match="there is no text to predict on"):
        classify([], run)
    with pytest.raises(UserError, match="no such"):
        classify(["a"], tmp_path / "none.safetensors")
    prompt = Prompt.load(run)
    prompt.metadata.pop("task_definitions")
    with pytest.raises(UserError, match="trained on reviews, which this package does not know"):
        classify(["a"], prompt)
    prompt.metadata["task"] = "sst2,mnli"
    with pytest.raises(UserError, match=r"has 2 tasks \(sst2, mnli\): give task="):
        classify(["a"], prompt)


# Classes -------------------------------------------------------------------------------------------------------------

INIT = """
from prompt_transfer.prompts.initializers import Normal

class MyInit(Normal):
    pass

class Other:
    pass
"""


def test_a_class_of_the_working_folder_is_found(
    tmp_path: Path, tiny_roberta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed program starts without the working folder in the path."""
    (tmp_path / "my_module.py").write_text(INIT)
    monkeypatch.chdir(tmp_path)
    before = [folder for folder in sys.path if folder not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", list(before))
    command = ["fit", "--model.backbone", str(tiny_roberta), "--data.task", "builtin_movies", "--data.limit_train", "8"]
    command += ["--data.limit_eval", "4", "--trainer.max_steps", "1", "--output", "run", "--model.prompt_length", "2"]
    assert main([*command, "--model.init", "my_module.MyInit", "--model.init.std", "0.5"]) == 0
    assert Prompt.load(tmp_path / "run").metadata["init"] == "MyInit(std=0.5)"
    # Last: a file with the name of a library must not replace it.
    assert sys.path == [*before, str(tmp_path)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent_module.MyInit", "", "there is no module absent_module in {folder}, in PYTHONPATH"),
        (
            "own_mod1.MyInit",
            "import absent_library",
            "the module own_mod1 needs absent_library, which is not installed",
        ),
        (
            "own_mod2.MyInit",
            "\n1 / 0",
            "importing own_mod2 failed: ZeroDivisionError: division by zero ({folder}/own_mod2",
        ),
        ("own_mod3.MyInit", "def", "importing own_mod3 failed: SyntaxError"),
        ("own_mod4.MyIni", INIT, "has no MyIni; of the classes derived from Initializer it has MyInit"),
        ("own_mod5.Other", INIT, "is not a class derived from Initializer"),
    ],
)
def test_why_a_class_is_not_found_is_said(
    name: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    if text:
        (tmp_path / f"{name.partition('.')[0]}.py").write_text(text)
    command = ["fit", "--data.task", "builtin_movies", "--model.init", name, "--output", "run"]
    line = error_of(capsys, main(command))
    assert f"--model.init {name}: " in line
    assert message.format(folder=tmp_path) in line
    assert own_classes.class_fault("--model.init", "prompt_transfer.prompts.initializers.Normal", Initializer) is None


def test_prompts_in_memory_say_what_they_lack(
    tmp_path: Path, tiny_roberta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import lightning as L

    from prompt_transfer import PromptTuning, TaskDataModule

    pairs = [{"a": row["text"], "b": "the dog", "y": row["label"]} for row in rows(20)]
    data = TaskDataModule.from_rows(pairs, "a", "y", text_b="b", name="mine", max_length=16)
    model = PromptTuning(str(tiny_roberta), prompt_length=2)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **quiet).fit(model, datamodule=data)
    path = str(model.prompt().save(tmp_path / "p.safetensors"))
    assert model.prompt().metadata["data_max_length"] == "16"
    error = error_of(capsys, main(["test", "--prompt", path]))
    assert "(mine) are not there: give a table with --data.task FILE.csv" in error
    assert main(["predict", "--prompt", path, "--text", "a film", "--text_b", "a dog", "--format", "jsonl"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["text_a"], line["text_b"], line["task"]) == ("a film", "a dog", "mine")
    (found,) = classify(["a film"], path, ["a dog"])
    assert found.label == line["prediction"]
    assert found.probabilities == pytest.approx({"bad": line["p_bad"], "good": line["p_good"]}, abs=1e-6)
    table = tmp_path / "t.csv"
    pd.DataFrame(pairs).to_csv(table, index=False)
    assert main(["test", "--prompt", path, "--data.task", str(table), "--random_prompts", "0"]) == 0
    assert isinstance(data.tasks[0], Task)
    assert torch.isfinite(model.prompt().embeddings).all()
