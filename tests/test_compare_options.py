"""`compare`: the grid of learning rates, options from files, and errors of one line."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from comparisons import options, study
from test_cli import error_of

from prompt_transfer.cli import main
from prompt_transfer.studies.compare import methods
from prompt_transfer.studies.compare.load import CompareInputs
from prompt_transfer.studies.compare.plan import candidates, choose_rates
from prompt_transfer.studies.compare.study import compare
from prompt_transfer.utils.errors import UserError


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "250")


def test_the_grid_keeps_the_best_rate(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    compare(study(toy, tiny_roberta, output, methods="prompt,linear_probe", seeds="0,1", grid=True, max_steps=2))
    grid = pd.read_csv(output / "grid.csv")
    assert grid["learning_rate"].tolist() == [0.003, 0.001, 0.009]
    assert grid["chosen"].sum() == 1
    chosen = grid[grid["chosen"]].iloc[0]
    assert chosen["validation"] == grid["validation"].max()
    # Three rates with the first seed, the best one with the second.
    assert len([*output.glob("cells/prompt-*")]) == 4
    frame = pd.read_parquet(output / "results.parquet")
    assert set(frame[frame["method"] == "prompt"]["learning_rate"]) == {chosen["learning_rate"]}


@pytest.mark.parametrize(("scores", "told"), [([0.5, 0.6, 0.4], "smallest"), ([0.5, 0.4, 0.6], "largest")])
def test_a_best_rate_at_the_edge_of_the_grid_is_told(
    scores: list[float], told: str, toy: Path, tiny_roberta: Path, tmp_path: Path
) -> None:
    own = study(toy, tiny_roberta, tmp_path / "out", grid=True)
    inputs = CompareInputs(tmp_path, None, {"prompt": 0.01})  # type: ignore[arg-type]
    for one, value in zip(candidates(own, inputs), scores, strict=True):
        one.folder(own.output).mkdir(parents=True)
        (one.folder(own.output) / "cell.json").write_text(json.dumps({"validation": value, "best_step": 2}))
    with pytest.warns(UserWarning, match=f"is the {told} of the grid"):
        rates = choose_rates(own, inputs, {})
    assert rates == {"prompt": {"smallest": 0.0033, "largest": 0.03}[told]}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--methods", "prompt,lara"], "unknown method 'lara'"),
        (["--methods", "prompt,prompt"], "each once"),
        (["--seeds", "0,0"], "give each seed once"),
        (["--seeds", "a"], "give whole numbers from 0 on"),
        (["--learning_rates", "lora"], "give METHOD=RATE"),
        (["--learning_rates", "linear_probe=1"], "a method of prompt, deep_prompt, lora, fine_tuning"),
        (["--learning_rates", "lora=-1"], "a rate above 0"),
        (["--max_steps", "0"], "--max_steps must be 1 or more"),
        (["--lora.rank", "0"], "--lora.rank must be 1 or more"),
        (["--lora.targets", "nowhere"], "--lora.targets do not fit"),
        (["--schedule", "steep"], "unknown schedule 'steep'"),
        (["--data.batch_size", "0"], "--data.batch_size must be 1 or more"),
        (["--task", "tost"], "tost"),
        (["--config", "nowhere.yaml"], "no configuration file nowhere.yaml"),
        (["--stepz", "1"], "unknown option --stepz"),
    ],
)
def test_mistakes_are_one_line(
    more: list[str], told: str, toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = options(toy, tiny_roberta, tmp_path / "out", "--methods", "prompt,lora", "--seeds", "0", *more)
    assert told in error_of(capsys, main(command))


def test_deep_prompts(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    compare(study(toy, tiny_roberta, tmp_path / "out", methods="prompt,deep_prompt"))
    frame = pd.read_csv(tmp_path / "out" / "results.csv").set_index("method")
    # Keys and values of two layers for each prompt token.
    assert frame.loc["deep_prompt", "trained_parameters"] == 4 * frame.loc["prompt", "trained_parameters"]
    assert frame.loc["deep_prompt", "learning_rate"] > 0
    prompt = Path(str(frame.loc["deep_prompt", "prompt"]))
    assert main(["test", "--prompt", str(prompt), "--random_prompts", "0", "--output", str(tmp_path / "test")]) == 0
    tested = pd.read_csv(tmp_path / "test" / "results.csv")["value"].iloc[0]
    assert tested == pytest.approx(frame.loc["deep_prompt", "value"])


@pytest.mark.parametrize(("package", "method"), [("peft", "lora"), ("sklearn", "linear_probe")])
def test_a_missing_package_is_named(package: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("prompt_transfer.backbones.lora", "prompt_transfer.studies.compare.methods"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name == package else object())
    with pytest.raises(UserError, match=r"pip install 'prompt_transfer\[compare\]'"):
        methods.check_methods([method])


def test_options_from_a_file(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("methods: linear_probe\nseeds: '5,6'\nmax_steps: 3\ndata: {batch_size: 4}\n")
    base = ["compare", "--config", str(file), "--task", str(toy), "--backbone", str(tiny_roberta)]
    base += ["--data.source", "local", "--seeds", "7", "--same_process", "--output", str(tmp_path / "out")]
    assert main(base) == 0
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["common"]["max_steps"], settings["common"]["batch_size"]) == (3, 4)
    assert set(pd.read_csv(tmp_path / "out" / "results.csv")["seed"].dropna()) == {7}
