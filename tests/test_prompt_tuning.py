"""PromptTuning: trained parameters, saved files, and a killed and resumed run that equals an uninterrupted one."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from prompt_transfer.backbones.config import BackboneConfig
from prompt_transfer.callbacks.export import PromptExport
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.cross_model_projector import CrossModelProjector
from prompt_transfer.modules.prompt_ensemble import PromptEnsemble
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.modules.trained import TrainedModule
from prompt_transfer.prompts.initializers import Normal
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.reparameterizations import LowRank, Reparameterization
from prompt_transfer.utils.errors import UserError

P, H = 4, 16


@pytest.fixture
def task(tmp_path: Path) -> str:
    """Write a task of 50 training rows, labelled by whether they contain `great` or `bad`."""
    folder = tmp_path / "toy"
    folder.mkdir()
    words = ["the", "film", "story", "man", "very", "one", "day", "time", "friend", "dog"]
    for split, count in (("train", 50), ("validation", 14), ("test", 15)):
        lines = ["text,label"]
        for row in range(count):
            label = row % 2
            rest = " ".join(words[: 1 + row % 7])
            lines.append(f"{rest} {'great' if label else 'bad'},{label}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "toy.yaml").write_text(
        "name: toy\ntype: sentiment\ncolumns: {text_a: text, text_b: null}\nlabel_column: label\n"
        "label_words: [terrible, great]\nmetric: accuracy\nlocal: toy\n"
    )
    return str(tmp_path / "toy.yaml")


def make(task: str, backbone: Path, tmp_path: Path, **options: Any) -> tuple[PromptTuning, TaskDataModule]:
    workers, max_tokens = options.pop("num_workers", 0), options.pop("max_tokens", None)
    # Not `torch.manual_seed`: Lightning seeds its processes from this call.
    L.seed_everything(7)
    module = PromptTuning(str(backbone), prompt_length=P, **{"init": Normal(0.5), **options})
    data = TaskDataModule(
        task, "local", batch_size=8, num_workers=workers, max_tokens=max_tokens, cache_dir=str(tmp_path / "cache")
    )
    return module, data


class Recorder(Callback):
    """A callback that records the example ids of every training batch."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.ids.append([int(i) for micro in batch["micro_batches"] for i in micro["ids"]])


def train(
    module: PromptTuning, data: TaskDataModule, folder: Path, steps: int, resume: str | None = None, **trainer: Any
) -> tuple[L.Trainer, Recorder]:
    recorder = Recorder()
    checkpoint = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    export = PromptExport(folder / "prompt.safetensors", {"seed": "7"})
    made = L.Trainer(
        accelerator="cpu", max_epochs=-1, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, check_val_every_n_epoch=None, use_distributed_sampler=False, default_root_dir=folder,
        callbacks=[recorder, export, checkpoint],
        **{"max_steps": steps, "val_check_interval": 5, "logger": False, **trainer},
    )  # fmt: skip
    made.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return made, recorder


@pytest.mark.parametrize("reparameterization", [None, LowRank(2)])
def test_only_the_prompt_is_trained_and_saved(
    task: str, tiny_roberta: Path, tmp_path: Path, reparameterization: Reparameterization | None
) -> None:
    module, data = make(task, tiny_roberta, tmp_path, reparameterization=reparameterization)
    before = {name: tensor.clone() for name, tensor in module.backbone.state_dict().items()}
    train(module, data, tmp_path / "run", 3)
    width = module.backbone.hidden_size
    trained = [p for p in module.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == (P * width if reparameterization is None else 2 * (P + width))
    after = module.backbone.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    state = torch.load(tmp_path / "run" / "step=3.ckpt", weights_only=True)
    expected = {"initial_prompt"} | {f"reparameterization.{n}" for n in module.reparameterization.state_dict()}
    assert set(state["state_dict"]) == expected
    assert (tmp_path / "run" / "step=3.ckpt").stat().st_size < 60_000
    assert not torch.equal(module.prompt().embeddings, module.initial_prompt)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("killed_at", [3, 7])
def test_resumed_run_equals_an_undisturbed_one(
    task: str, tiny_roberta: Path, tmp_path: Path, num_workers: int, killed_at: int
) -> None:
    # 50 rows in batches of 8: an epoch has 7 batches, so one kill is inside an epoch and one at its end.
    module, data = make(task, tiny_roberta, tmp_path, num_workers=num_workers)
    _, whole = train(module, data, tmp_path / "whole", 12)
    expected = module.prompt().embeddings
    resumed, data = make(task, tiny_roberta, tmp_path, num_workers=num_workers)
    torch.manual_seed(99)
    _, rest = train(resumed, data, tmp_path / "rest", 12, resume=str(tmp_path / "whole" / f"step={killed_at}.ckpt"))
    assert rest.ids == whole.ids[killed_at:]
    assert torch.equal(resumed.prompt().embeddings, expected)
    if killed_at < 5:  # a later kill may follow the best prompt, which then stays in the killed run's folder
        ends = [Prompt.load(tmp_path / name / "prompt.safetensors") for name in ("whole", "rest")]
        assert torch.equal(ends[0].embeddings, ends[1].embeddings)
        assert ends[0].metadata["score"] == ends[1].metadata["score"]


def test_a_resumed_run_goes_on_with_the_same_random_numbers(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    """Dropout draws from the generator that the checkpoint stores."""
    module, data = make(task, tiny_roberta, tmp_path, backbone_dropout=True)
    train(module, data, tmp_path / "whole", 5)
    checkpoint = torch.load(tmp_path / "whole" / "step=3.ckpt", weights_only=True)
    torch.save(checkpoint | {"rng": torch.Generator().manual_seed(99).get_state()}, tmp_path / "whole" / "other.ckpt")
    for name, same in (("step=3", True), ("other", False)):
        resumed, data = make(task, tiny_roberta, tmp_path, backbone_dropout=True)
        torch.manual_seed(98)
        train(resumed, data, tmp_path / f"rest-{name}", 5, resume=str(tmp_path / "whole" / f"{name}.ckpt"))
        assert torch.equal(resumed.prompt().embeddings, module.prompt().embeddings) is same


def test_optimizer_and_schedule_go_on(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    module, data = make(task, tiny_roberta, tmp_path)
    train(module, data, tmp_path / "whole", 6)
    resumed, data = make(task, tiny_roberta, tmp_path)
    train(resumed, data, tmp_path / "rest", 6, resume=str(tmp_path / "whole" / "step=3.ckpt"))
    one, other = (torch.load(tmp_path / name / "step=6.ckpt", weights_only=True) for name in ("whole", "rest"))
    assert one["lr_schedulers"] == other["lr_schedulers"]
    assert one["lr_schedulers"][0]["last_epoch"] == 6
    states = [each["optimizer_states"][0] for each in (one, other)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    torch.testing.assert_close(states[0]["state"], states[1]["state"], rtol=0, atol=0)
    assert int(states[0]["state"][0]["step"]) == 6
    assert torch.equal(one["rng"], other["rng"])


def test_micro_batches_change_memory_and_not_the_result(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    whole, data = make(task, tiny_roberta, tmp_path)
    train(whole, data, tmp_path / "whole", 4)
    split, data = make(task, tiny_roberta, tmp_path, max_tokens=40)
    _, recorder = train(split, data, tmp_path / "split", 4)
    assert sorted(map(len, recorder.ids)) == [2, 8, 8, 8]
    torch.testing.assert_close(split.prompt().embeddings, whole.prompt().embeddings, atol=1e-5, rtol=0)


def test_two_processes_equal_one(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    one, data = make(task, tiny_roberta, tmp_path)
    trainer, _ = train(one, data, tmp_path / "one", 4, val_check_interval=4)
    expected = trainer.callback_metrics["validation/accuracy"]
    two, data = make(task, tiny_roberta, tmp_path)
    trainer, _ = train(two, data, tmp_path / "two", 4, val_check_interval=4, devices=2, strategy="ddp_fork")
    one_prompt, two_prompt = (Prompt.load(tmp_path / name / "prompt.safetensors") for name in ("one", "two"))
    assert two_prompt.metadata["steps"] == one_prompt.metadata["steps"]
    torch.testing.assert_close(two_prompt.embeddings, one_prompt.embeddings, atol=1e-5, rtol=0)
    assert float(trainer.callback_metrics["validation/accuracy"]) == pytest.approx(float(expected))


def test_export_keeps_the_best_prompt_and_its_start(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    module, data = make(task, tiny_roberta, tmp_path)
    trainer, _ = train(module, data, tmp_path / "run", 10)
    prompt = Prompt.load(tmp_path / "run" / "prompt.safetensors")
    export = next(c for c in trainer.callbacks if isinstance(c, PromptExport))
    score, step = export.best["prompt"]
    assert prompt.metadata["steps"] == str(step)
    assert float(prompt.metadata["score"]) == score
    assert {"seed": "7", "task": "toy", "split": "validation", "layout": "prefix"}.items() <= prompt.metadata.items()
    assert prompt.initial is not None
    assert torch.equal(prompt.initial, module.initial_prompt)
    assert "data_root" not in prompt.metadata
    assert prompt.metadata["train_rows"] == "50"


def test_one_class_is_warned_of(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    module, data = make(task, tiny_roberta, tmp_path, learning_rate=1e-12)
    with pytest.warns(UserWarning, match=r"every validation example of toy is predicted"):
        train(module, data, tmp_path / "run", 5)


@pytest.mark.parametrize("has", [True, False])
def test_a_dtype_that_the_processor_lacks_is_warned_of(
    has: bool, task: str, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: Any
) -> None:
    found = {"architecture": "x86_64", "avx512_bf16": has, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    module, data = make(task, tiny_roberta, tmp_path, dtype="bfloat16")
    train(module, data, tmp_path / "run", 1)
    said = [str(warning.message) for warning in recwarn if "no instructions for bfloat16" in str(warning.message)]
    assert len(said) == (0 if has else 1)


def test_checkpoint_of_another_backbone_is_refused(
    task: str, tiny_roberta: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    module, data = make(task, tiny_roberta, tmp_path)
    train(module, data, tmp_path / "run", 1)
    other, data = make(task, tiny_bert, tmp_path)
    with pytest.raises(UserError, match="another backbone"):
        train(other, data, tmp_path / "other", 2, resume=str(tmp_path / "run" / "step=1.ckpt"))


def test_prompt_needs_a_row(tiny_roberta: Path) -> None:
    with pytest.raises(UserError, match="at least one token"):
        PromptTuning(str(tiny_roberta), prompt_length=0)


def test_norms_are_logged(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    module, data = make(task, tiny_roberta, tmp_path)
    logger = CSVLogger(tmp_path, name="", version="logs")
    train(module, data, tmp_path / "run", 4, logger=logger, log_every_n_steps=2)
    frame = pd.read_csv(tmp_path / "logs" / "metrics.csv")
    for name in ("gradient_norm", "prompt_norm", "distance_from_initial"):
        values = frame[f"train/{name}"].dropna()
        assert len(values) == 2
        assert (values > 0).all()


def test_a_precision_that_would_cast_the_prompt_is_refused(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    module, data = make(task, tiny_roberta, tmp_path)
    with pytest.raises(UserError, match=r"--model\.dtype bfloat16"):
        train(module, data, tmp_path / "run", 1, precision="bf16-true")


def test_learning_rate_and_optimizer_exclude_each_other(tiny_roberta: Path) -> None:
    with pytest.raises(UserError, match="give its own lr"):
        PromptTuning(str(tiny_roberta), learning_rate=0.1, optimizer=torch.optim.SGD)
    with pytest.raises(UserError, match="choose one of linear"):
        PromptTuning(str(tiny_roberta), schedule="reduce_lr_on_plateau")


@pytest.mark.parametrize("module", [PromptTuning, PromptEnsemble, CrossModelProjector])
def test_backbone_options_are_flags_of_every_module_with_their_help(
    module: type[TrainedModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    parser = ArgumentParser()
    parser.add_class_arguments(module, "model")
    defaults, text = parser.get_defaults()["model"], parser.format_help()
    flags = {"name": "backbone", "dropout": "backbone_dropout"}
    options = {flags.get(field.name, field.name): field.default for field in fields(BackboneConfig)}
    assert {key: defaults[key] for key in options} == {**options, "backbone": "roberta-nano"}
    for name in (*options, "learning_rate", "schedule", "warmup_steps"):
        assert re.search(rf"--model\.{name} \S+\s+[^\s(].*\(type: ", text), name


def test_hyperparameters_hold_the_options_but_not_the_leave_to_run_remote_code(tiny_roberta: Path) -> None:
    module = PromptTuning(str(tiny_roberta), prompt_length=2, attention="shared", backbone_dropout=True)
    facts = dict(module.hparams)
    assert {key: facts[key] for key in ("init", "reparameterization")} == {
        "init": module.init.describe(), "reparameterization": module.reparameterization.describe(),
    }  # fmt: skip
    del facts["init"], facts["reparameterization"]
    assert facts == {
        "backbone": str(tiny_roberta), "method": "prompt", "prompt_length": 2,
        "layout": "prefix", "attention": "shared",
        "learning_rate": module.backbone.family.learning_rate, "schedule": "linear", "warmup_steps": 0,
        "dtype": "float32", "head": "lm", "label_words_policy": None, "num_beams": 1, "backbone_dropout": True,
        "gradient_checkpointing": False, "compile": False, "revision": None, "quantization": None,
    }  # fmt: skip


def test_an_unknown_option_is_an_error(tiny_roberta: Path) -> None:
    with pytest.raises(TypeError, match="atention"):
        PromptTuning(str(tiny_roberta), prompt_length=2, atention="shared")
