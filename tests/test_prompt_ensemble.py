"""PromptEnsemble: prompts trained together equal those trained alone (files, logs, checkpoints, early stopping)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from prompt_transfer.callbacks.convergence import ConvergenceSpeed
from prompt_transfer.callbacks.export import PromptExport
from prompt_transfer.callbacks.stopping import StopEach
from prompt_transfer.cli import main
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.prompt_ensemble import PromptEnsemble
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts.initializers import FromPrompt, Normal
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.reparameterizations import LowRank, ResidualMLP, Superposition
from prompt_transfer.utils.errors import UserError

P = 4


@pytest.fixture
def task(tmp_path: Path) -> str:
    """Write a task of 50 training rows, labelled by whether they contain `great` or `bad`."""
    folder = tmp_path / "toy"
    folder.mkdir()
    words = ["the", "film", "story", "man", "very", "one", "day", "time", "friend", "dog"]
    for split, count in (("train", 50), ("validation", 14), ("test", 15)):
        lines = ["text,label"]
        for row in range(count):
            lines.append(f"{' '.join(words[: 1 + row % 7])} {'great' if row % 2 else 'bad'},{row % 2}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "toy.yaml").write_text(
        "name: toy\ntype: sentiment\ncolumns: {text_a: text, text_b: null}\nlabel_column: label\n"
        "label_words: [terrible, great]\nmetric: accuracy\nlocal: toy\n"
    )
    return str(tmp_path / "toy.yaml")


def train(
    module: PromptTuning, task: str, folder: Path, *, steps: int = 6, resume: str | None = None, seed: int = 7,
    max_tokens: int | None = None, patience: int | None = None, **options: Any,
) -> L.Trainer:  # fmt: skip
    L.seed_everything(seed)
    data = TaskDataModule(
        task, "local", batch_size=8, max_tokens=max_tokens, eval_batch_size=6, cache_dir=str(folder.parent / "cache")
    )
    callbacks = [
        PromptExport(folder / "prompt.safetensors", {"seed": str(seed)}),
        ConvergenceSpeed(folder / "convergence.csv", True),
        *([StopEach(patience)] if patience else []),
        ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}"),
    ]
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=-1, max_steps=steps, check_val_every_n_epoch=None, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False, default_root_dir=folder,
        callbacks=callbacks, **{"val_check_interval": 3, "logger": False, **options},
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer


SAME = {"init": Normal(0.5), "prompt_length": P, "warmup_steps": 2, "schedule": "cosine"}


@pytest.mark.parametrize(
    ("family", "attention", "clip"),
    [("roberta", "full", 0.05), ("roberta", "shared", None), ("gpt2", "full", 0.05), ("t5", "shared", 0.05)],
)
def test_together_equals_alone(
    tiny: Callable[[str], Path], task: str, tmp_path: Path, family: str, attention: str, clip: float | None
) -> None:
    backbone, seeds, rates = str(tiny(family)), [3, 11], [0.1, 0.01]
    same = {**SAME, "attention": attention}
    together = PromptEnsemble(backbone=backbone, seeds=seeds, learning_rates=rates, **same)
    assert together.names == ["seed3-lr0.1", "seed3-lr0.01", "seed11-lr0.1", "seed11-lr0.01"]
    train(together, task, tmp_path / "together", gradient_clip_val=clip)
    log = pd.read_csv(tmp_path / "together" / "convergence.csv").set_index("prompt")
    for name in together.files:
        seed, rate = (float(part.strip("sedlr")) for part in name.split("-")[1:])
        alone = PromptTuning(backbone, learning_rate=rate, **same)
        folder = tmp_path / name
        train(alone, task, folder, seed=int(seed), gradient_clip_val=clip)
        torch.testing.assert_close(
            together.prompt(name).embeddings, alone.prompt().embeddings, atol=1e-5, rtol=0, msg=name
        )
        assert not torch.equal(together.prompt(name).embeddings, together.prompt(name).initial)
        own, other = (Prompt.load(path) for path in (tmp_path / "together" / f"{name}.safetensors", folder))
        assert {key: own.metadata[key] for key in ("seed", "steps", "score", "init", "learning_rate", "task")} == {
            key: other.metadata[key] for key in ("seed", "steps", "score", "init", "learning_rate", "task")
        }
        assert own.initial is not None
        assert other.initial is not None
        assert torch.equal(own.initial, other.initial)
        curve = pd.read_csv(folder / "convergence.csv")
        assert log.loc[name]["value"].tolist() == curve["value"].tolist()
    best = max((Prompt.load(tmp_path / "together" / f"{name}.safetensors") for name in together.files), key=score)
    assert score(Prompt.load(tmp_path / "together")) == score(best)


def score(prompt: Prompt) -> float:
    return float(prompt.metadata["score"])


def test_each_gradient_is_clipped_by_itself(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    # AdamW is nearly invariant to gradient scale, so use SGD: a step of rate 1 is as long as the clipped gradient.
    module = PromptEnsemble(
        seeds=[3, 11], backbone=str(tiny_roberta), prompt_length=P, init=Normal(0.5), schedule="constant",
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
    )  # fmt: skip
    train(module, task, tmp_path / "run", steps=1, val_check_interval=1, gradient_clip_val=1e-3)
    for name in module.files:
        prompt = module.prompt(name)
        assert prompt.initial is not None
        assert float((prompt.embeddings - prompt.initial).norm()) == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("reparameterization", [LowRank(2), ResidualMLP(3), Superposition(8, top_k=0)])
def test_every_reparameterization(task: str, tiny_roberta: Path, tmp_path: Path, reparameterization: Any) -> None:
    same = {**SAME, "learning_rate": 0.05, "reparameterization": reparameterization, "backbone": str(tiny_roberta)}
    together = PromptEnsemble(seeds=[1, 2], **same)
    train(together, task, tmp_path / "together", steps=3)
    assert not list(together.reparameterization.parameters())
    alone = PromptTuning(**same)
    train(alone, task, tmp_path / "alone", steps=3, seed=2)
    own = together.prompt("prompt-seed2").embeddings
    torch.testing.assert_close(own, alone.prompt().embeddings, atol=1e-5, rtol=0)
    # Members are copies and share nothing.
    assert not torch.equal(own, together.prompt("prompt-seed1").embeddings)


def test_memory_limits_change_nothing(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    options = {**SAME, "backbone": str(tiny_roberta), "seeds": [0, 1, 2]}
    free = PromptEnsemble(**options)
    train(free, task, tmp_path / "free")
    found = []
    for number, limits in enumerate(({"prompts_at_once": 2}, {})):
        tight = PromptEnsemble(**options, **limits)
        shapes = []
        original = tight.repeated

        def seen(batch: Any, times: int, original: Any = original, shapes: Any = shapes) -> Any:
            shapes.append((len(batch["ids"]), times))
            return original(batch, times)

        tight.repeated = seen  # type: ignore[method-assign]
        train(tight, task, tmp_path / str(number), max_tokens=None if limits else 60)
        for name in free.files:
            torch.testing.assert_close(tight.prompt(name).embeddings, free.prompt(name).embeddings, atol=1e-5, rtol=0)
        found.append({times for _, times in shapes})
    assert found[0] == {1, 2}
    # 60 positions fit one prompt with the longest texts, and all prompts with one short text.
    assert 1 in found[1]


def test_only_what_is_trained_is_saved_and_a_resumed_run_is_the_same(
    task: str, tiny_roberta: Path, tmp_path: Path
) -> None:
    options = {**SAME, "backbone": str(tiny_roberta), "seeds": [0, 1]}
    whole = PromptEnsemble(**options)
    before = {name: tensor.clone() for name, tensor in whole.backbone.state_dict().items()}
    train(whole, task, tmp_path / "whole")
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.backbone.state_dict().items())
    state = torch.load(tmp_path / "whole" / "step=4.ckpt", weights_only=True)
    assert set(state["state_dict"]) == {"initial_prompt", "members.0.prompt", "members.1.prompt"}
    assert state["state_dict"]["initial_prompt"].shape == (2, P, 32)
    rest = PromptEnsemble(**options)
    train(rest, task, tmp_path / "rest", seed=99, resume=str(tmp_path / "whole" / "step=4.ckpt"))
    for name in whole.files:
        assert torch.equal(rest.prompt(name).embeddings, whole.prompt(name).embeddings)
    other = PromptEnsemble(**{**options, "seeds": [0, 2]})
    with pytest.raises(UserError, match="trains the prompts seed0, seed1, the options name seed0, seed2"):
        train(other, task, tmp_path / "other", resume=str(tmp_path / "whole" / "step=4.ckpt"))


class Scripted(PromptEnsemble):
    """An ensemble whose first prompt never improves, while the others always do."""

    def named_scores(self, logged: Any, split: str) -> dict[str, dict[str, float]]:
        return {self.files[number]: {"score": float(number * self.global_step)} for number in self.evaluated}


def test_a_stopped_prompt_costs_nothing_and_stays_stopped(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    options = {**SAME, "backbone": str(tiny_roberta), "seeds": [5, 6], "learning_rate": 0.3}
    run: dict[str, Any] = {"steps": 8, "val_check_interval": 2, "patience": 2}
    module = Scripted(**options)
    train(module, task, tmp_path / "run", **run)
    log = pd.read_csv(tmp_path / "run" / "convergence.csv")
    assert log[log["prompt"] == "prompt-seed5"]["step"].tolist() == [0, 2, 4]
    assert log[log["prompt"] == "prompt-seed6"]["step"].tolist() == [0, 2, 4, 6, 8]
    assert module.active == [1]
    checkpoint = torch.load(tmp_path / "run" / "step=5.ckpt", weights_only=True)
    assert checkpoint["active"] == [1]
    # AdamW's momentum would keep moving it.
    assert torch.equal(module.prompt("prompt-seed5").embeddings, checkpoint["state_dict"]["members.0.prompt"])
    resumed = Scripted(**options)
    train(resumed, task, tmp_path / "resumed", resume=str(tmp_path / "run" / "step=5.ckpt"), **run)
    assert all(torch.equal(resumed.prompt(name).embeddings, module.prompt(name).embeddings) for name in module.files)
    alone = Scripted(**{**options, "seeds": [5]})
    trainer = train(alone, task, tmp_path / "alone", **run)
    assert trainer.global_step == 4


def test_a_prompt_that_breaks_does_not_break_the_others(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    same = {**SAME, "backbone": str(tiny_roberta), "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1)}
    alone = PromptTuning(**same)
    train(alone, task, tmp_path / "alone", seed=1)
    module = PromptEnsemble(seeds=[0, 1], **same)
    module.members[0].register_forward_hook(
        lambda member, _, prompt: prompt * float("nan") if module.global_step >= 4 else prompt
    )
    with pytest.warns(
        UserWarning, match=r"step 5: the loss of the prompt seed0 is NaN or Inf \(training rows .* it is stopped"
    ):
        train(module, task, tmp_path / "run")
    assert module.active == [1]
    ours = module.prompt("prompt-seed1").embeddings
    torch.testing.assert_close(ours, alone.prompt().embeddings, atol=1e-5, rtol=0)
    assert Prompt.load(tmp_path / "run" / "prompt-seed0.safetensors").metadata["steps"] in ("0", "3")


def test_two_processes_equal_one(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    options = {**SAME, "backbone": str(tiny_roberta), "seeds": [5, 6], "learning_rate": 0.1}
    run: dict[str, Any] = {"steps": 6, "val_check_interval": 2, "patience": 2}
    train(Scripted(**options), task, tmp_path / "one", **run)
    train(Scripted(**options), task, tmp_path / "two", devices=2, strategy="ddp_fork", **run)
    logs = [pd.read_csv(tmp_path / name / "convergence.csv").drop(columns="seconds") for name in ("one", "two")]
    pd.testing.assert_frame_equal(*logs)
    for seed in (5, 6):
        one, two = (Prompt.load(tmp_path / name / f"prompt-seed{seed}.safetensors") for name in ("one", "two"))
        torch.testing.assert_close(two.embeddings, one.embeddings, atol=1e-5, rtol=0)


def test_seeds_of_a_transferred_prompt(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    source = PromptEnsemble(backbone=str(tiny_roberta), seeds=[0, 1], **SAME)
    train(source, task, tmp_path / "source", steps=3)
    same = {"backbone": str(tiny_roberta), "prompt_length": P, "seeds": [0, 1]}
    path = str(tmp_path / "source" / "prompt-seed{seed}.safetensors")
    module = PromptEnsemble(init=FromPrompt(path), **same)
    train(module, task, tmp_path / "run", steps=3)
    for name in module.files:
        prompt = Prompt.load(tmp_path / "run" / f"{name}.safetensors")
        found = Prompt.load(tmp_path / "source" / f"{name}.safetensors")
        assert prompt.initial is not None
        assert torch.equal(prompt.initial, found.embeddings)
        assert prompt.metadata["source_prompt"] == str(found.path)
    with pytest.raises(UserError, match="seed0 and seed1 would start equal"):
        train(PromptEnsemble(init=FromPrompt(path.format(seed=0)), **same), task, tmp_path / "equal")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "several prompts"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"seeds": [-1]}, "different numbers"),
        ({"learning_rates": [0.1, 0.0]}, "above 0"),
        ({"learning_rates": [0.1], "learning_rate": 0.1}, "excludes --model.learning_rate"),
        ({"seeds": [1], "prompts_at_once": 0}, "prompts_at_once is 0: give 1 or more"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        PromptEnsemble(**options)


def test_fit_of_several_seeds(
    task: str, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "run"
    base = ["fit", "--model.backbone", str(tiny_roberta), "--model.prompt_length", "4", "--data.task", task]
    base += ["--data.source", "local", "--trainer.val_check_interval", "2", "--output", str(folder)]
    assert main([*base, "--model.seeds", "[0,1,2]", "--trainer.max_steps", "4", "--early_stopping", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    names = {path.name for path in folder.glob("*.safetensors")}
    assert names == {"prompt.safetensors", *(f"prompt-seed{seed}.safetensors" for seed in range(3))}
    rows = pd.read_csv(folder / "results.csv")
    assert rows["seed"].tolist() == [0, 1, 2]
    assert score(Prompt.load(folder)) == rows["value"].max()
    assert main(["fit", "--resume", "--output", str(folder), "--trainer.max_steps", "6"]) == 0
    assert set(pd.read_csv(folder / "convergence.csv")["step"]) == {2, 4, 6}
    assert main(["test", "--prompt", str(folder / "prompt-seed1.safetensors")]) == 0
    assert main([*base, "--overwrite", "--trainer.max_steps", "2"]) == 0
    assert {path.name for path in folder.glob("*.safetensors")} == {"prompt.safetensors"}
    capsys.readouterr()
    assert main(["test", "--prompt", str(folder), "--model.seeds", "[0]"]) == 2
    assert "are options of fit: leave them out for" in capsys.readouterr().err
    assert main(["fit", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--model.seeds" in shown
    assert "--model.prompt_length" in shown
