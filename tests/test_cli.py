"""The command line: runs on tiny models; one-line errors with exit code 2."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from prompt_transfer.backbones.builtin import shipped
from prompt_transfer.cli import main
from prompt_transfer.commands.compare import expand_config
from prompt_transfer.commands.lightning import Command
from prompt_transfer.commands.parsing import call
from prompt_transfer.commands.pretraining import PretrainCommand
from prompt_transfer.commands.table import COMMANDS, find
from prompt_transfer.pretraining.backbone_pretraining import BackbonePretraining
from prompt_transfer.pretraining.corpus import CorpusDataModule
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.compare.study import CompareStudy
from prompt_transfer.studies.sweep.plan import read_plan

SHIPPED = "checkpoints/prompts/roberta-nano/sst2.safetensors"

ROOT = Path(__file__).resolve().parent.parent
# Files for W&B sweeps are tested in tests/test_tracking.py.
CONFIGS = sorted(path for path in shipped("configs").rglob("*.yaml") if path.parent.name != "sweep")
FIT = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--model.prompt_length", "3"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def fit(toy: Path, backbone: Path, output: Path, *more: str) -> int:
    base = ["fit", "--model.backbone", str(backbone), "--data.task", str(toy), "--data.source", "local"]
    return main([*base, *without(FIT, more), "--output", str(output), *more])


def without(options: list[str], more: tuple[str, ...]) -> list[str]:
    """Return the options that are not in `more`: giving an option twice is an error."""
    given = {argument.partition("=")[0] for argument in more}
    pairs = zip(options[::2], options[1::2], strict=True)
    return [word for pair in pairs if pair[0] not in given for word in pair]


def error_of(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Return the single line on standard error of a command that exited with 2."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1
    return lines[0]


def test_a_command_is_imported_without_a_look_for_garbage() -> None:
    # A separate process, where nothing is imported yet.
    code = (
        "import gc; from prompt_transfer.commands.table import find\n"
        "looked = []; gc.callbacks.append(lambda phase, info: looked.append(phase))\n"
        "find('fit'); assert gc.isenabled() and not looked and not gc.get_freeze_count()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    find("fit")
    assert gc.isenabled()


def test_help_lists_every_command_without_heavy_imports() -> None:
    started = time.monotonic()
    code = "import sys; from prompt_transfer.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert time.monotonic() - started < 2


def test_fit_leaves_prompt_and_config_and_names_its_folder_last(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(output)
    prompt = Prompt.load(output / "prompt.safetensors")
    assert prompt.embeddings.shape[0] == 3
    assert prompt.metadata["task"] == "toy"
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["model"]["prompt_length"] == 3
    assert (output / "logs" / "metrics.csv").is_file()


def test_a_folder_with_a_run_needs_resume_or_overwrite(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    before = Prompt.load(output / "prompt.safetensors")
    assert "--resume" in error_of(capsys, fit(toy, tiny_roberta, output))
    # The stored configuration applies; a flag overrides both it and the checkpoint.
    assert main(["fit", "--output", str(output), "--resume", "--trainer.max_steps", "6"]) == 0
    assert yaml.safe_load((output / "config.yaml").read_text())["trainer"]["max_steps"] == 6
    steps = pd.read_csv(output / "logs" / "metrics.csv")["step"]
    assert steps.max() == 5
    assert fit(toy, tiny_roberta, output, "--overwrite") == 0
    assert torch.equal(Prompt.load(output / "prompt.safetensors").embeddings, before.embeddings)


def test_test_and_predict_need_nothing_but_the_prompt_file(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    prompt = str(output / "prompt.safetensors")
    task = ["--data.task", str(toy)]
    assert main(["test", "--prompt", prompt, *task, "--output", str(tmp_path / "test")]) == 0
    frame = pd.read_csv(tmp_path / "test" / "results.csv")
    assert set(frame["what"]) == {"this prompt", "random prompt", "majority class"}
    assert frame.set_index("what").loc["majority class", "value"] == 0.5
    assert set(frame["n"]) == {10}
    assert main(["validate", "--prompt", prompt, *task]) == 0
    assert main(["predict", "--prompt", prompt, *task, "--output", str(tmp_path / "predict")]) == 0
    predictions = pd.read_parquet(tmp_path / "predict" / "predictions.parquet")
    assert predictions["id"].tolist() == list(range(10))
    shares = predictions[["p_terrible", "p_great"]]
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    # The score of `test` matches its predictions.
    mine = frame.set_index("what").loc["this prompt", "value"]
    assert (predictions["label"].to_numpy() == [i % 2 for i in range(10)]).mean() == pytest.approx(mine)


def test_json_is_one_document_and_alone_on_standard_output(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output, "--json") == 0
    seen = capsys.readouterr()
    (table,) = json.loads(seen.out)["tables"]
    assert table["rows"][0]["task"] == "toy"
    assert table["rows"][0]["n"] == 10
    # Messages for people go to standard error.
    assert seen.err.splitlines()[-1] == str(output)
    assert main(["--json", "test", "--prompt", str(output), "--data.task", str(toy)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == ["test", "--prompt", str(output), "--data.task", str(toy)]
    rows = {row["what"]: row for row in document["tables"][0]["rows"]}
    assert rows["majority class"]["value"] == 0.5
    assert rows["this prompt"]["low"] <= rows["this prompt"]["value"] <= rows["this prompt"]["high"]
    assert main(["prompts", "list", str(tmp_path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    assert found["path"] == str(output / "prompt.safetensors")
    assert found["error"] is None


def test_json_of_a_mistake_is_no_output(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["prompts", "list", "nowhere", "--json"]) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.startswith("error: no such folder: nowhere")
    # Only rank 0 prints.
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["tasks", "list", "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_help_wins_over_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--help", "--json"]) == 0
    assert "usage: prompt-transfer tasks" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["tasks", "list"], ["tasks", "hub"], ["--help"], ["data"]])
def test_eighty_columns_are_enough(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(arguments) == 0
    lines = capsys.readouterr().out.split("\n\nbuiltin_ tasks")[0].splitlines()
    assert max(map(len, lines)) <= 80


def test_predict_on_a_text_file(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(toy, tiny_roberta, tmp_path / "run") == 0
    (tmp_path / "in.txt").write_text("a good film\n\na very very bad story of a man\n")
    command = ["predict", "--prompt", str(tmp_path / "run" / "prompt.safetensors"), "--data.task", str(toy)]
    command += ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out"), "--format", "csv"]
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "a good film" in said
    assert "a very very bad story of a man" in said
    frame = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert frame["id"].tolist() == [0, 2]
    assert set(frame["word"]) <= {"terrible", "great"}


def test_prompts_list_and_inspect(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(toy, tiny_roberta, tmp_path / "run") == 0
    capsys.readouterr()
    assert main(["prompts", "list", str(tmp_path / "run")]) == 0
    assert "prompt.safetensors" in capsys.readouterr().out
    assert main(["prompts", "inspect", str(tmp_path / "run" / "prompt.safetensors")]) == 0
    assert "distance_from_initial" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fitt"], "did you mean 'fit'"),
        (["fit", "--model.promt_length", "3"], "promt_length"),
        (["fit", "--model.prompt_length", "three"], "prompt_length"),
        (["fit", "--data.task", "ssst2"], "sst2"),
        (["fit", "--data.tsk", "builtin_movies"], "unknown option --data.tsk: did you mean --data.task?"),
        (["fit", "--max_steps", "3"], "unknown option --max_steps: did you mean --trainer.max_steps"),
        (["transfer", "--promts", "x"], "unknown option --promts: did you mean --prompts"),
        (["tasks", "list", "--zzz"], "unknown option --zzz (see prompt-transfer tasks list --help)"),
        (
            ["test", "--prompt", SHIPPED, "--model.backbone", "gpt2-nano", "--data.task", "builtin_movies"],
            "trained on roberta-nano, does not fit gpt2-nano",
        ),
        (["fit", "--data.task", "builtin_movies", "--model.backbone", "./none"], "no such folder: ./none;"),
        (["fit", "--data.task", "builtin_movies", "--model.layout", "suffix"], "choose one of mask_first, prefix"),
        (["fit", "--data.task", "builtin_movies", "--model.prompt_length", "5000"], "5000 tokens is too long"),
        (["fit", "--config", "none.yaml"], "no configuration file none.yaml"),
        (["fit", "--data.task", "sst2", "--data.source", "local", "--data.root", "/nowhere"], "/nowhere"),
        (["fit", "--model", "Nothing"], "choose one of PromptTuning"),
        (["fit", "--data.task", "builtin_movies", "--model.init", "Nothing"], "choose one of ClassLabels, FromPrompt"),
        (["fit", "--data.task", "builtin_movies", "--trainer.accelerator", "gpu"], "gpu"),
        (["fit", "--data.task", "builtin_movies", "--trainer.max_steps", "0"], "no steps"),
        (["fit", "--data.task", "builtin_movies", "--trainer.val_check_interval", "0"], "val_check_interval"),
        (["fit", "--data.task", "builtin_movies", "--seed_everything", "-1"], "give a number from 0"),
        (["fit", "--data.task", "builtin_movies", "--logger", "paper"], "csv, wandb, tensorboard"),
        (["fit", "--output", "nowhere", "--resume"], "no run in nowhere"),
        (["fit", "--data.task", "sst2", "--data.source", "hub"], "--data.source local"),
        (["test"], "needs a prompt"),
        (["test", "--prompt", "none.safetensors"], "none.safetensors"),
        (["prompts", "lst"], "did you mean 'list'? there are list, inspect"),
        (["neurons", "captur"], "did you mean 'capture'?"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str],
    expected: str,
    tiny_roberta: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "fit" and "--model.backbone" not in arguments:
        arguments = [*arguments, "--model.backbone", str(tiny_roberta)]
    left = set(tmp_path.iterdir())
    line = error_of(capsys, main(arguments))
    assert expected in line
    made = {path.name for path in set(tmp_path.iterdir()) - left}
    assert made <= {"cache", "runs"}
    assert not list((tmp_path / "runs").rglob("*"))


def test_prompt_of_another_backbone_is_refused(
    toy: Path, tiny_roberta: Path, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(toy, tiny_roberta, tmp_path / "run") == 0
    prompt = tmp_path / "run" / "prompt.safetensors"
    command = ["test", "--prompt", str(prompt), "--data.task", str(toy), "--model.backbone", str(tiny_bert)]
    assert "backbone" in error_of(capsys, main(command))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(prompt.read_bytes()[:200])
    assert "cut.safetensors" in error_of(capsys, main(["test", "--prompt", str(cut)]))


def test_bad_data_is_told_before_anything_is_written(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = tmp_path / "data" / "toy" / "train.csv"
    rows = train.read_text().splitlines()
    for content, expected in (
        (rows[:1], "train"),
        ([rows[0], *rows[1::2]], "class"),
        ([*rows, ",1"], "text"),
    ):
        train.write_text("\n".join(content) + "\n")
        assert expected in error_of(capsys, fit(toy, tiny_roberta, tmp_path / "bad"))
        assert not (tmp_path / "bad").exists()


def test_a_refused_command_changes_nothing(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    kept = {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and "logs" not in path.parts}
    resume = ["fit", "--output", str(output), "--resume"]
    assert "batch_size" in error_of(capsys, main([*resume, "--data.batch_size", "8"]))
    assert "prompt length" in error_of(capsys, main([*resume, "--model.prompt_length", "4"]))
    train = tmp_path / "data" / "toy" / "train.csv"
    text = train.read_text()
    train.write_text("text,label\n")
    error_of(capsys, fit(toy, tiny_roberta, output, "--overwrite"))
    assert {path: path.read_bytes() for path in kept} == kept
    train.write_text(text)
    assert main(["fit", "--output", str(output), "--resume"]) == 0
    (output / "checkpoints" / "last.ckpt").write_bytes(b"PK")
    assert "damaged" in error_of(capsys, main(["fit", "--output", str(output), "--resume"]))


def test_a_prompt_of_a_yaml_task_works_alone(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit(toy, tiny_roberta, tmp_path / "run") == 0
    monkeypatch.chdir("/")
    assert main(["test", "--prompt", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    toy.write_text(toy.read_text().replace("[terrible, great]", "[bad, good]"))
    assert main(["validate", "--prompt", str(tmp_path / "run"), "--random_prompts", "0"]) == 0
    assert "was trained on toy with the label words terrible, great" in capsys.readouterr().err


@pytest.mark.slow
def test_predict_on_two_processes_loses_no_row(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    assert fit(toy, tiny_roberta, tmp_path / "run") == 0
    command = ["predict", "--prompt", str(tmp_path / "run"), "--output", str(tmp_path / "out")]
    command += ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp"]
    subprocess.run([sys.executable, "-m", "prompt_transfer", *command], check=True, cwd=ROOT, timeout=150)
    assert pd.read_parquet(tmp_path / "out" / "predictions.parquet")["id"].tolist() == list(range(10))


def test_predict_on_a_table_of_new_texts(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(toy, tiny_roberta, tmp_path / "run") == 0
    command = ["predict", "--prompt", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--input"]
    (tmp_path / "new.csv").write_text('number,text\n7,"a good film, and very long"\n8,a bad story\n')
    assert main([*command, str(tmp_path / "new.csv")]) == 0
    frame = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert frame["id"].tolist() == [0, 1]
    assert frame["text_a"].tolist() == ["a good film, and very long", "a bad story"]
    assert "text_b" not in frame
    assert [{"0": "terrible", "1": "great"}[answer] for answer in frame["answer"]] == frame["word"].tolist()
    (tmp_path / "new.jsonl").write_text('{"words": "a good film"}\n')
    assert "has no column 'text'; its columns are words" in error_of(capsys, main([*command, f"{tmp_path}/new.jsonl"]))
    (tmp_path / "none.csv").write_text("text\n")
    assert "holds no row" in error_of(capsys, main([*command, str(tmp_path / "none.csv")]))
    assert "save it as .jsonl, .csv" in error_of(capsys, main([*command, "sheet.xlsx"]))


def test_new_texts_need_none_of_the_tasks_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new.csv").write_text("premise,hypothesis\na man sleeps,he is awake\n")
    command = ["predict", "--prompt", SHIPPED.replace("sst2", "mnli"), "--output", str(tmp_path / "out"), "--input"]
    assert main([*command, str(tmp_path / "new.csv")]) == 0
    frame = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert frame[["text_a", "text_b"]].to_numpy().tolist() == [["a man sleeps", "he is awake"]]
    (tmp_path / "new.txt").write_text("a man sleeps\n")
    error = error_of(capsys, main([*command, str(tmp_path / "new.txt")]))
    assert (
        "mnli is about pairs and this text has no second one: give a table with the columns premise,hypothesis" in error
    )


def test_predict_answers_the_test_split_that_nobody_labelled(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(toy, tiny_roberta, tmp_path / "run") == 0
    folder = toy.parent / yaml.safe_load(toy.read_text())["local"]
    for file in folder.glob("test.*"):
        file.unlink()
    (folder / "test.csv").write_text("text\n" + "".join(f"a film of {number}\n" for number in range(7)))
    output = tmp_path / "out"
    command = ["--prompt", str(tmp_path / "run"), "--output", str(output)]
    assert main(["predict", *command]) == 0
    frame = pd.read_parquet(output / "predictions.parquet")
    assert frame["text_a"].tolist() == [f"a film of {number}" for number in range(7)]
    assert list(json.loads((output / "provenance.json").read_text())["data"]["toy"]) == ["test (no labels)"]
    # Scoring needs labels, so the official validation split is used as the test split.
    assert main(["test", *command]) == 0
    assert "test (official validation)" in set(pd.read_csv(output / "results.csv")["split"])


def test_label_words_that_are_no_single_token(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = toy.read_text()
    toy.write_text(text.replace("[terrible, great]", "[unspeakable, great]"))
    line = error_of(capsys, fit(toy, tiny_roberta, tmp_path / "run"))
    assert "unspeakable" in line
    assert "label_words_policy" in line
    toy.write_text(text.replace("[terrible, great]", "[great, great]"))
    assert "great" in error_of(capsys, fit(toy, tiny_roberta, tmp_path / "run"))


def test_unwritable_output_folder(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    line = error_of(capsys, fit(toy, tiny_roberta, tmp_path / "file" / "run"))
    assert "cannot write" in line


def keep_study(study: CompareStudy) -> CompareStudy:
    return study


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(shipped("configs"))))
def test_every_configuration_file_parses(config: Path, tmp_path: Path) -> None:
    class Parsed(Command):
        def instantiate_classes(self) -> None:
            pass

    class ParsedPretrain(PretrainCommand):
        def instantiate_classes(self) -> None:
            pass

        def before_instantiate_classes(self) -> None:
            pass

    group = config.parent.name
    if config.stem == "mlflow" and find_spec("mlflow") is None:
        pytest.skip("the extra `mlflow` is not installed")
    if config.name.startswith("compare_"):
        arguments = expand_config(["--config", str(config), "--data.root", str(tmp_path), "--output", "o"])
        study = call(keep_study, "compare", arguments)
        assert (study.task, study.data.source) == (config.stem.split("_")[1], "local")
        return
    if group == "study":
        # Each run of a study must be a valid `fit` run.
        run = read_plan(config, tmp_path, {"data.root": str(tmp_path)}).runs[-1]
        (tmp_path / "run.yaml").write_text(run.config())
        parsed = Parsed("fit", ["--config", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "run")])
        assert parsed.config.data.task == run.options["data.task"]
        return
    if config.name.startswith("pretrain_"):
        kwargs = {"args": ["--config", str(config)], "run": False, "parser_kwargs": {"exit_on_error": False}}
        parsed = ParsedPretrain(BackbonePretraining, CorpusDataModule, auto_configure_optimizers=False, **kwargs)
        assert parsed.config.data.files
        return
    parts = ("init", "reparameterization", "projector")
    option = {"experiment": "--config", "logger": "--config", **{part: f"--model.{part}" for part in parts}}
    task = [] if group in ("experiment", "data") else ["--data.task", "sst2"]
    if group == "projector":
        task += ["--model", "CrossModelProjector", "--model.prompts", "prompts", "--output", str(tmp_path)]
    verb = "fit" if group == "projector" else "validate"
    parsed = Parsed(verb, [option.get(group, f"--{group}"), str(config), *task])
    values = yaml.safe_load(config.read_text())
    if group in ("model", "data", "trainer"):
        for key, value in values.items():
            if not isinstance(value, dict):
                assert parsed.config[group][key] == value


@pytest.mark.parametrize(("name", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_short_names_of_dtypes(name: str, dtype: str) -> None:
    class Parsed(Command):
        def instantiate_classes(self) -> None:
            pass

    assert Parsed("validate", ["--data.task", "builtin_movies", "--model.dtype", name]).config.model.dtype == dtype


def test_configurations_are_there() -> None:
    assert len(CONFIGS) >= 15


def test_every_metric_has_its_interval_and_its_baseline(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    own = toy.with_name("own.yaml")
    own.write_text(toy.read_text().replace("metric: accuracy", "metric: matthews"))
    output = tmp_path / "run"
    assert fit(own, tiny_roberta, output) == 0
    # The majority class has Matthews correlation 0 where its accuracy is 0.5.
    assert pd.read_csv(output / "results.csv")["majority"].tolist() == [0.0]
    assert main(["test", "--prompt", str(output), "--output", str(tmp_path / "test")]) == 0
    frame = pd.read_csv(tmp_path / "test" / "results.csv")
    rows = frame[frame["metric"] == "matthews"].set_index("what")
    assert rows.loc["majority class", "value"] == 0.0
    assert rows.loc["this prompt", "low"] <= rows.loc["this prompt", "value"] <= rows.loc["this prompt", "high"]


def test_the_prompt_of_a_run_that_was_stopped_is_told(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    assert main(["test", "--prompt", str(output)]) == 0
    assert "not finished" not in capsys.readouterr().err
    (output / "results.csv").unlink()
    assert main(["test", "--prompt", str(output)]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"the run in {output} is not finished, this is its best prompt so far" in told
    assert f"fit --output {output} --resume" in told


def test_a_table_is_one_whatever_the_case_of_its_suffix(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    (tmp_path / "IN.CSV").write_text("number,text\n7,a good film\n8,\n")
    command = ["predict", "--prompt", str(output), "--input", str(tmp_path / "IN.CSV"), "--output"]
    assert main([*command, str(tmp_path / "out")]) == 0
    assert "1 row of the file has an empty text, the first is row 1" in capsys.readouterr().err
    assert pd.read_parquet(tmp_path / "out" / "predictions.parquet")["text_a"].tolist() == ["a good film", ""]


def test_help_of_prompts_needs_no_torch() -> None:
    code = "import sys; from prompt_transfer.cli import main; main(['prompts', '--help']); "
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_misspelt_prompt_is_told_at_once() -> None:
    code = "import sys; from prompt_transfer.cli import main; code = main(sys.argv[1:], own_process=True); "
    code += "assert 'torch' not in sys.modules; sys.exit(code)"
    for given in (["--prompt", "runs/nope"], ["--prompt=runs/nope"], ["--prompt", "runs/nope", "--json"]):
        command = [sys.executable, "-c", code, "test", *given]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        assert done.stderr.startswith(
            "error: no such prompt file: runs/nope; list prompts with `prompt-transfer prompts list`"
        )
