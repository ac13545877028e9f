"""The transfer matrix: one pass equals a loop over pairs, nothing is lost or repeated, errors come first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import WORDS, prompt_facts

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.objectives import make_objective
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.studies import scoring
from prompt_transfer.studies.scoring import Scorer
from prompt_transfer.studies.targets import EvaluationData
from prompt_transfer.studies.transfer.study import TransferStudy, transfer
from prompt_transfer.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1)
ROWS = 30
P = 4


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    """Write two single-text tasks (one scored by F1) and one pair task, with texts of many lengths."""
    # Words between which the random model's preference varies.
    words = {"films": "[this, dog]", "rooms": "[come, these]", "pairs": "[of, those, people]"}
    generator = np.random.default_rng(0)
    paths = []
    for task, labels in words.items():
        folder = tmp_path / "data" / task
        folder.mkdir(parents=True)
        classes = labels.count(",") + 1
        for split in ("train", "validation", "test"):
            lines = ["a,b,label"]
            for i in range(ROWS):
                first, second = (" ".join(generator.choice(WORDS, 1 + i % 9)) for _ in range(2))
                lines.append(f"the {first},it {second},{i % 3 % classes}")
            (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
        pair = "b" if task == "pairs" else "null"
        kind, metric = ("nli", "accuracy") if task == "pairs" else ("sentiment", "accuracy")
        if task == "rooms":
            metric = "f1"
        paths.append(str(tmp_path / f"{task}.yaml"))
        Path(paths[-1]).write_text(
            f"name: {task}\ntype: {kind}\ncolumns: {{text_a: a, text_b: {pair}}}\nlabel_column: label\n"
            f"label_words: {labels}\nmetric: {metric}\nlocal: data/{task}\n"
        )
    return paths


def backbone_of(folder: Path, attention: str = "full") -> FrozenBackbone:
    return FrozenBackbone(str(folder), attention=attention)


def save_prompt(path: Path, backbone: FrozenBackbone, task: str, seed: int, length: int = P, **facts: str) -> Path:
    number = sum(map(ord, task)) + seed
    rows = torch.randn(length, backbone.hidden_size, generator=torch.Generator().manual_seed(number)) * 3
    metadata = prompt_facts(backbone, task=task, seed=str(seed))
    return Prompt(rows, metadata | facts, rows * 0).save(path)


@pytest.fixture
def prompts(tmp_path: Path, tiny_roberta: Path, tasks: list[str]) -> Path:
    """Save two seeds for each task; those of the last are longer, and in run folders."""
    return make_prompts(tmp_path / "prompts", backbone_of(tiny_roberta), tasks)


def make_prompts(folder: Path, backbone: FrozenBackbone, tasks: list[str]) -> Path:
    for task in (Path(path).stem for path in tasks):
        for seed in SEEDS:
            run = task == "pairs"
            place = folder / f"{task}-{seed}" / "prompt.safetensors" if run else folder / f"{task}-{seed}.safetensors"
            save_prompt(place, backbone, task, seed, length=P + 2 * run)
    return folder


def study(backbone: Path, prompts: Path, tasks: list[str], output: Path, **options: Any) -> TransferStudy:
    data = EvaluationData("local", max_tokens=600)
    return TransferStudy(str(backbone), str(prompts), tasks, str(output), data, accelerator="cpu", **options)


def counted(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Record the number of (prompt, row) pairs scored per batch from now on; stop after `stop_after` batches."""
    counts: list[int] = []
    original = Scorer.answers

    def answers(self: Scorer, *arguments: Any) -> Any:
        for batch, found in original(self, *arguments):
            if stop_after is not None and len(counts) == stop_after:
                raise KeyboardInterrupt
            counts.append(found.size)
            yield batch, found

    monkeypatch.setattr(Scorer, "answers", answers)
    return counts


def score_alone(backbone: FrozenBackbone, prompt: torch.Tensor, task: str) -> float:
    """Score as `test` does: one prompt, one task, its own batches, its own metric."""
    data = TaskDataModule(task, source="local", eval_batch_size=7)
    data.connect(backbone.encoder(P)).setup("test")
    objective = make_objective(backbone, data.tasks)
    with torch.no_grad():
        for batch in data.test_dataloader():
            objective.evaluate(prompt, batch, "test", data.targets)
    return float(objective.compute("test")[0][data.tasks[0].metric])


@pytest.mark.parametrize("attention", ["full", "shared"])
def test_one_pass_equals_a_loop_over_pairs(
    attention: str, tiny_roberta: Path, tasks: list[str], tmp_path: Path
) -> None:
    backbone = backbone_of(tiny_roberta, attention)
    folder = make_prompts(tmp_path / "prompts", backbone, tasks)
    frame = transfer(study(tiny_roberta, folder, tasks, tmp_path / "out", random_prompts=2))
    assert len(frame) == len(tasks) * (3 * len(SEEDS) + 2 * 2 + 1)
    scores = frame.set_index(["prompt", "task"])["value"]
    assert frame.loc[frame["kind"] == "trained", "value"].nunique() > 6
    for task in tasks:
        for path in folder.rglob("*.safetensors"):
            name = path.parent.name if path.stem == "prompt" else path.stem
            alone = score_alone(backbone, Prompt.load(path).embeddings, task)
            assert scores[name, Path(task).stem] == pytest.approx(alone, abs=1e-6)
        shape = (P + 2, backbone.hidden_size)
        for draw in ("vocabulary", "uniform"):
            alone = score_alone(backbone, random_prompt(backbone, shape, 2, draw), task)
            assert scores[f"random {draw} 2", Path(task).stem] == pytest.approx(alone, abs=1e-6)
    assert set(frame["attention"]) == {attention}


def test_the_files_hold_what_is_promised(prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ["transfer", "--backbone", str(tiny_roberta), "--prompts", str(prompts), "--tasks", ",".join(tasks)]
    command += ["--data.source", "local", "--output", str(output), "--accelerator", "cpu", "--random_prompts", "1"]
    assert main(command) == 0
    frame, matrix = pd.read_parquet(output / "results.parquet"), pd.read_csv(output / "matrix.csv", index_col=0)
    names = [Path(task).stem for task in tasks]
    assert matrix.index.tolist() == names
    assert matrix.columns.tolist() == [*names, "random_vocabulary", "random_uniform", "majority"]
    for target in names:
        for source in matrix.columns:
            mine = frame[(frame["task"] == target) & (frame["source"] == source)]["value"]
            assert len(mine) == (len(SEEDS) if source in names else 1)
            assert matrix.loc[target, source] == pytest.approx(mine.mean())
    assert set(frame["split"]) == {"test (official)"}
    assert set(frame["n"]) == {ROWS}
    assert frame[["low", "high"]].notna().all(axis=None)
    assert ((frame["low"] <= frame["value"] + 1e-9) & (frame["value"] <= frame["high"] + 1e-9)).all()
    own = frame[frame["source"] == frame["task"]].groupby("task")["relative"].mean()
    assert own.tolist() == pytest.approx([1, 1, 1])
    assert frame.set_index(["task", "kind"]).loc[("films", "majority"), "value"] == pytest.approx(20 / 30)
    for name in ("matrix.png", "matrix_clustered.png", "summary.png"):
        assert (output / name).stat().st_size > 10_000
    provenance = json.loads((output / "provenance.json").read_text())
    assert (provenance["command"], provenance["config"]["tasks"]) == ("transfer", tasks)
    assert {task: list(digests) for task, digests in provenance["data"].items()} == {name: ["test"] for name in names}
    assert main(["analyze", "matrix", str(output / "matrix.csv"), "--output", str(tmp_path / "analysis")]) == 0
    summary = pd.read_csv(tmp_path / "analysis" / "summary.csv")
    pd.testing.assert_frame_equal(summary, pd.read_csv(output / "summary.csv"))


def test_interrupted_and_resumed_equals_undisturbed(
    prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path
) -> None:
    whole = transfer(study(tiny_roberta, prompts, tasks, tmp_path / "whole"))
    total = len(tasks) * ROWS * (3 * len(SEEDS) + 2 * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "SAVE_SECONDS", 0.0)
        before = counted(patch, stop_after=25)
        with pytest.raises(KeyboardInterrupt):
            transfer(study(tiny_roberta, prompts, tasks, tmp_path / "out"))
    # The table already has the finished task.
    assert set(pd.read_parquet(tmp_path / "out" / "results.parquet")["task"]) == {"films"}
    assert 0 < sum(before) < total
    with pytest.MonkeyPatch.context() as patch:
        after = counted(patch)
        resumed = transfer(study(tiny_roberta, prompts, tasks, tmp_path / "out"))
    assert sum(before) + sum(after) == total
    pd.testing.assert_frame_equal(resumed, whole)
    with pytest.MonkeyPatch.context() as patch:
        assert counted(patch) == []
        pd.testing.assert_frame_equal(transfer(study(tiny_roberta, prompts, tasks, tmp_path / "out")), whole)
    # All processes that computed these answers are listed.
    assert len(json.loads((tmp_path / "out" / "provenance.json").read_text())["processes"]) == 3


def test_two_processes_do_not_write_one_matrix(
    prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path, occupied: Callable[..., Any]
) -> None:
    with occupied(tmp_path / "out"), pytest.raises(UserError, match="is at work in"):
        transfer(study(tiny_roberta, prompts, tasks, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_only_new_prompts_and_tasks_are_scored(
    prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer(study(tiny_roberta, prompts, tasks[:2], tmp_path / "out", random_prompts=0))
    save_prompt(prompts / "new.safetensors", backbone_of(tiny_roberta), "rooms", 7)
    # The same prompt under another name needs no scoring.
    Prompt.load(prompts / "films-0.safetensors").save(prompts / "films-again.safetensors")
    counts = counted(monkeypatch)
    frame = transfer(study(tiny_roberta, prompts, tasks, tmp_path / "out", random_prompts=0))
    assert sum(counts) == 2 * ROWS + 7 * ROWS
    assert frame["prompt"].nunique() == 8 + 1
    scores = frame.set_index(["prompt", "task"])["value"]
    assert scores["films-again"].tolist() == scores["films-0"].tolist()


@pytest.mark.slow
def test_killed_and_resumed_loses_nothing(
    prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    script = (
        "import sys, time; from prompt_transfer.studies import scoring; from prompt_transfer.cli import main\n"
        "scoring.SAVE_SECONDS = 0.0; original = scoring.collate\n"
        "scoring.collate = lambda *options: time.sleep(0.2) or original(*options)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = ["transfer", "--backbone", str(tiny_roberta), "--prompts", str(prompts), "--tasks", ",".join(tasks)]
    command += ["--data.source", "local", "--data.max_tokens", "600", "--output", str(output), "--accelerator", "cpu"]
    process = subprocess.Popen([sys.executable, "-c", script, *command], cwd=ROOT)
    limit = time.monotonic() + 150
    while not list((output / "answers").glob("rooms.*.npz")) and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    known = sum(int((~np.isnan(np.load(path)["values"])).sum()) for path in (output / "answers").glob("*.npz"))
    counts = counted(monkeypatch)
    frame = transfer(study(tiny_roberta, prompts, tasks, output))
    assert 0 < known < frame["n"].sum()
    assert known + sum(counts) == len(tasks) * ROWS * (3 * len(SEEDS) + 2 * 3)
    pd.testing.assert_frame_equal(frame, transfer(study(tiny_roberta, prompts, tasks, tmp_path / "whole")))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["devices", "torchrun"])
def test_two_processes_give_the_table_of_one(
    way: str, prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path
) -> None:
    one = transfer(study(tiny_roberta, prompts, tasks, tmp_path / "one"))
    output = tmp_path / "two"
    command = ["transfer", "--backbone", str(tiny_roberta), "--prompts", str(prompts), "--tasks", ",".join(tasks)]
    command += ["--data.source", "local", "--data.max_tokens", "600", "--output", str(output), "--accelerator", "cpu"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if way == "torchrun" else []
    command += ["--devices", "2"] if way == "devices" else []
    subprocess.run(
        [sys.executable, *launch, "-m", "prompt_transfer", *command], check=True, cwd=ROOT, timeout=170,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    pd.testing.assert_frame_equal(pd.read_parquet(output / "results.parquet"), one)
    assert sorted(path.name for path in (output / "answers").iterdir()) == ["films.0.npz", "pairs.0.npz", "rooms.0.npz"]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_tasks_that_write_are_scored_too(family: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "asking"
    folder.mkdir(parents=True)
    lines = [f"the {word} is good,{word}" for word in ("film", "man", "dog", "city", "day", "night")]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.csv").write_text("\n".join(["text,answer", *lines]) + "\n")
    task = tmp_path / "asking.yaml"
    task.write_text(
        "name: asking\ntype: qa\ncolumns: {text_a: text}\ntarget_column: answer\nmetric: squad_f1\n"
        "max_target_length: 3\nlocal: data/asking\n"
    )
    backbone = backbone_of(tiny(family))
    for seed in SEEDS:
        save_prompt(tmp_path / "prompts" / f"asking-{seed}.safetensors", backbone, "asking", seed)
    frame = transfer(study(tiny(family), tmp_path / "prompts", [str(task)], tmp_path / "out", random_prompts=1))
    scores = frame.set_index("prompt")["value"]
    for seed in SEEDS:
        prompt = Prompt.load(tmp_path / "prompts" / f"asking-{seed}.safetensors").embeddings
        assert scores[f"asking-{seed}"] == pytest.approx(score_alone(backbone, prompt, str(task)), abs=1e-6)
    # The lead of "the film is good" is "the", which SQuAD's normalisation removes.
    assert scores["lead"] == 0.0


def problem(case: str, prompts: Path, tasks: list[str], tiny: Callable[[str], Path]) -> dict[str, Any]:
    """Introduce one problem; return the study options that go with it."""
    backbone = backbone_of(tiny("roberta"))
    if case == "other backbone":
        save_prompt(prompts / "bert.safetensors", backbone_of(tiny("bert")), "films", 0)
    elif case == "one name":
        save_prompt(prompts / "deeper" / "films-0.safetensors", backbone, "films", 0)
    elif case == "empty folder":
        (prompts.parent / "empty").mkdir()
        return {"prompts": prompts.parent / "empty"}
    elif case == "damaged file":
        (prompts / "damaged.safetensors").write_bytes(b"x" * 50)
    elif case == "two modes":
        save_prompt(prompts / "s.safetensors", backbone_of(tiny("roberta"), "shared"), "films", 0)
    elif case == "no data":
        text = Path(tasks[2]).read_text()
        Path(tasks[2]).write_text(text.replace("data/pairs", "data/nowhere"))
    elif case == "unknown task":
        return {"tasks": [*tasks, "sst3"]}
    elif case == "no folder":
        return {"prompts": prompts / "nowhere"}
    elif case == "task twice":
        return {"tasks": [*tasks, tasks[0]]}
    elif case == "unwritable output":
        (prompts.parent / "file").write_text("")
        return {"output": prompts.parent / "file" / "out"}
    return {}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("other backbone", "does not fit"),
        ("one name", "two prompts have the name films-0"),
        ("empty folder", "no prompt file in"),
        ("no folder", "no such folder"),
        ("damaged file", "damaged.safetensors"),
        ("two modes", "--attention"),
        ("no data", "nowhere"),
        ("unknown task", "did you mean sst2"),
        ("task twice", "each once"),
        ("unwritable output", "cannot write"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(
    case: str, message: str, prompts: Path, tiny: Callable[[str], Path], tasks: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    options = {"backbone": tiny("roberta"), "prompts": prompts, "tasks": tasks, "output": tmp_path / "out"}
    options |= problem(case, prompts, tasks, tiny)
    monkeypatch.setattr(Scorer, "__init__", None)
    with pytest.raises(UserError, match=message):
        transfer(study(**options))
    assert not (tmp_path / "out").exists()


def test_scores_made_otherwise_are_not_mixed_in(
    prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path
) -> None:
    transfer(study(tiny_roberta, prompts, tasks, tmp_path / "out"))
    Path(tasks[0]).write_text(Path(tasks[0]).read_text().replace("dog", "cat"))
    with pytest.raises(UserError, match=r"scores of films that were made with other settings \(words\)"):
        transfer(study(tiny_roberta, prompts, tasks, tmp_path / "out"))


def test_prompts_of_one_mode_can_be_chosen(prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path) -> None:
    save_prompt(prompts / "alone.safetensors", backbone_of(tiny_roberta, "shared"), "films", 0)
    frame = transfer(study(tiny_roberta, prompts, tasks[:1], tmp_path / "out", attention="shared", random_prompts=0))
    assert frame["prompt"].tolist() == ["alone", "majority"]


def test_made_and_random_prompts_are_never_a_targets_own(
    prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path
) -> None:
    backbone = backbone_of(tiny_roberta)
    save_prompt(prompts / "negated.safetensors", backbone, "films", 5, arithmetic="scale(films, -1)")
    save_prompt(prompts / "moved.safetensors", backbone, "films", 6, projected="true")
    save_prompt(prompts / "drawn.safetensors", backbone, "", 7, random="true")
    frame = transfer(study(tiny_roberta, prompts, tasks[:1], tmp_path / "out", random_prompts=0))
    facts = frame.set_index("prompt")
    assert facts.loc[["negated", "moved", "drawn"], "kind"].tolist() == ["arithmetic", "projected", "random"]
    assert facts.loc[["negated", "moved", "drawn"], "source"].tolist() == ["negated", "moved", "random_drawn"]
    own = facts.loc[["films-0", "films-1"], "value"].mean()
    assert facts.loc["negated", "relative"] == pytest.approx(facts.loc["negated", "value"] / own)
