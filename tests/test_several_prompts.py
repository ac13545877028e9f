"""`test` and `validate` of several prompts: scores, mean and spread, selection, paired differences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_cli import error_of, fit
from tiny_models import prompt_facts

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.commands.comparison import difference_rows, summary_rows
from prompt_transfer.commands.fit_report import over_seeds
from prompt_transfer.commands.prompt_files import NamedPrompt, best_on_validation, check_different, load_prompts
from prompt_transfer.commands.scoring import Answers
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.paired import paired_mean_interval
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

TASK = Task(name="t", type="x", text_a="a", label_words=("no", "yes"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def saved(path: Path, value: float, **facts: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Prompt(torch.full((2, 4), float(value)), facts).save(path)
    return str(path)


@pytest.fixture(scope="session")
def facts() -> dict[str, str]:
    """Return the metadata of a prompt of the built-in backbone, whose answers depend on the prompt."""
    scored = {"metric": "accuracy", "split": "validation"}
    return {**prompt_facts(FrozenBackbone("roberta-nano"), head="lm", task="builtin_movies"), **scored}


@pytest.fixture
def seeds(facts: dict[str, str], tmp_path: Path) -> Path:
    """Write a run of three seeds; validation prefers seed 1."""
    for number, score in enumerate(("0.5", "0.75", "0.625")):
        rows = torch.randn(5, 256, generator=torch.Generator().manual_seed(number))
        path = tmp_path / "seeds" / f"prompt-seed{number}.safetensors"
        path.parent.mkdir(exist_ok=True)
        Prompt(0.3 * rows, {**facts, "seed": str(number), "score": score}).save(path)
    return tmp_path / "seeds"


# Tables, by hand.


def answers(path: str, predictions: list[int], value: float) -> Answers:
    labels = np.array([0, 1, 1, 0])
    row = {"task": "t", "backbone": "b", "split": "test", "metric": "accuracy", "what": "this prompt", "prompt": path}
    records = {"task_ids": np.zeros(4, int), "labels": labels, "predictions": np.array(predictions)}
    return Answers([{**row, "value": value, "low": 0.0, "high": 1.0, "n": 4}], records)


def test_mean_spread_and_selection_by_hand() -> None:
    found = [answers("a", [0, 1, 1, 0], 1.0), answers("b", [1, 1, 1, 0], 0.75), answers("c", [1, 0, 1, 0], 0.5)]
    mean, best = summary_rows([one.rows for one in found], 1)
    assert (mean["what"], mean["value"], mean["prompts"]) == ("mean of 3 prompts", 0.75, 3)
    # Squared deviations 1/16, 0, 1/16 over n - 1 = 2.
    assert mean["std"] == pytest.approx(np.sqrt(1 / 16))
    assert "prompt" not in mean
    # The selected prompt's own test score, not the highest.
    assert (best["what"], best["prompt"], best["value"]) == ("best of 3 prompts on validation", "b", 0.75)
    assert summary_rows([found[0].rows], 0) == []


def test_differences_by_hand() -> None:
    found = [answers("a", [0, 1, 1, 0], 1.0), answers("b", [1, 1, 1, 0], 0.75), answers("c", [0, 1, 1, 0], 1.0)]
    rows = difference_rows([TASK], found)
    assert [(row["prompt"], row["other"], row["value"]) for row in rows] == [
        ("a", "b", 0.25),
        ("a", "c", 0.0),
        ("b", "c", -0.25),
    ]
    # One of four examples differs: a resample has it k times, k binomial (4, 1/4), and P(k > 3) < 2.5 % < P(k > 2).
    assert (rows[0]["low"], rows[0]["high"]) == (0.0, 0.75)
    assert (rows[1]["low"], rows[1]["high"]) == (0.0, 0.0)
    assert (rows[2]["low"], rows[2]["high"]) == (-0.75, 0.0)


def test_differences_of_exact_groups_resample_groups() -> None:
    task = replace(TASK, metric="group_exact_match", metrics=("group_exact_match",), group="g")
    found = [answers("a", [0, 1, 1, 0], 1.0), answers("b", [1, 1, 1, 0], 0.5)]
    for one in found:
        one.records["groups"] = np.array([0, 0, 1, 1])
    (row,) = difference_rows([task], found)
    # Both groups are right against one of two: a resample of two groups has the difference 0, 0.5 or 1.
    assert (row["value"], row["low"], row["high"]) == (0.5, 0.0, 1.0)
    for one in found:
        one.records["groups"] = np.array([0, 1, 2, 3])
    (row,) = difference_rows([task], found)
    assert (row["low"], row["high"]) == paired_mean_interval([1, 1, 1, 1], [0, 1, 1, 1])


def test_the_best_is_selected_by_the_validation_score_of_training() -> None:
    def named(**facts: str) -> NamedPrompt:
        whole = {"task": "t", "metric": "accuracy", "split": "validation", **facts}
        return NamedPrompt("x", "x", Prompt(torch.ones(1, 2), whole))

    assert best_on_validation([named(score="0.5"), named(score="0.75"), named(score="0.75")]) == 1
    assert best_on_validation([named(score="0.5"), named(score="0.75", task="other")]) is None
    assert best_on_validation([named(score="0.5"), named()]) is None
    assert best_on_validation([named(score="0.5"), named(score="0.7", split="")]) is None


def test_means_over_seeds_are_per_learning_rate() -> None:
    rows = [
        {"task": "t", "metric": "accuracy", "learning_rate": rate, "value": value, "n": 9, "majority": 0.5}
        for rate, value in (("0.1", 0.6), ("0.1", 0.8), ("0.2", 0.5), ("0.2", None))
    ]
    first, second = over_seeds(rows)
    assert (first["learning_rate"], first["value"], first["seeds"]) == ("0.1", pytest.approx(0.7), 2)
    assert first["std"] == pytest.approx(np.sqrt(0.02))
    assert (second["value"], second["std"], second["seeds"]) == (0.5, None, 1)


# The files that `--prompt` names.


def test_files_folders_patterns_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [saved(tmp_path / "all" / f"run{number}" / "prompt.safetensors", number) for number in range(3)]
    saved(tmp_path / "all" / "random.safetensors", 9, random="true")
    monkeypatch.chdir(tmp_path)

    def found(*values: str) -> list[str]:
        return [str(Path(one.path).resolve()) for one in load_prompts(values)]

    assert found(*paths) == found("all") == found("all/run*/*.safetensors") == found(f"[{','.join(paths)}]") == paths
    assert [one.name for one in load_prompts(paths)] == ["run0", "run1", "run2"]
    # The folder of a run is one prompt.
    assert [one.path for one in load_prompts(["all/run1"])] == ["all/run1"]
    with pytest.raises(UserError, match=r"^no prompt file matches all/none\*"):
        load_prompts(["all/none*"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^no such prompt file: empty"):
        load_prompts(["empty"])
    saved(tmp_path / "copy.safetensors", 1)
    with pytest.raises(UserError, match=r"run1/prompt.safetensors and .*copy.safetensors hold the same prompt"):
        check_different(load_prompts([paths[1], str(tmp_path / "copy.safetensors")]))
    check_different(load_prompts(paths))


# The commands.


def test_every_prompt_is_scored(seeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(seeds / f"prompt-seed{number}.safetensors") for number in range(3)]
    given = [word for path in paths for word in ("--prompt", path)]
    shared = ["--random_prompts", "0", "--data.limit_eval", "60", "--metrics", "per_class,confusion_matrix,calibration"]
    assert main(["test", *given, *shared, "--output", str(tmp_path / "all")]) == 0
    printed = capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "all" / "results.csv")
    own = frame[frame["what"] == "this prompt"]
    assert own["prompt"].tolist() == paths
    assert own["seed"].tolist() == [0, 1, 2]
    assert own["value"].nunique() > 1
    rows = frame.set_index("what")
    assert rows.loc["mean of 3 prompts", "value"] == pytest.approx(own["value"].mean())
    assert rows.loc["mean of 3 prompts", "std"] == pytest.approx(own["value"].std(ddof=1))
    assert rows.loc["best of 3 prompts on validation", "value"] == own["value"].iloc[1]
    assert "best on validation: seeds-seed1, selected by the validation score" in printed
    differences = pd.read_csv(tmp_path / "all" / "differences.csv")
    values = own["value"].to_numpy()
    assert differences["value"].tolist() == pytest.approx(
        [values[0] - values[1], values[0] - values[2], values[1] - values[2]]
    )
    # Each alone has the same score, and the same classes.
    for number, path in enumerate(paths):
        assert main(["test", "--prompt", path, *shared, "--output", str(tmp_path / str(number))]) == 0
        alone = pd.read_csv(tmp_path / str(number) / "results.csv")
        assert alone.loc[alone["what"] == "this prompt", ["value", "low", "high"]].to_numpy() == pytest.approx(
            own[["value", "low", "high"]].iloc[[number]].to_numpy()
        )
        for name in ("per_class", "confusion_matrix", "calibration"):
            whole, part = (pd.read_csv(tmp_path / folder / f"{name}.csv") for folder in ("all", str(number)))
            mine = whole[whole["prompt"] == path].reset_index(drop=True)
            pd.testing.assert_frame_equal(mine.drop(columns="name"), part.drop(columns="name"))
    classes = pd.read_csv(tmp_path / "0" / "per_class.csv").set_index("class")
    assert classes.loc["macro mean", "n"] == 60 == classes["n"].sum() / 2
    matrix = pd.read_csv(tmp_path / "0" / "confusion_matrix.csv")
    right = matrix.loc[matrix["label"] == matrix["answer"], "n"].sum()
    assert right / 60 == pytest.approx(values[0])
    assert {path.name for path in (tmp_path / "all").glob("*.p[nd][gf]")} == {
        "confusion_matrix.png",
        "confusion_matrix.pdf",
    }


def test_an_evaluation_leaves_no_table_of_the_last_one(seeds: Path, tmp_path: Path) -> None:
    paths = [str(seeds / f"prompt-seed{number}.safetensors") for number in range(2)]
    out = ["--random_prompts", "0", "--data.limit_eval", "8", "--output", str(tmp_path / "out")]
    assert main(["test", "--prompt", *paths, "--metrics", "confusion_matrix", *out]) == 0
    (tmp_path / "out" / "notes.csv").write_text("mine")
    assert main(["validate", "--prompt", paths[0], *out]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.csv", "results.parquet", "provenance.json", "notes.csv"}


def test_json_has_scores_and_differences(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(seeds / f"prompt-seed{number}.safetensors") for number in range(2)]
    capsys.readouterr()
    assert main(["validate", "--prompt", *paths, "--random_prompts", "0", "--data.limit_eval", "8", "--json"]) == 0
    seen = capsys.readouterr()
    scores, differences = json.loads(seen.out)["tables"]
    assert [row["what"] for row in scores["rows"]] == ["this prompt"] * 2 + ["mean of 2 prompts", "majority class"]
    (row,) = differences["rows"]
    assert (row["prompt"], row["other"], row["metric"]) == (*paths, "accuracy")
    # On the split that selects, no prompt is named the best.
    assert "the highest of these scores is biased upwards" in seen.err


def test_a_run_of_several_seeds_names_its_selection(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.seeds", "[0,1]", "--logger", "none"]
    assert fit(toy, tiny_roberta, tmp_path / "two", *options, "--json") == 0
    seen = capsys.readouterr()
    rows, means = json.loads(seen.out)["tables"]
    values = [row["value"] for row in rows["rows"]]
    (mean,) = means["rows"]
    assert (mean["value"], mean["std"], mean["seeds"]) == (
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
        2,
    )
    lines = seen.err.splitlines()
    copy, paths = (
        tmp_path / "two" / "prompt.safetensors",
        [tmp_path / "two" / f"prompt-seed{n}.safetensors" for n in (0, 1)],
    )
    assert f"{copy} is the best of 2 prompts on validation: its validation score is biased upwards" in lines
    command = next(line for line in lines if line.startswith("next: "))
    assert command.endswith(f"prompt-transfer test --prompt {paths[0]} --prompt {paths[1]}")
    # The copy names its selection wherever it is scored; the seeds' own files have none.
    assert Prompt.load(copy).metadata["best_of"] == "2"
    assert "best_of" not in Prompt.load(paths[0]).metadata
    assert main(["test", "--prompt", str(tmp_path / "two"), "--random_prompts", "0"]) == 0
    told = f"{tmp_path / 'two'} is the best of 2 prompts of its run on the validation split; for the mean of all: "
    assert told in capsys.readouterr().out
    # The suggested command runs.
    assert main(["test", *command.split(" test ")[1].split(), "--random_prompts", "0"]) == 0
    assert "mean of 2 prompts" in capsys.readouterr().out


def test_predict_takes_one_prompt(seeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(seeds / f"prompt-seed{number}.safetensors") for number in range(2)]
    given = ["--prompt", paths[0], "--prompt", paths[1], "--output", str(tmp_path / "out")]
    told = error_of(capsys, main(["predict", *given]))
    assert told.startswith(f"error: predict takes one prompt, not 2 ({paths[0]} and {paths[1]}")
    # Baselines are scored by `test` alone: `predict` ignored the option.
    told = error_of(capsys, main(["predict", *given[:2], "--random_prompts", "3", *given[4:]]))
    assert told.startswith("error: unknown option --random_prompts")
    assert not (tmp_path / "out").exists()


def test_prompts_of_different_options_are_not_scored_as_one(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(toy, tiny_roberta, tmp_path / "a") == 0
    assert fit(toy, tiny_roberta, tmp_path / "b", "--model.attention", "shared", "--model.prompt_length", "5") == 0
    both = ["--prompt", str(tmp_path / "a"), "--prompt", str(tmp_path / "b")]
    told = error_of(capsys, main(["test", *both]))
    assert told.startswith(
        f"error: the prompts differ in attention: {tmp_path / 'a'} has full, {tmp_path / 'b'} shared;"
    )
    assert fit(toy, tiny_roberta, tmp_path / "t", "--data.template", "Film: {text_a}") == 0
    told = error_of(capsys, main(["test", both[0], both[1], "--prompt", str(tmp_path / "t")]))
    assert told.startswith(f"error: the prompts differ in template: {tmp_path / 'a'} has none, {tmp_path / 't'} Film:")
    # Prompts of different lengths are compared on the same examples.
    assert fit(toy, tiny_roberta, tmp_path / "c", "--model.prompt_length", "5", "--seed_everything", "1") == 0
    both[-1] = str(tmp_path / "c")
    assert main(["test", *both, "--random_prompts", "0", "--output", str(tmp_path / "out")]) == 0
    assert pd.read_csv(tmp_path / "out" / "differences.csv")["n"].tolist() == [10]


def test_prompts_of_different_data_seeds_share_a_test_split_alone(
    seeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [Prompt.load(seeds / f"prompt-seed{number}.safetensors") for number in range(2)]
    for number, prompt in enumerate(prompts):
        prompt.metadata["data_seed"] = str(number)
        prompt.save(tmp_path / f"{number}.safetensors")
    both = ["--prompt", str(tmp_path / "0.safetensors"), str(tmp_path / "1.safetensors")]
    few = ["--random_prompts", "0", "--data.limit_eval", "8"]
    assert main(["test", *both, *few]) == 0
    told = error_of(capsys, main(["validate", *both, *few]))
    assert "the prompts differ in seed" in told
    assert told.endswith("give --data.seed, or score them separately")
