"""CrossModelProjector: gradients reach the projector only; held-out tasks; runs, files and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
import yaml
from test_cli import error_of
from tiny_models import prompt_facts
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.cross_model_projector import CrossModelProjector
from prompt_transfer.modules.objectives import Classification
from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.projectors.projector import MLP, Linear, TokenMLP, TrainedProjector
from prompt_transfer.projectors.task_vector import TaskVector
from prompt_transfer.prompts.prompt import Prompt

Tiny = Callable[[str], Path]
P = 4
TASKS = ("films", "rooms", "pairs")
SEEDS = (0, 1)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    """Write three tasks of 24 / 8 / 8 rows; two share a type."""
    for number, name in enumerate(TASKS):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for split, count in (("train", 24), ("validation", 8), ("test", 8)):
            lines = [f"the {'very ' * (i % 3)}{('bad', 'good')[i % 2]} film,{i % 2}" for i in range(count)]
            (folder / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
        (tmp_path / f"{name}.yaml").write_text(
            f"name: {name}\ntype: {('sentiment', 'sentiment', 'nli')[number]}\n"
            "columns: {text_a: text, text_b: null}\n"
            f"label_column: label\nlabel_words: [{('terrible, great', 'bad, good', 'no, yes')[number]}]\n"
            f"metric: accuracy\nlocal: data/{name}\n"
        )
    return [str(tmp_path / f"{name}.yaml") for name in TASKS]


def save_prompts(
    folder: Path, model: Path, length: int = P, tasks: tuple[str, ...] = TASKS, initial: Tensor | None = None
) -> Path:
    """Save a prompt for each task and seed; those of one task are close to each other."""
    backbone = FrozenBackbone(str(model))
    facts = prompt_facts(backbone, head="lm")
    for task in tasks:
        centre = torch.randn(length, backbone.hidden_size, generator=torch.Generator().manual_seed(ord(task[0])))
        for seed in SEEDS:
            noise = torch.randn(centre.shape, generator=torch.Generator().manual_seed(seed))
            Prompt(centre + 0.1 * noise, {**facts, "task": task, "seed": str(seed)}, initial).save(
                folder / f"{task}-{seed}.safetensors"
            )
    return folder


class Gradients(L.Callback):
    """A callback that records the norm of every gradient in the first step."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.found:
            self.found = {
                name: float("nan") if p.grad is None else float(p.grad.norm())
                for name, p in pl_module.named_parameters()
                if p.requires_grad
            }


def train(module: CrossModelProjector, tasks: list[str], steps: int = 2, **data: Any) -> L.Trainer:
    L.seed_everything(3)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=-1, max_steps=steps, val_check_interval=steps, check_val_every_n_epoch=None,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        logger=False, enable_checkpointing=False, callbacks=[Gradients()],
    )  # fmt: skip
    trainer.fit(module, datamodule=TaskDataModule(tasks, "local", batch_size=12, **data))
    return trainer


def gradients(trainer: L.Trainer) -> dict[str, float]:
    return next(callback.found for callback in trainer.callbacks if isinstance(callback, Gradients))


@pytest.mark.parametrize(
    ("family", "attention", "projector"),
    [
        ("electra", "full", MLP(6, norm_weight=0.2)),
        ("electra", "shared", TokenMLP(5, start="least_squares")),
        ("gpt2", "full", MLP(6, "tanh", standardize=True)),
        ("gpt2", "full", Linear()),
        ("t5", "full", TokenMLP(5, skip=False)),
        ("t5", "shared", MLP(6, layer_norm=False)),
        ("gpt2", "shared", TaskVector(7)),
    ],
)
def test_gradients_reach_the_projector_and_nothing_else_changes(
    family: str, attention: str, projector: TrainedProjector, tiny: Tiny, tasks: list[str], tmp_path: Path
) -> None:
    source, target = tiny("roberta"), tiny(family)
    prompts = save_prompts(tmp_path / "source", source, initial=torch.ones(P, 32))
    module = CrossModelProjector(str(prompts), projector, backbone=str(target), attention=attention)
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    given = module.source_prompts.clone()
    files = {path: path.read_bytes() for path in prompts.iterdir()}
    trainer = train(module, tasks)
    found = gradients(trainer)
    assert set(found) == {f"projector.{name}" for name, _ in module.projector.named_parameters()}
    assert all(norm > 0 for norm in found.values()), found
    assert all(torch.equal(value, before[name]) for name, value in module.backbone.state_dict().items())
    assert torch.equal(module.source_prompts, given)
    assert all(path.read_bytes() == content for path, content in files.items())
    assert all(name.startswith("projector.") for name in module.state_dict())
    width = 24 if family == "electra" else 32
    assert module.current_prompt().shape == (6, P, width)


def test_each_example_stands_behind_the_prompt_of_its_own_task(tiny: Tiny, tasks: list[str], tmp_path: Path) -> None:
    roberta = tiny("roberta")
    prompts = save_prompts(tmp_path / "source", roberta)
    module = CrossModelProjector(str(prompts), Linear(), backbone=str(roberta), learning_rate=1e-9)
    train(module, tasks, steps=1)
    with torch.no_grad():
        module.projector.weight.copy_(torch.eye(32))
        module.projector.bias.zero_()
    data = module.trainer.datamodule
    batch = next(iter(data.train_dataloader()))["micro_batches"][0]
    found = module.summed_losses(batch, [0])
    expected = torch.zeros(())
    for row in range(len(batch["ids"])):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        # After one step, rows with an even number use the second seed.
        seed = (int(batch["ids"][row]) % 2**32 + 1) % 2
        task = TASKS[int(batch["task_ids"][row])]
        prompt = Prompt.load(prompts / f"{task}-{seed}.safetensors").embeddings
        expected = expected + module.objective.losses(prompt, one).sum()
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-5)


def test_held_out_tasks_select_and_are_not_trained_on(tiny: Tiny, tasks: list[str], tmp_path: Path) -> None:
    prompts = save_prompts(tmp_path / "source", tiny("roberta"))
    module = CrossModelProjector(str(prompts), Linear(), backbone=str(tiny("gpt2")), variance=1.0, contrastive=0.1)
    trainer = train(module, tasks, held_out=["rooms"])
    data = trainer.datamodule
    assert data.num_examples("train") == 48
    seen = {
        int(task) for batch in data.train_dataloader() for part in batch["micro_batches"] for task in part["task_ids"]
    }
    assert seen == {0, 2}
    assert module.trained_numbers.tolist() == [n for n, p in enumerate(module.sources.prompts)
                                               if p.metadata["task"] != "rooms"]  # fmt: skip
    logged = trainer.callback_metrics
    assert logged["validation/score"] == logged["validation/rooms/accuracy"]
    assert {"validation/films/accuracy", "validation/cosine"} <= set(logged)
    file = module.projector_file()
    assert (file.metadata["tasks"], file.metadata["held_out"]) == ("films,pairs", "rooms")
    assert file.source.prompt_length is None


def test_distance_alone_needs_no_text_and_finds_the_map(tiny: Tiny, tasks: list[str], tmp_path: Path) -> None:
    source, target = save_prompts(tmp_path / "source", tiny("roberta")), tmp_path / "target"
    backbone = FrozenBackbone(str(tiny("electra")))
    facts = {"backbone": backbone.id, "fingerprint": backbone.fingerprint, "layout": "prefix", "attention": "full"}
    matrix = torch.randn(32, 24, generator=torch.Generator().manual_seed(5)) / 6
    for path in source.iterdir():
        prompt = Prompt.load(path)
        own = {key: prompt.metadata[key] for key in ("task", "seed")}
        Prompt(prompt.embeddings @ matrix, {**facts, **own}).save(target / path.name)
    module = CrossModelProjector(
        str(source), Linear(), "distance", str(target), backbone=str(tiny("electra")), learning_rate=0.05
    )
    train(module, tasks, steps=60)
    with torch.no_grad():
        left = module.terms(module.projector(module.source_prompts[module.trained_numbers]))
    assert set(left) == {"distance"}
    assert float(left["distance"]) < 0.05


@pytest.mark.parametrize("across", [False, True])
def test_distilling_looks_at_no_label(across: bool, tiny: Tiny, tasks: list[str], tmp_path: Path) -> None:
    prompts = save_prompts(tmp_path / "source", tiny("roberta"))
    found = []
    for flipped in (False, True):
        if flipped:
            for path in (tmp_path / "data").rglob("*.csv"):
                swap = str.maketrans("01", "10")
                path.write_text(path.read_text().translate(swap))
        module = CrossModelProjector(
            str(prompts), Linear(), "distill", backbone=str(tiny("gpt2")), select="agreement", learning_rate=0.01,
            distill_across=across,
        )  # fmt: skip
        trainer = train(module, tasks, steps=4, held_out=["rooms"])
        found.append((module.projector.weight.detach().clone(), trainer.callback_metrics))
    assert torch.equal(found[0][0], found[1][0])
    for (_, logged), (_, other) in (found, found[::-1]):
        assert logged["validation/score"] == logged["validation/agreement"] == other["validation/score"]
        assert logged["validation/labelled"] == pytest.approx(1 - float(other["validation/labelled"]), abs=1e-6)


def test_across_each_row_is_answered_behind_every_prompt_with_the_words_of_its_task(
    tiny: Tiny, tasks: list[str], tmp_path: Path
) -> None:
    roberta = tiny("roberta")
    prompts = save_prompts(tmp_path / "source", roberta)
    module = CrossModelProjector(
        str(prompts), Linear(), "distill", backbone=str(tiny("gpt2")), distill_across=True, learning_rate=1e-9
    )
    train(module, tasks, steps=1, held_out=["rooms"])
    # Training uses the held-out task's prompts but none of its rows.
    assert sorted(module.trained_numbers.tolist()) == list(range(6))
    assert module.teacher is not None
    table, its = module.teacher.train, FrozenBackbone(str(roberta))
    assert table.values.shape[:2] == (48, 6)
    data = TaskDataModule(tasks, "local", batch_size=12).connect(its.encoder(P))
    data.setup("fit")
    source = Classification(its, data.tasks)
    batch = next(iter(data.train_dataloader()))["micro_batches"][0]
    kept = [row for row in range(len(batch["ids"])) if int(batch["task_ids"][row]) != 1]
    assert kept
    for slot, number in enumerate(module.trained_numbers.tolist()):
        asked = torch.full_like(batch["task_ids"], int(module.prompt_tasks[number]))
        with torch.no_grad():
            expected = source.logits(module.sources.prompts[number].embeddings, {**batch, "task_ids": asked})[kept]
        found = table.look(batch["ids"][kept], torch.full((len(kept),), slot))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_source_that_is_the_target_is_agreed_with(tiny: Tiny, tasks: list[str], tmp_path: Path) -> None:
    roberta = str(tiny("roberta"))
    prompts = save_prompts(tmp_path / "source", tiny("roberta"))
    module = CrossModelProjector(str(prompts), Linear("least_squares"), "distill", backbone=roberta,
                                 select="agreement", learning_rate=1e-9)  # fmt: skip
    trainer = train(module, tasks, steps=1)
    assert float(trainer.callback_metrics["validation/agreement"]) == 1.0
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("family", ["roberta", "gpt2", "t5"])
def test_without_a_prompt_a_backbone_answers_alike_in_both_modes(family: str, tiny: Tiny) -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 1]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    found = []
    for attention in ("full", "shared"):
        backbone = FrozenBackbone(str(tiny(family)), attention=attention)
        found.append(backbone(torch.zeros(0, 32), batch, torch.tensor([5, 6, 7])))
    assert torch.equal(*found)
    assert torch.isfinite(found[0]).all()


# Runs --------------------------------------------------------------------------------------------------------------


def command(source: Path, target: Path, tasks: list[str], output: Path, *more: str) -> list[str]:
    return [
        "fit", "--model", "CrossModelProjector", "--model.prompts", str(source), "--model.backbone", str(target),
        "--data.task", json.dumps(tasks), "--data.source", "local", "--data.batch_size", "8", "--model.schedule",
        "constant", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
        "--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--output", str(output), *more,
    ]  # fmt: skip


def test_fit_leaves_a_projector_that_goes_on_where_it_stopped(
    tiny: Tiny, tasks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = save_prompts(tmp_path / "source", tiny("roberta")), tiny("gpt2")
    options = ["--model.projector", "TokenMLP", "--model.projector.bottleneck", "5", "--data.held_out", '["rooms"]']
    whole = command(source, target, tasks, tmp_path / "whole", *options, "--seed_everything", "5")
    assert main(whole) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "whole")
    file = ProjectorFile.load(tmp_path / "whole")
    assert file.kind == "TokenMLP"
    assert file.projector.options()["bottleneck"] == 5
    facts = {"objective": "task_tuning", "tasks": "films,pairs", "held_out": "rooms", "seed": "5", "train_rows": "48"}
    assert {key: file.metadata[key] for key in facts} == facts
    assert yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["model"]["prompts"] == [str(source)]
    table = pd.read_csv(tmp_path / "whole" / "results.csv")
    assert table.set_index("task")["held_out"].to_dict() == {"films": False, "rooms": True, "pairs": False}
    assert float(file.metadata["score"]) == pytest.approx(table.set_index("task").loc["rooms", "value"])

    parts = [str(tmp_path / "parts") if part == str(tmp_path / "whole") else part for part in whole]
    parts[parts.index("--trainer.max_steps") + 1] = "2"
    assert main(parts) == 0
    assert main(["fit", "--output", str(tmp_path / "parts"), "--resume", "--trainer.max_steps", "4"]) == 0
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    ]
    assert set(states[0]["state_dict"]) == {f"projector.{name}" for name in file.projector.state_dict()}
    for name, value in states[0]["state_dict"].items():
        torch.testing.assert_close(states[1]["state_dict"][name], value, atol=1e-6, rtol=0)
    changed = ["fit", "--output", str(tmp_path / "parts"), "--resume", "--trainer.max_steps", "6", "--model.objective"]
    assert "--model.objective was task_tuning, not distill" in error_of(capsys, main([*changed, "distill"]))
    # Projected prompts are used like any others.
    one = str(tmp_path / "one.safetensors")
    projected = ["prompts", "project", str(source / "films-0.safetensors"), "--projector", str(tmp_path / "whole")]
    assert main([*projected, "--output", one]) == 0
    assert main(["test", "--prompt", one, "--data.task", tasks[0], "--data.source", "local"]) == 0
    start = ["fit", "--model.backbone", str(target), "--data.task", tasks[0], "--data.source", "local", "--output",
             str(tmp_path / "tuned"), "--model.prompt_length", str(P), "--model.init", "FromPrompt",
             "--model.init.prompt", one, "--trainer.max_steps", "2"]  # fmt: skip
    assert main(start) == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--model.objective distance", "objective distance needs the target's own prompts of the same tasks"),
        ("--model.objective learn", "unknown objective 'learn': choose one of task_tuning, distance, both, distill"),
        ("--model.objective both --model.target_prompts {films}", "no target prompt was trained on rooms, pairs"),
        ("--model.prompts {films_source}", "no source prompt was trained on rooms, pairs: there are prompts for films"),
        ("--model.prompts {nothing}", "no such prompt file"),
        (
            "--model.projector Linear --model.prompt_length 9",
            "Linear maps token by token, and the source prompts have 4 tokens",
        ),
        ("--model.projector Lin", "cannot make --model.projector Lin: choose one of Linear, MLP, TaskVector, TokenMLP"),
        ("--model.projector TaskVector", "films-0.safetensors holds none"),
        ("--model.distill_across true", "distill_across belongs to the objective distill, this one is task_tuning"),
        ("--model.contrastive -1", "contrastive is -1.0: a weight is 0 or more"),
        ("--data.held_out [sst2]", "sst2 is none of --data.task"),
        ("--data.held_out {all}", "no task is left to train on"),
        (
            "--model.objective distance --model.target_prompts {long}",
            "has 6 prompt tokens and the projections have 4, but a distance needs equal lengths",
        ),
        ("--model.objective distance --model.target_prompts {source}", "does not fit"),
    ],
)
def test_mistakes_are_told_in_a_line(
    options: str, expected: str, tiny: Tiny, tasks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = save_prompts(tmp_path / "source", tiny("roberta")), tiny("electra")
    places = {
        "films": save_prompts(tmp_path / "films", target, tasks=("films",)),
        "films_source": save_prompts(tmp_path / "films_source", tiny("roberta"), tasks=("films",)),
        "long": save_prompts(tmp_path / "long", target, length=6),
        "source": source,
        "nothing": tmp_path / "nothing",
        "all": json.dumps(tasks).replace(" ", ""),
    }
    more = [part.format(**places) for part in options.split()]
    whole = command(source, target, tasks, tmp_path / "run")
    for option in set(more[::2]) & set(whole):
        place = whole.index(option)
        del whole[place : place + 2]
    error = error_of(capsys, main([*whole, *more]))
    assert expected in error
    assert not (tmp_path / "run").exists()


def test_a_projector_is_not_tested_itself(tiny: Tiny, tasks: list[str], tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    prompts = save_prompts(tmp_path / "source", tiny("roberta"))
    prompt = str(prompts / "films-0.safetensors")
    error = error_of(capsys, main(["test", "--model", "CrossModelProjector", "--prompt", prompt]))
    assert "prompts project PROMPT --projector FILE" in error
