"""MLflow: runs and studies in a local folder, with the content that W&B gets; nothing depends on it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_cli import error_of, fit

from prompt_transfer.cli import main
from prompt_transfer.studies.sweep.plan import Plan, Run, with_tracking
from prompt_transfer.tracking.mlflow_run import MlflowTracker
from prompt_transfer.tracking.options import HIDDEN, MlflowOptions
from prompt_transfer.tracking.studies import STUDIES

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs the extra mlflow")


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def runs(experiment: str = "prompt-transfer") -> list[Any]:
    """Return the runs of an experiment in the folder `mlruns`, oldest first."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=Path("mlruns").absolute().as_uri())
    number = client.get_experiment_by_name(experiment).experiment_id
    return sorted(client.search_runs([number]), key=lambda run: run.info.start_time)


def artifacts(run: Any, place: str) -> dict[str, Path]:
    """Return the artifacts of a run in a folder by name."""
    folder = Path(run.info.artifact_uri.removeprefix("file://")) / place
    return {path.name: path for path in folder.iterdir()}


@needs_mlflow
def test_a_run_of_fit_and_its_continuation(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    first, output = tmp_path / "first", tmp_path / "run"
    assert fit(toy, tiny_roberta, first) == 0
    source = ["--model.init", "FromPrompt", "--model.init.prompt", str(first / "prompt.safetensors")]
    logged = ["--config", "logger/mlflow.yaml", "--mlflow.group", "study one", "--mlflow.tags", "mine", "--convergence"]
    assert fit(toy, tiny_roberta, output, *source, *logged) == 0
    (run,) = runs()
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    tags, options = run.data.tags, run.data.params
    assert (tags["job_type"], tags["study"]) == ("fit", "study one")
    assert tags["tags"] == f"toy,{tiny_roberta.name},seed0,FromPrompt,mine"
    assert tags["source_prompts"].startswith("prompt.safetensors sha256:")
    assert (options["task"], options["model.prompt_length"], options["start"]) == ("toy", "3", "FromPrompt")
    log = pd.read_csv(output / "convergence.csv")
    assert run.data.metrics["best/score"] == log["value"].max()
    assert run.data.metrics["convergence/majority"] == 0.5
    assert "train/loss" in run.data.metrics

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    history = client.get_metric_history(run.info.run_id, "convergence/score")
    assert [(point.step, point.value) for point in history] == list(zip(log["step"], log["value"], strict=True))
    assert set(artifacts(run, "tables")) == {"results.csv", "convergence.csv"}
    assert set(artifacts(run, "prompts")) == {"prompt.safetensors"}
    # The same files as without MLflow.
    assert (output / "logs" / "metrics.csv").is_file()
    assert json.loads((output / "mlflow.json").read_text())["id"] == run.info.run_id

    assert main(["fit", "--output", str(output), "--resume", "--trainer.max_steps", "6"]) == 0
    (run,) = runs()
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "convergence/score")]
    assert steps == [0, 2, 4, 6]


@needs_mlflow
def test_a_study(tmp_path: Path) -> None:
    rows = {"sst2": [0.8, 0.6, 0.4], "imdb": [0.4, 0.8, 0.4], "mnli": [0.2, 0.2, 0.4]}
    names = pd.Index(["sst2", "imdb", "mnli"], name="target")
    pd.DataFrame(rows, names).T.rename_axis("target").to_csv("matrix.csv")
    more = ["--logger", "mlflow", "--mlflow.experiment", "mine"]
    assert main(["analyze", "matrix", "matrix.csv", "--output", "out", *more]) == 0
    (run,) = runs("mine")
    assert (run.info.run_name, run.info.status) == ("analyze matrix out", "FINISHED")
    # sst2 from imdb: 0.6 / 0.8; imdb from sst2: 0.4 / 0.8.
    assert run.data.metrics["analyze_matrix/relative/same"] == pytest.approx(0.625)
    assert set(artifacts(run, "tables")) == {"summary.csv", "best_sources.csv"}
    assert set(artifacts(run, "figures")) == {"summary.png"}
    own = pd.read_csv(artifacts(run, "tables")["summary.csv"])
    assert len(own) == len(pd.read_csv("out/summary.csv"))


@needs_mlflow
def test_scores_of_a_test(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    assert fit(toy, tiny_roberta, tmp_path / "run") == 0
    command = ["test", "--prompt", "run", "--output", "scores", "--logger", "mlflow", "--random_prompts", "0"]
    assert main(command) == 0
    (run,) = runs()
    assert run.data.metrics["test/toy/accuracy"] == pd.read_csv("scores/results.csv")["value"][0]


@needs_mlflow
def test_secrets_and_odd_names(tmp_path: Path) -> None:
    tracker = MlflowTracker("fit", "name", tmp_path, {"hub_token": "x", "a": {"b>c": 1, "none": None}}, MlflowOptions())
    tracker.start()
    tracker.log({"own > random": 0.5, "text": "no number"}, 3)
    tracker.finish(1)
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert run.data.params == {"hub_token": HIDDEN, "a.b_c": "1"}
    assert run.data.metrics == {"own _ random": 0.5}


@needs_mlflow
def test_a_run_goes_on_when_mlflow_does_not(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--logger", "mlflow", "--mlflow.tracking_uri", "http://127.0.0.1:9"]
    assert fit(toy, tiny_roberta, tmp_path / "run", *more) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "nothing is logged to MLflow, files in" in told
    assert (tmp_path / "run" / "prompt.safetensors").is_file()
    assert (tmp_path / "run" / "results.csv").is_file()


def test_without_mlflow_the_extra_is_named(
    toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else original(name, *a))
    expected = "--logger mlflow needs an extra: pip install 'prompt_transfer[mlflow]'"
    assert expected in error_of(capsys, fit(toy, tiny_roberta, tmp_path / "run", "--logger", "mlflow"))
    assert not (tmp_path / "run").exists()
    command = ["analyze", "matrix", "none.csv", "--output", "out", "--logger", "mlflow"]
    assert expected in error_of(capsys, main(command))


def test_options_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MlflowOptions().resolved() == MlflowOptions("prompt-transfer", "mlruns", None, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "e")
    assert MlflowOptions().resolved() == MlflowOptions("e", "http://server", None, None)
    assert MlflowOptions("mine", "folder", "g", "t").resolved() == MlflowOptions("mine", "folder", "g", "t")


def test_a_sweep_groups_its_runs_and_commands() -> None:
    run = Run("a", {"logger": "mlflow", "mlflow.experiment": "e"}, {})
    plan = with_tracking(Plan([run], [["transfer", "--output", "o"], ["prompts", "list"]]), "study", STUDIES)
    assert plan.runs[0].options["mlflow.group"] == "study"
    logged = ["--logger", "mlflow", "--mlflow.group", "study", "--mlflow.experiment", "e"]
    assert plan.then == [["transfer", "--output", "o", *logged], ["prompts", "list"]]
    # The logger does not decide what is trained.
    assert plan.runs[0].digest == Run("a", {}, {}).digest
