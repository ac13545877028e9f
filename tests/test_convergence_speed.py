"""ConvergenceSpeed: the log starts before step 1, survives kills, and is the same on two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from prompt_transfer.callbacks.convergence import COLUMNS, ConvergenceSpeed
from prompt_transfer.cli import main
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts.initializers import Normal


@pytest.fixture
def task(tmp_path: Path) -> str:
    """Write a task of 50 training rows; 8 of its 14 validation rows have class 1."""
    folder = tmp_path / "toy"
    folder.mkdir()
    words = ["the", "film", "story", "man", "very", "one", "day", "time", "friend", "dog"]
    for split, count in (("train", 50), ("validation", 14), ("test", 15)):
        lines = ["text,label"]
        for row in range(count):
            label = int(row % 2 or (split == "validation" and row == 0))
            lines.append(f"{' '.join(words[: 1 + row % 7])} {'great' if label else 'bad'},{label}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "toy.yaml").write_text(
        "name: toy\ntype: sentiment\ncolumns: {text_a: text, text_b: null}\nlabel_column: label\n"
        "label_words: [terrible, great]\nmetric: accuracy\nlocal: toy\n"
    )
    return str(tmp_path / "toy.yaml")


class Dies(Callback):
    """A callback that ends a run like a kill, after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


def train(
    task: str, backbone: Path, folder: Path, *, resume: str | None = None, dies: int = 0, **options: Any
) -> tuple[pd.DataFrame, PromptTuning]:
    L.seed_everything(7)
    module = PromptTuning(str(backbone), prompt_length=4, init=Normal(0.5))
    data = TaskDataModule(task, "local", batch_size=8, cache_dir=str(folder.parent / "cache"))
    from_start = options.pop("from_start", True)
    callbacks = [
        ConvergenceSpeed(folder / "convergence.csv", from_start),
        ModelCheckpoint(
            folder, filename="last", every_n_epochs=1, save_on_train_epoch_end=False, enable_version_counter=False
        ),
        *([Dies(dies)] if dies else []),
    ]
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=-1, max_steps=12, val_check_interval=3, check_val_every_n_epoch=None,
        logger=False, num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=folder, callbacks=callbacks, **options,
    )  # fmt: skip
    if dies:
        with pytest.raises(RuntimeError, match="killed"):
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    else:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return pd.read_csv(folder / "convergence.csv"), module


def test_evaluations_from_step_0_on(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    log, module = train(task, tiny_roberta, tmp_path / "run")
    assert tuple(log.columns) == COLUMNS
    assert log["step"].tolist() == [0, 3, 6, 9, 12]
    # 50 rows in batches of 8: one of an epoch's seven batches has two rows, here the 1st to 3rd, then the 8th or 9th.
    assert log["samples"].tolist() == [0, 18, 42, 50 + 10, 50 + 34]
    assert log["seconds"].is_monotonic_increasing
    assert (log["seconds"] > 0).all()
    assert set(log["prompt"]) == {"prompt"}
    assert set(log["metric"]) == {"accuracy"}
    assert log["majority"].tolist() == pytest.approx([8 / 14] * 5)
    # The evaluation at step 0 does not change training.
    blind, other = train(task, tiny_roberta, tmp_path / "blind", from_start=False)
    assert blind["step"].tolist() == [3, 6, 9, 12]
    assert torch.equal(other.prompt().embeddings, module.prompt().embeddings)
    assert blind["value"].tolist() == log["value"].tolist()[1:]


def test_a_resumed_run_goes_on_with_the_log(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    whole, _ = train(task, tiny_roberta, tmp_path / "whole")
    killed, _ = train(task, tiny_roberta, tmp_path / "run", dies=8)
    assert killed["step"].tolist() == [0, 3, 6]
    # Rows after the checkpoint would be duplicated, and a damaged file would be lost.
    (tmp_path / "run" / "convergence.csv").write_text("prompt,step\nprompt,99\npro")
    rest, _ = train(task, tiny_roberta, tmp_path / "run", resume=str(tmp_path / "run" / "last.ckpt"))
    exact = [column for column in COLUMNS if column != "seconds"]
    pd.testing.assert_frame_equal(rest[exact], whole[exact])
    assert rest["seconds"].is_monotonic_increasing
    assert rest["seconds"][:3].tolist() == killed["seconds"].tolist()


def test_two_processes_log_what_one_logs(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    one, _ = train(task, tiny_roberta, tmp_path / "one")
    two, _ = train(task, tiny_roberta, tmp_path / "two", devices=2, strategy="ddp_fork")
    exact = [column for column in COLUMNS if column != "seconds"]
    pd.testing.assert_frame_equal(two[exact], one[exact])


def test_fit_logs_its_convergence(
    task: str, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    base = ["fit", "--model.backbone", str(tiny_roberta), "--model.prompt_length", "4", "--data.task", task]
    base += ["--data.source", "local", "--trainer.val_check_interval", "2", "--output", str(tmp_path / "run")]
    assert main([*base, "--convergence", "--trainer.max_steps", "4"]) == 0
    log = pd.read_csv(tmp_path / "run" / "convergence.csv")
    assert log["step"].tolist() == [0, 2, 4]
    assert main(["fit", "--resume", "--output", str(tmp_path / "run"), "--trainer.max_steps", "6"]) == 0
    assert pd.read_csv(tmp_path / "run" / "convergence.csv")["step"].tolist() == [0, 2, 4, 6]
    assert main([*base, "--overwrite", "--trainer.max_steps", "2"]) == 0
    assert pd.read_csv(tmp_path / "run" / "convergence.csv")["step"].tolist() == [2]
    capsys.readouterr()
    assert main([*base, "--overwrite", "--convergence", "--early_stopping", "2"]) == 2
    assert "--early_stopping" in capsys.readouterr().err
