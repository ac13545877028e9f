"""W&B: offline records, complete results without W&B, and no leaked secrets."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import wandb
import yaml
from safetensors.torch import save_file
from test_cli import error_of, fit
from wandb_files import OfflineRun

from prompt_transfer.analysis.convergence import UNITS
from prompt_transfer.callbacks.tracking import describe_fit, sources_of
from prompt_transfer.cli import main
from prompt_transfer.commands.training import FitCommand
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.sweep.plan import Plan, Run, with_tracking
from prompt_transfer.tracking import charts
from prompt_transfer.tracking.artifacts import find_prompt_files, prompt_artifact, role, slug
from prompt_transfer.tracking.dashboard import SECTIONS, workspace
from prompt_transfer.tracking.mlflow_run import MlflowTracker
from prompt_transfer.tracking.options import HIDDEN, MlflowOptions, WandbOptions, clean
from prompt_transfer.tracking.run import Tracker, to_table
from prompt_transfer.tracking.studies import STUDIES, publish
from prompt_transfer.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "hf_" + "abcdEFGH" * 4


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    for name in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb_home"))
    for name in ("PROJECT", "ENTITY", "RUN_GROUP", "TAGS", "NAME", "DIR", "RUN_ID", "SWEEP_ID"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    yield
    if wandb.run is not None:
        wandb.finish()


def save(folder: Path, name: str, seed: int = 0, **facts: str) -> Path:
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    common = {"backbone": "models/tiny", "fingerprint": "f", "layout": "prefix", "attention": "full", "seed": "0"}
    return Prompt(rows, common | facts).save(folder / f"{name}.safetensors")


def test_a_transferred_run_with_metrics_lineage_and_no_secret(
    toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    first, output = tmp_path / "first", tmp_path / "run"
    assert fit(toy, tiny_roberta, first) == 0
    source = ["--model.init", "FromPrompt", "--model.init.prompt", str(first / "prompt.safetensors")]
    where = ["--logger", "wandb", "--wandb.group", "study one", "--wandb.tags", "mine", "--convergence"]
    # A secret in an option (here the name of a folder that is never created) must stay on this machine.
    secret = ["--data.cache_dir", str(tmp_path / TOKEN)]
    assert fit(toy, tiny_roberta, output, *source, *where, *secret) == 0

    found = OfflineRun(output)
    run = found.run
    assert (run.project, run.run_group, run.job_type, run.display_name) == (
        "prompt-transfer",
        "study one",
        "fit",
        "run",
    )
    assert list(run.tags) == ["toy", tiny_roberta.name, "seed0", "FromPrompt", "mine"]
    assert found.exit_code == 0
    shown = {key: found.config[key] for key in ("study", "task", "backbone", "seed", "start")}
    assert shown == {
        "study": "study one",
        "task": "toy",
        "backbone": tiny_roberta.name,
        "seed": 0,
        "start": "FromPrompt",
    }
    assert found.config["model"]["prompt_length"] == 3
    assert found.config["data"]["cache_dir"] == str(tmp_path / "<HF_TOKEN>")

    log = pd.read_csv(output / "convergence.csv")
    assert found.logged("convergence/score") == list(log["value"])
    assert [row["trainer/global_step"] for row in found.history if "best/score" in row] == [0, 2, 4]
    assert found.logged("best/score") == list(log["value"].cummax())
    assert found.logged("convergence/majority") == [0.5] * 3
    assert found.logged("train/loss") or found.logged("validation/loss")
    assert found.table("results/table")["data"][0][0] == "toy"
    assert len(found.table("convergence/table")["data"]) == 3

    name = slug(f"prompt-toy-{tiny_roberta.name}-seed0")
    assert list(found.used) == [name]
    # The digest under which the training run would have logged it.
    assert found.used[name].digest == prompt_artifact(first / "prompt.safetensors").digest
    assert list(found.made) == [f"{name}-transferred"]
    (entry,) = found.made[f"{name}-transferred"].manifest.contents
    assert (entry.path, entry.local_path) == ("prompt.safetensors", str(output / "prompt.safetensors"))
    metadata = json.loads(found.made[f"{name}-transferred"].metadata)
    assert metadata["role"] == "transferred"
    assert metadata["score"] == log["value"].max()

    # All local files are the same as without W&B.
    assert (output / "results.csv").is_file()
    assert (output / "logs" / "metrics.csv").is_file()
    assert json.loads((output / "wandb.json").read_text())["id"] == run.run_id
    scores = ["test", "--prompt", str(first), "--output", str(tmp_path / "scores"), "--logger", "wandb"]
    assert main([*scores, "--random_prompts", "0"]) == 0
    tested = OfflineRun(tmp_path / "scores")
    assert (tested.run.job_type, list(tested.used)) == ("test", [name])
    assert tested.summary["test/toy/accuracy"] == pd.read_csv(tmp_path / "scores" / "results.csv")["value"][0]
    for path in (output / "wandb").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    path = tmp_path / "matrix.csv"
    rows = {"sst2": [0.8, 0.6, 0.4], "imdb": [0.4, 0.8, 0.4], "mnli": [0.2, 0.2, 0.4]}
    pd.DataFrame(rows, pd.Index(["sst2", "imdb", "mnli"], name="target")).T.rename_axis("target").to_csv(path)
    return path


def test_a_study_as_tables_charts_and_headline(tmp_path: Path, matrix: Path) -> None:
    output = tmp_path / "matrix study"
    assert main(["analyze", "matrix", str(matrix), "--output", str(output), "--logger", "wandb"]) == 0
    found = OfflineRun(output)
    assert found.run.job_type == "analyze matrix"
    # sst2 from imdb: 0.6 / 0.8; imdb from sst2: 0.4 / 0.8.
    assert found.summary["analyze_matrix/relative/same"] == pytest.approx(0.625)
    table = found.table("analyze_matrix/summary_table")
    assert table["columns"] == list(pd.read_csv(output / "summary.csv").columns)
    assert len(table["data"]) == len(pd.read_csv(output / "summary.csv"))
    assert (found.path / "files" / found.logged("analyze_matrix/summary")[0]["path"]).is_file()
    assert list(found.config["_wandb"]["visualize"]) == ["analyze_matrix/headline"]
    bars = dict(found.table("analyze_matrix/headline_table")["data"])
    assert bars["relative/same"] == pytest.approx(0.625)
    (made,) = found.made.values()
    assert made.type == "results"
    assert {entry.path for entry in made.manifest.contents} == {"summary.csv", "best_sources.csv", "summary.png"}


def test_a_transfer_study_links_its_prompts_and_draws_the_matrix(tmp_path: Path, matrix: Path) -> None:
    folder = tmp_path / "prompts"
    save(folder, "sst2", 1, task="sst2")
    save(folder, "imdb", 2, task="imdb")
    output = tmp_path / "transfer"
    output.mkdir()
    (output / "matrix.csv").write_bytes(matrix.read_bytes())
    pd.DataFrame({"task": ["sst2"], "value": [0.8], "low": [np.nan]}).to_parquet(output / "results.parquet")
    options = WandbOptions(project="p", group="g")
    publish("transfer", {"output": str(output), "prompts": str(folder), "backbone": "models/tiny"}, options)
    found = OfflineRun(output)
    assert (found.run.project, found.run.run_group) == ("p", "g")
    assert {key: found.config[key] for key in ("study", "backbone")} == {"study": "g", "backbone": "tiny"}
    assert sorted(found.used) == ["prompt-imdb-tiny-seed0", "prompt-sst2-tiny-seed0"]
    cells = found.table("transfer/matrix_heatmap_table")
    assert cells["columns"] == ["target", "source", "value"]
    assert [row for row in cells["data"] if row[:2] == ["sst2", "imdb"]] == [["sst2", "imdb", 0.6]]
    assert found.table("transfer/results_table")["data"] == [["sst2", 0.8, None]]


def test_overlap_of_neurons(tmp_path: Path) -> None:
    patterns = {"sst2": [1.0, 1.0], "imdb": [1.0, 0.0], "mnli": [0.0, 1.0]}
    for seed, (task, pattern) in enumerate(patterns.items()):
        save(tmp_path / "prompts", task, seed, task=task)
        (tmp_path / "neurons").mkdir(exist_ok=True)
        save_file({"activations": torch.tensor([pattern])}, tmp_path / "neurons" / f"{task}.safetensors")
    places = ["--prompts", str(tmp_path / "prompts"), "--neurons", str(tmp_path / "neurons")]
    output = tmp_path / "overlap"
    assert main(["neurons", "compare", *places, "--output", str(output), "--logger", "wandb"]) == 0
    found = OfflineRun(output)
    # ON is 1 / sqrt(2) twice and 0 once.
    assert found.summary["neurons_compare/mean_overlap"] == pytest.approx(2 * 2**-0.5 / 3)
    assert len(found.table("neurons_compare/overlap_heatmap_table")["data"]) == 9
    assert len(found.used) == 3
    assert found.logged("neurons_compare/overlap")


def test_a_run_goes_on_when_wandb_does_not(
    toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb, "init", _raises)
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output, "--logger", "wandb") == 0
    assert "W&B: no route to the server; nothing is logged to W&B" in " ".join(capsys.readouterr().err.split())
    assert Prompt.load(output).embeddings.shape == (3, 32)
    assert (output / "results.csv").is_file()


def _raises(*_: Any, **__: Any) -> Any:
    raise ConnectionError("no route\nto the server")


def test_trackers_differ_only_in_the_length_of_tags(tmp_path: Path) -> None:
    long, config = "x" * 70, {"a": 1, "hub_token": "secret"}
    trackers = (
        Tracker("fit", "name", tmp_path, config, WandbOptions(tags=f"mine, {long}"), ["toy", "", "toy"]),
        MlflowTracker("fit", "name", tmp_path, config, MlflowOptions(tags=f"mine, {long}"), ["toy", "", "toy"]),
    )
    assert [tracker.tags for tracker in trackers] == [["toy", "mine", long[:64]], ["toy", "mine", long]]
    for tracker, service in zip(trackers, ("W&B", "MLflow"), strict=True):
        assert tracker.config == {"a": 1, "hub_token": "[hidden]"}
        with pytest.warns(UserWarning, match=rf"^{service}: no route to the server; lost, files in .* are complete$"):  # noqa: SIM117
            with tracker.shielded("lost"):
                _raises()


def test_without_a_server_the_run_is_kept_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = wandb.init

    def init(**facts: Any) -> Any:
        return original(**facts) if facts.get("mode") == "offline" else _raises()

    monkeypatch.setattr(wandb, "init", init)
    tracker = Tracker("fit", "name", tmp_path, {}, WandbOptions())
    expected = "no route to the server; the run is stored offline: upload it with `wandb sync"
    with pytest.warns(UserWarning, match=expected):
        tracker.start(keep_id=True)
    first = tracker.run.id
    monkeypatch.setattr(tracker.run, "log", _raises)
    with pytest.warns(UserWarning, match="loss was not logged"):
        tracker.log({"loss": 1.0}, 3)
    tracker.finish()
    tracker.log({"loss": 1.0})
    again = Tracker("fit", "name", tmp_path, {}, WandbOptions())
    with pytest.warns(UserWarning, match="stored offline"):
        again.start(resume=True)
    assert again.run.id == first
    again.finish()


def test_secrets_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "1234567890")
    given = {
        "hub_token": "x",
        "max_tokens": 5,
        "tokenizer": "bpe",
        "nested": [{"password": "y"}, ("is 1234567890", None, True)],
        "address": f"https://me:secret@host/{TOKEN}",
    }
    assert clean(given) == {
        "hub_token": HIDDEN,
        "max_tokens": 5,
        "tokenizer": "bpe",
        "nested": [{"password": HIDDEN}, ["is <SOME_API_KEY>", None, True]],
        "address": f"https://***@host/{HIDDEN}",
    }


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WandbOptions().resolved() == WandbOptions("prompt-transfer", None, None, None)
    for name, value in {"PROJECT": "p", "ENTITY": "e", "RUN_GROUP": "g", "TAGS": "a,b"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert WandbOptions().resolved() == WandbOptions("p", "e", "g", "a,b")
    assert WandbOptions("q", group="h", tags="c").resolved() == WandbOptions("q", "e", "h", "c,a,b")


def test_tables_hold_plain_values() -> None:
    frame = pd.DataFrame({"n": pd.array([1, None], dtype="Int64"), "x": [0.5, np.nan], "w": [["a", "b"], "c"]})
    assert to_table(frame).data == [[1, 0.5, "['a', 'b']"], [None, None, "c"]]


def test_names_and_roles_of_prompts(tmp_path: Path) -> None:
    path = save(tmp_path / "a", "x", task="sst2", projected="true", score="0.75", data_root=f"/home/{TOKEN}")
    artifact = prompt_artifact(path)
    assert (artifact.name, artifact.type) == ("prompt-sst2-tiny-seed0-projected", "prompt")
    assert artifact.metadata["score"] == 0.75
    assert artifact.metadata["data_root"] == f"/home/{HIDDEN}"
    copied = tmp_path / "other.safetensors"
    copied.write_bytes(path.read_bytes())
    assert prompt_artifact(copied).digest == artifact.digest
    assert [role({"init": "FromPrompt(x)"}), role({"init": "Vocabulary()"}), role({"random": "true"})] == [
        "transferred",
        "trained",
        "random",
    ]
    for name in ("prompt", "prompt-seed0", "prompt-seed1"):
        save(tmp_path / "several", name)
    assert [found.stem for found in find_prompt_files([tmp_path / "several", path])] == [
        "prompt-seed0",
        "prompt-seed1",
        "x",
    ]


def test_what_a_run_of_fit_is_called() -> None:
    init = {"class_path": "prompt_transfer.prompts.initializers.FromPrompt", "init_args": {"prompt": ["a{seed}", "b"]}}
    config = {
        "seed_everything": 3,
        "logger": "wandb",
        "wandb": {"group": "g"},
        "data": {"task": ["x/trec.yaml", "sst2"]},
        "model": {"backbone": "/models/roberta", "seeds": [0, 1], "init": init},
    }
    group, tags, facts = describe_fit(config, "name")
    assert group == "trec+sst2-roberta"
    assert tags == ["trec+sst2", "roberta", "seed0+1", "FromPrompt"]
    assert (facts["seed"], facts["run"]) == ("0+1", "name")
    assert not {"wandb", "logger"} & set(facts)
    assert sources_of(config) == ["a0", "a1", "b"]


def test_headlines_of_studies() -> None:
    assert charts.matrix_means({}) == {}
    pairs = pd.DataFrame(
        [
            {"task": "b", "source": "a", "measure": "convergence", "unit": "step", "value": 2.0},
            {"task": "b", "source": "a", "measure": "convergence", "unit": "seconds", "value": 9.0},
            {"task": "b", "source": "a", "measure": "comparable result", "unit": "step", "value": np.nan},
            {"task": "all", "source": "", "measure": "convergence", "unit": "step", "value": 3.0},
        ]
    )
    assert set(pairs["unit"]) <= set(UNITS)
    found = charts.speedups({"speedups.csv": pairs})
    assert found == {"convergence/b from a": 2.0, "convergence/all": 3.0}
    scores = pd.DataFrame(
        {"indicator": ["max", "on", "on/00"], "statistic": "spearman_per_target", "value": [0.1, 0.5, 0.9]}
    )
    assert list(charts.ranking({"correlations.csv": scores}).items()) == [
        ("spearman_per_target/on", 0.5),
        ("spearman_per_target/max", 0.1),
    ]
    rows = {
        "projector": "p",
        "task": ["a", "mean of trained"],
        "what": "projected",
        "value": [0.5, 0.6],
        "tasks": [None, 2],
    }
    assert charts.projected({"projection.csv": pd.DataFrame(rows)}) == {"p/mean of trained/projected": 0.6}
    drops = pd.DataFrame({"mask": ["own"], "method": ["zero"], "ratio": [0.1], "drop": [0.05]})
    assert charts.masked({"summary.csv": drops}) == {"own/zero/0.1": 5.0}


def test_runs_of_a_sweep_share_a_group() -> None:
    runs = [Run("a", {"logger": "wandb", "data.task": "a", "wandb.project": "p"}, {})]
    then = [["transfer", "--output", "x"], ["analyze", "matrix", "m.csv"], ["prompts", "list", "x"]]
    plan = with_tracking(Plan(runs, then), "study", STUDIES)
    more = ["--logger", "wandb", "--wandb.group", "study", "--wandb.project", "p"]
    assert plan.runs[0].options["wandb.group"] == "study"
    assert plan.then == [[*then[0], *more], [*then[1], *more], then[2]]
    # Logging elsewhere does not make a different run.
    assert plan.runs[0].digest == Run("a", {"data.task": "a"}, {}).digest != Run("a", {"data.task": "b"}, {}).digest
    quiet = Plan([Run("a", {"data.task": "a"}, {})], then)
    assert with_tracking(quiet, "study", STUDIES) is quiet


def test_the_wandb_sweep_that_ships_is_taken_by_fit(
    tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = yaml.safe_load((ROOT / "configs" / "sweep" / "wandb_lr.yaml").read_text())
    assert sweep["metric"]["name"] in {name for section in SECTIONS for panel in section.panels for name in panel.shows}
    command = sweep["command"]
    assert command[:3] == ["${env}", "prompt-transfer", "fit"]
    assert command[-1] == "${args}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    for pick in (0, -1):
        values = {
            name: (given["values"] if "values" in given else [given["min"], given["max"]])[pick]
            for name, given in sweep["parameters"].items()
        }
        # Arguments as an agent writes them, with a small backbone.
        arguments = [*command[3:-1], *(f"--{name}={value}" for name, value in values.items())]
        parsed = FitCommand("fit", [*arguments, f"--model.backbone={tiny_roberta}"])
        assert parsed.config.output == "runs/sweep-s1/r1"
        assert parsed.model.hparams.learning_rate == values["model.learning_rate"]
        assert parsed.model.prompt_length == values["model.prompt_length"]
        parsed.lock.close()
        parsed.output.rmdir()


@pytest.mark.parametrize("command", [name for name in STUDIES if name not in ("test", "validate")])
def test_every_study_takes_the_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "logger" in error_of(capsys, main([*command.split(), "--logger", "paper"]))


def test_panels_show_what_is_logged() -> None:
    stems = {
        f"{command.replace(' ', '_')}/{Path(name).stem}{'_table' if name.endswith('.csv') else ''}"
        for command, study in STUDIES.items()
        for name in (*study.tables, *study.figures)
    }
    shown = {
        name
        for section in SECTIONS
        for panel in section.panels
        if panel.kind in ("media", "table")
        for name in panel.shows
    }
    assert shown <= stems


def test_the_dashboard_needs_its_library_and_an_entity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(UserError, match=re.escape("pip install 'prompt_transfer[dashboard]'")):
        workspace(WandbOptions(entity="me"))


def test_the_dashboard_as_a_workspace() -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")
    with pytest.raises(UserError, match=r"--wandb\.entity"):
        workspace(WandbOptions())
    view = workspace(WandbOptions("p", "me"), "study one")
    assert (view.entity, view.project) == ("me", "p")
    assert [section.name for section in view.sections] == [section.name for section in SECTIONS]
    assert [len(section.panels) for section in view.sections] == [len(section.panels) for section in SECTIONS]
    sent = json.loads(view._to_model().model_dump_json(by_alias=True))
    (runs,) = sent["spec"]["section"]["runSets"]
    assert [group["name"] for group in runs["grouping"]] == ["task.value", "backbone.value"]
    assert [(one["key"]["name"], one["value"]) for one in runs["filters"]["filters"]] == [("study", "study one")]


def test_the_panels_can_be_listed_without_an_account(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "dashboard", "--dry_run"]) == 0
    assert "convergence/score" in capsys.readouterr().out
