"""`prompts recommend`: rankings against independent computations, their use, and errors."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_cli import error_of
from tiny_models import WORDS
from torch import Tensor

from prompt_transfer.analysis import indicators
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.commands.parsing import program
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.recommend.study import (
    RANKINGS,
    Recommendation,
    RecommendStudy,
    draw_samples,
    recommend,
)
from prompt_transfer.studies.targets import EvaluationData, TargetData
from prompt_transfer.studies.transfer.study import TransferStudy, transfer
from prompt_transfer.utils.errors import UserError

P, ROWS = 4, 24
# Task -> its type, label words, training rows.
TASKS = {
    "films": ("sentiment", ["this", "dog"], 99),
    "books": ("sentiment", ["dog", "this"], 9),
    "rooms": ("sentiment", ["this", "these"], 999),
    "pairs": ("nli", ["of", "those", "people"], 9999),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "250")


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, str]:
    """Write the tasks; return name -> YAML file. Training and test rows are the same."""
    generator = np.random.default_rng(0)
    paths = {}
    for task, (kind, words, _) in TASKS.items():
        folder = tmp_path / "data" / task
        folder.mkdir(parents=True)
        texts = [" ".join(generator.choice(WORDS, 1 + i % 7)) for i in range(ROWS)]
        lines = ["a,label", *(f"the {text},{i % len(words)}" for i, text in enumerate(texts))]
        for split in ("train", "validation", "test"):
            (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
        path = tmp_path / f"{task}.yaml"
        path.write_text(
            f"name: {task}\ntype: {kind}\ncolumns: {{text_a: a}}\nlabel_column: label\nlabel_words: {words}\n"
            f"metric: accuracy\nlocal: data/{task}\n"
        )
        paths[task] = str(path)
    return paths


def rows(seed: int, length: int = P) -> Tensor:
    return torch.randn(length, 32, generator=torch.Generator().manual_seed(seed)) * 3


def save(folder: Path, model: FrozenBackbone, task: str, seed: int, name: str = "", **facts: str) -> Path:
    words = {task: TASKS[task][1]} if task in TASKS else {}
    metadata = {
        "backbone": model.id, "fingerprint": model.fingerprint, "family": "roberta", "layout": "prefix",
        "attention": "full", "dtype": "float32", "task": task, "seed": str(seed), "data_source": "local",
        "train_rows": str(TASKS.get(task, ("", [], 5))[2]), "label_words": str(words).replace("'", '"'),
        "data_task": str([f"{folder.parent / task}.yaml"]).replace("'", '"'),
    }  # fmt: skip
    length = int(facts.pop("length", P))
    return Prompt(rows(seed, length), metadata | facts, rows(99, length)).save(folder / f"{name or task}.safetensors")


@pytest.fixture
def backbone(tiny_roberta: Path) -> FrozenBackbone:
    return FrozenBackbone(str(tiny_roberta))


@pytest.fixture
def prompts(tmp_path: Path, tasks: dict[str, str], backbone: FrozenBackbone) -> Path:
    """Save a prompt for each task, all from one start."""
    for seed, task in enumerate(tasks):
        save(tmp_path / "prompts", backbone, task, seed)
    return tmp_path / "prompts"


Run = Callable[..., Recommendation]


@pytest.fixture
def run(tiny_roberta: Path, prompts: Path, tasks: dict[str, str], tmp_path: Path) -> Run:
    def study(*targets: str, **options: Any) -> Recommendation:
        options = {"output": str(tmp_path / "out"), "steps": 2, "sample": 0, "accelerator": "cpu"} | options
        data = TargetData("local", max_tokens=600)
        names = [tasks[target] for target in targets]
        return recommend(RecommendStudy(str(tiny_roberta), str(prompts), names, data=data, **options))

    return study


def column(found: Recommendation, name: str, target: str) -> dict[str, float]:
    part = found.table[found.table["target"] == target]
    return dict(zip(part["prompt"], part[name], strict=True))


def test_indicators_are_those_of_the_targets_own_prompt(run: Run, prompts: Path, tmp_path: Path) -> None:
    for seed, task in enumerate(TASKS):
        activations = torch.randn(2, 30, generator=torch.Generator().manual_seed(seed))
        (tmp_path / "neurons").mkdir(exist_ok=True)
        save_file({"activations": activations}, tmp_path / "neurons" / f"{task}.safetensors")
    found = run("books", "pairs", neurons=str(tmp_path / "neurons"))
    assert not (tmp_path / "out" / "target").exists()
    stacked = torch.stack([rows(seed) for seed in range(4)])
    cosines = indicators.cosine_average(stacked).numpy()
    assert column(found, "cosine_average", "books") == pytest.approx(
        {task: cosines[1, seed] for seed, task in enumerate(TASKS) if task != "books"}, abs=1e-6
    )
    vectors = indicators.task_vector_dot(stacked, rows(99).expand(4, -1, -1)).numpy()
    assert column(found, "task_vector_dot", "pairs")["films"] == pytest.approx(vectors[3, 0], rel=1e-5)
    pair = [torch.randn(2, 30, generator=torch.Generator().manual_seed(seed)) > 0 for seed in (1, 2)]
    overlap = (pair[0] & pair[1]).sum() / (pair[0].sum() * pair[1].sum()).sqrt()
    assert column(found, "neuron_overlap", "books")["rooms"] == pytest.approx(float(overlap))
    # this/dog, this/these and of/those/people, against dog/this.
    assert column(found, "label_word_overlap", "books") == {"films": 1, "rooms": 1 / 3, "pairs": 0}
    assert column(found, "same_type", "books") == {"films": 1, "rooms": 1, "pairs": 0}
    assert column(found, "data_size", "books") == pytest.approx({"films": 2, "rooms": 3, "pairs": 4})
    assert found.by == "neuron_overlap"
    assert not any(found.table["target"] == found.table["source"])
    assert found.quality.empty
    assert set(found.costs["ranking"]) == set(RANKINGS) - {"sample_score"}
    assert (found.costs["seconds"] >= 0).all()


def test_several_prompts_of_the_target_are_averaged(run: Run, prompts: Path, backbone: FrozenBackbone) -> None:
    save(prompts, backbone, "films", 7, "again/films")
    save(prompts, backbone, "films", 8, "negated", arithmetic="scale(films, -1)")
    found = run("films")
    stacked = torch.stack([rows(seed) for seed in (0, 7, 1, 8)])
    cosines = indicators.cosine_concat(stacked).numpy()
    mine = column(found, "cosine_concat", "films")
    # A prompt derived from the target's is not its own prompt, but a source under its name.
    assert set(mine) == {"books", "rooms", "pairs", "negated"}
    assert mine["books"] == pytest.approx((cosines[0, 2] + cosines[1, 2]) / 2, abs=1e-6)
    assert set(found.table["source"]) == {"books", "rooms", "pairs", "negated"}


def test_scores_on_a_sample_are_those_of_the_transfer_matrix(
    run: Run, tiny_roberta: Path, prompts: Path, tasks: dict[str, str], tmp_path: Path
) -> None:
    # The sample is the whole training split, which equals the test split.
    found = run("books", "pairs", sample=ROWS, target="none")
    data = EvaluationData("local", max_tokens=600)
    names = [tasks[name] for name in ("books", "pairs")]
    study = TransferStudy(str(tiny_roberta), str(prompts), names, str(tmp_path / "matrix"), data, random_prompts=0)
    scores = transfer(study)
    for target in ("books", "pairs"):
        part = scores[(scores["task"] == target) & (scores["kind"] == "trained") & (scores["source"] != target)]
        assert column(found, "sample_score", target) == pytest.approx(
            dict(zip(part["prompt"], part["value"], strict=True))
        )
    assert found.by == "sample_score"
    assert found.costs.set_index("ranking").loc["sample_score", "needs"] == f"{ROWS} labelled rows"
    assert "cosine_average" not in found.table


def test_samples_are_disjoint_where_there_are_enough_rows() -> None:
    three = draw_samples(30, 10, 3, seed=0)
    assert sorted(np.concatenate(three)) == list(range(30))
    two = draw_samples(15, 10, 2, seed=0)
    assert all(len(set(rows)) == 10 for rows in two)
    assert not np.array_equal(*two)
    assert [len(rows) for rows in draw_samples(5, 10, 2, seed=0)] == [5, 5]
    assert np.array_equal(draw_samples(30, 10, 3, seed=1), draw_samples(30, 10, 3, seed=1))


def test_a_target_without_a_prompt_is_tuned_once(
    run: Run, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (prompts / "rooms.safetensors").unlink()
    found = run("rooms")
    path = tmp_path / "out" / "target" / "rooms-tuned.safetensors"
    tuned = Prompt.load(path)
    # Tuned from the start that the sources share, so that task vectors are comparable.
    assert torch.equal(tuned.initial, rows(99))
    assert not torch.equal(tuned.embeddings, tuned.initial)
    assert tuned.metadata["steps"] == "2"
    assert tuned.metadata["train_rows"] == str(ROWS)
    cosines = indicators.cosine_concat(torch.stack([rows(0), tuned.embeddings])).numpy()
    assert column(found, "cosine_concat", "rooms")["films"] == pytest.approx(cosines[0, 1], abs=1e-6)
    cost = found.costs.set_index("ranking").loc["cosine_concat"]
    assert cost["seconds"] > float(tuned.metadata["tuning_seconds"])
    assert cost["needs"] == "64 labelled rows (short tuning)"

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("tuned again")

    monkeypatch.setattr(L.Trainer, "fit", never)
    again = run("rooms")
    pd.testing.assert_frame_equal(again.table, found.table)
    with pytest.raises(AssertionError, match="tuned again"):
        run("rooms", steps=3)
    # The target's own prompt is no source, even if another prompt is compared.
    with pytest.raises(AssertionError, match="tuned again"):
        run("films", target="tuned")


def test_targets_are_tuned_as_if_each_were_alone(run: Run, tmp_path: Path) -> None:
    run("rooms", "films", target="tuned", output=str(tmp_path / "both"))
    run("films", target="tuned", output=str(tmp_path / "one"))
    both, one = (Prompt.load(tmp_path / name / "target" / "films-tuned.safetensors") for name in ("both", "one"))
    assert torch.equal(both.embeddings, one.embeddings)
    assert both.metadata["task"] == "films"


def test_a_target_prompt_may_be_given(run: Run, prompts: Path, backbone: FrozenBackbone, tmp_path: Path) -> None:
    given = save(tmp_path / "mine", backbone, "films", 5, "early")
    found = run("films", target=str(given), neurons=None)
    cosines = indicators.cosine_concat(torch.stack([rows(5), rows(1)])).numpy()
    assert column(found, "cosine_concat", "films")["books"] == pytest.approx(cosines[0, 1], abs=1e-6)
    assert set(found.table["source"]) == {"books", "rooms", "pairs"}
    neurons = tmp_path / "neurons"
    neurons.mkdir()
    for task in TASKS:
        save_file({"activations": torch.ones(2, 5)}, neurons / f"{task}.safetensors")
    noted = run("films", target=str(given), neurons=str(neurons)).notes
    assert any(f"there is no {neurons / 'early.safetensors'}; capture those of {given} too" in note for note in noted)
    save_file({"activations": torch.ones(2, 5)}, neurons / "early.safetensors")
    assert (run("films", target=str(given), neurons=str(neurons)).table["neuron_overlap"] == 1).all()
    save_file({"activations": torch.ones(2, 6)}, neurons / "early.safetensors")
    with pytest.raises(UserError, match="has 2 x 6 layers and neurons, those of the sources 2 x 5"):
        run("films", target=str(given), neurons=str(neurons))


def test_rankings_are_judged_by_a_matrix(run: Run, tmp_path: Path) -> None:
    matrix = tmp_path / "matrix.csv"
    matrix.write_text("target,films,books,rooms,random\nfilms,0.9,0.8,0.4,0.2\nelse,1,1,1,1\n")
    found = run("films", "books", matrix=str(matrix), sample=6, by="label_word_overlap")
    assert any("books is not judged" in note for note in found.notes)
    assert any("not judged for films, for lack of a score in the matrix: pairs" in note for note in found.notes)
    means = found.quality.set_index(["ranking", "statistic"])
    # Label words rank books (1) before rooms (1/3), as the matrix does; data size picks rooms and loses half.
    assert means.loc[("label_word_overlap", "ndcg"), "mean"] == pytest.approx(1)
    assert means.loc[("label_word_overlap", "regret_at_1"), "mean"] == 0
    assert means.loc[("data_size", "regret_at_1"), "mean"] == pytest.approx(0.5)
    assert means.loc[("random_order", "regret_at_1"), "mean"] == pytest.approx(0.25)
    # Judged over five samples of six rows; recommended from the first.
    rows = pd.read_csv(tmp_path / "out" / "judgements.csv")
    assert sorted(rows[(rows["ranking"] == "sample_score") & (rows["statistic"] == "ndcg")]["seed"]) == [0, 1, 2, 3, 4]
    assert rows[rows["ranking"] == "data_size"]["seed"].isna().all()
    assert means.loc[("sample_score", "ndcg"), "seeds"] == 5
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "quality.csv"), found.quality, check_dtype=False)


def test_what_cannot_be_recommended_is_refused(
    run: Run,
    prompts: Path,
    backbone: FrozenBackbone,
    tasks: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(L.Trainer, "fit", never)
    monkeypatch.setattr("prompt_transfer.studies.recommend.score.Scorer", never)
    matrix = tmp_path / "matrix.csv"
    matrix.write_text("target,films\npairs,0.5\n")
    wrong, long = save(tmp_path, backbone, "books", 1), save(tmp_path, backbone, "films", 1, "long", length="7")
    given: list[tuple[str, dict[str, Any], str]] = [
        ("films", {"by": "size"}, "unknown ranking --by size: choose one of sample_score, "),
        ("films", {"by": "sample_score"}, "--by sample_score is not available with these inputs: choose one of"),
        ("films", {"output": str(prompts / "out")}, "lies in --prompts"),
        ("films", {"matrix": str(matrix)}, "none for films: without --matrix"),
        ("films", {"target": str(wrong)}, "was trained on books, not on films"),
        ("films", {"target": str(long)}, "is 7 x 32, the sources are 4 x 32"),
        ("films", {"target": "own"}, "--target own: give auto, tuned, none, or the file of a prompt"),
        ("films", {"steps": 0}, "--steps is 0: give 1 or more"),
        ("films", {"accelerator": "gpu"}, "choose auto, cpu or cuda"),
    ]
    for target, options, words in given:
        with pytest.raises(UserError, match=words):
            run(target, **options)
    with pytest.raises(UserError, match="names a target task twice"):
        run("films", "films")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is the prompt of one task"):
        run("films", "books", target=str(wrong))
    for name in ("rooms", "pairs", "books"):
        (prompts / f"{name}.safetensors").unlink()
    with pytest.raises(UserError, match="holds only prompts of films"):
        run("films")
    save(prompts, backbone, "books", 1, length="7")
    with pytest.raises(UserError, match="prompts of the shapes 4 x 32, 7 x 32; only prompts of one shape"):
        run("films")
    save(prompts, backbone, "books", 1, backbone="other", fingerprint="g" * 64)
    with pytest.raises(UserError, match=r"the backbones .*only prompts of one backbone can be recommended"):
        run("films")
    (prompts / "films.safetensors").unlink()
    with pytest.raises(UserError, match="trained on other, does not fit"):
        run("films")
    (prompts / "books.safetensors").unlink()
    with pytest.raises(UserError, match="holds 0 prompts of one task each; this needs one or more"):
        run("films")


@pytest.fixture
def command(tiny_roberta: Path, prompts: Path, tasks: dict[str, str], tmp_path: Path) -> list[str]:
    options = {
        "--task": tasks["films"], "--prompts": prompts, "--backbone": tiny_roberta, "--output": tmp_path / "out",
        "--data.source": "local", "--by": "label_word_overlap", "--sample": 4, "--accelerator": "cpu",
    }  # fmt: skip
    return ["prompts", "recommend", *(str(part) for pair in options.items() for part in pair)]


def steps(text: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith(f"  {program()} fit")]


SHORT = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]


def test_best_of_k(command: list[str], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--k", "2", "--rows", "2"]) == 0
    printed = capsys.readouterr().out
    assert "sources for films, by label_word_overlap, the first 2 of 3" in printed
    assert len(pd.read_csv(tmp_path / "out" / "recommendation.csv")) == 3
    assert printed.splitlines()[-1] == str(tmp_path / "out")
    assert "films, train from 2, keep the best:" in printed
    first, second = steps(printed)
    assert first[first.index("--model.init.prompt") + 1] == str(prompts / "books.safetensors")
    assert second[second.index("--model.init.prompt") + 1] == str(prompts / "rooms.safetensors")
    assert main([*first, *SHORT]) == 0
    run = Prompt.load(first[first.index("--output") + 1])
    assert torch.equal(run.initial, rows(1))
    assert run.metadata["task"] == "films"


def test_weighted_average(
    command: list[str], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--use", "average"]) == 0
    path = tmp_path / "out" / "films-average.safetensors"
    made = Prompt.load(path)
    # Weights 1 (books), 1/3 (rooms) and 0 (pairs).
    torch.testing.assert_close(made.embeddings, (rows(1) + rows(2) / 3) / (4 / 3))
    assert made.metadata["arithmetic"].startswith("average(0.75 * ")
    (fit,) = steps(capsys.readouterr().out)
    assert fit[fit.index("--model.init.prompt") + 1] == str(path)
    # The same from the table; the stored configuration names the prompts, not the table.
    table = tmp_path / "out" / "recommendation.csv"
    start = fit[: fit.index("--model.init")]
    named = ["--model.init", "FromPrompt", "--model.init.recommendation", str(table), "--model.init.top", "3"]
    assert main([*start, *named, *SHORT, "--output", str(tmp_path / "run")]) == 0
    run = Prompt.load(tmp_path / "run")
    assert torch.equal(run.initial, made.embeddings)
    files = [str(prompts / f"{name}.safetensors") for name in ("books", "rooms", "pairs")]
    assert run.metadata["source_prompt"] == ",".join(files)
    options = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["init"]["init_args"]
    assert options["prompt"] == files
    assert options["weights"] == pytest.approx([1, 1 / 3, 0])
    assert (options["recommendation"], options["top"]) == (None, 1)
    table.unlink()
    assert main(["fit", "--output", str(tmp_path / "run"), "--resume", "--trainer.max_steps", "3"]) == 0


def test_mixture(
    command: list[str], prompts: Path, backbone: FrozenBackbone, tasks: dict[str, str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main([*command, "--use", "mixture", "--k", "2"]) == 0
    mixture, then = steps(capsys.readouterr().out)
    mixed = str(tmp_path / "out" / "films-mixture")
    assert mixture[mixture.index("--output") + 1] == mixed
    assert main([*mixture, *SHORT]) == 0
    assert Prompt.load(mixed).metadata["task"] == "books,rooms,films"
    assert main([*then, *SHORT, "--output", str(tmp_path / "run")]) == 0
    assert torch.equal(Prompt.load(tmp_path / "run").initial, Prompt.load(mixed).embeddings)
    save(prompts, backbone, "books", 1, data_source="builtin")
    assert main([*command, "--use", "mixture", "--k", "2"]) == 0
    assert "films: no mixture, since a run has one data source and not all sources were trained on local" in (
        capsys.readouterr().out
    )


def test_mistakes_on_the_command_line(
    command: list[str], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--k must be 1 or more" in error_of(capsys, main([*command, "--k", "0"]))
    assert "--rows must be 1 or more" in error_of(capsys, main([*command, "--rows", "0"]))
    assert "--use" in error_of(capsys, main([*command, "--use", "all"]))
    elsewhere = [str(tmp_path / "none") if part == str(prompts) else part for part in command]
    assert "no such folder" in error_of(capsys, main(elsewhere))
    assert not (tmp_path / "out").exists()
    assert main(["prompts", "--help"]) == 0
    assert "rank the prompts of a folder as initializations for a target task" in capsys.readouterr().out
