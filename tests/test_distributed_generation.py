"""Generation on two processes: same texts and scores as on one; no row is lost or counted twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts.initializers import Normal

# Nine rows in batches of two per process: the last batch of two processes has one row.
ROWS = 9
WORDS = ["film", "story", "man", "woman", "dog"]


class Keep(Callback):
    """A callback that saves an evaluation's records to a file, since forked processes return nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_test_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            records = [
                (int(i), text) for one in module.records for i, text in zip(one["ids"], one["texts"], strict=True)
            ]
            torch.save({"records": records, "metrics": dict(trainer.callback_metrics)}, self.path)


def write(folder: Path, answers: list[str]) -> str:
    (folder / "toy").mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        rows = [{"q": f"the {WORDS[i % 5]} is {'very ' * i}good", "a": answers[i]} for i in range(ROWS)]
        (folder / "toy" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"name": "toy", "columns": {"text_a": "q"}, "target_column": "a", "metric": "rougeL",
              "metrics": ["exact_match", "squad_f1"], "max_target_length": 4, "local": "toy"}  # fmt: skip
    (folder / "toy.yaml").write_text(json.dumps(values))
    return str(folder / "toy.yaml")


def evaluate(task: str, backbone: Path, path: Path, **options: Any) -> tuple[list[tuple[int, str]], dict[str, float]]:
    """Evaluate; return row and text of every record in order, and the metrics."""
    L.seed_everything(3)
    module = PromptTuning(str(backbone), prompt_length=3, init=Normal(0.5))
    module.keep_records = True
    data = TaskDataModule(task, "local", eval_batch_size=2, cache_dir=str(path.parent / "cache"))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, use_distributed_sampler=False, callbacks=[Keep(path)],
        default_root_dir=path.parent, **options,
    )  # fmt: skip
    trainer.test(module, datamodule=data, verbose=False)
    kept = torch.load(path, weights_only=True)
    return sorted(kept["records"]), {name: float(value) for name, value in kept["metrics"].items()}


@pytest.mark.filterwarnings("ignore:.*have texts that are in train too")
def test_two_processes_write_what_one_writes(tiny: Any, tmp_path: Path) -> None:
    t5 = tiny("t5")
    texts, _ = evaluate(write(tmp_path, ["nothing"] * ROWS), t5, tmp_path / "first.pt")
    # Two of three rows get right answers, so scores are neither 0 nor 1.
    answers = [text if row % 3 and text.strip() else "zzz" for row, text in texts]
    task = write(tmp_path, answers)
    one, alone = evaluate(task, t5, tmp_path / "one.pt")
    two, together = evaluate(task, t5, tmp_path / "two.pt", devices=2, strategy="ddp_fork")
    assert [row for row, _ in one] == list(range(ROWS))
    assert two == one == texts
    assert 0 < alone["test/exact_match"] < 1
    assert {"test/exact_match", "test/squad_f1", "test/rougeL", "test/score", "test/loss"} <= set(alone)
    assert together == pytest.approx(alone, abs=1e-5)
