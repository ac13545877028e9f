"""Non-finite values stop a run with an error naming step and rows, and are never scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from test_cli import error_of, fit

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.tokens import named_rows
from prompt_transfer.modules.objectives import Classification
from prompt_transfer.modules.prompt_ensemble import PromptEnsemble
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.neurons.capture import capture_prompts
from prompt_transfer.studies.neurons.capture import over_inputs
from prompt_transfer.studies.targets import EvaluationData, load_target
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.nonfinite import FirstNonFinite, largest

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def test_the_first_place_of_each_prompt_by_hand() -> None:
    seen = FirstNonFinite(3)
    assert seen.found() == {}
    seen.observe("loss", torch.tensor([1.0, 2.0, 3.0]), 4)
    seen.observe("gradient", torch.tensor([1.0, INF, 3.0]), 4)
    seen.observe("loss", torch.tensor([1.0, NAN, -INF]), 5)
    seen.observe("gradient", torch.tensor([1.0, NAN, NAN]), 5)
    assert seen.found() == {1: ("gradient", 4), 2: ("loss", 5)}
    # The other of two processes has seen prompt 0 break at step 2.
    other = torch.full((2, 3), 2**62)
    other[0, 0] = 2
    assert seen.found(lambda mine: torch.stack([mine, other]))[0] == ("loss", 2)
    seen.reset()
    seen.observe_rows("loss", torch.tensor([1.0, NAN, INF]), torch.tensor([9, 8, 7]), prompt=2)
    seen.observe_rows("loss", torch.tensor([1.0, 1.0]), torch.tensor([3, 4]), prompt=2)
    assert seen.found() == {2: ("loss", 7)}


def test_large_gradients_are_finite_and_nan_is_never_lost() -> None:
    assert float(largest([torch.full((4,), 1e30), torch.tensor([-2e30])])) == pytest.approx(2e30)
    assert torch.isnan(largest([torch.tensor([1.0, NAN, 3.0]), torch.tensor([1e9])]))
    assert torch.isinf(largest([torch.tensor([1.0, -INF])]))


def test_rows_are_named_by_task() -> None:
    assert named_rows([3, 2**32 + 1, 5], ["a", "b"]) == "rows 3, 5 of a, row 1 of b"
    assert named_rows(range(8), ["a"]) == "rows 0, 1, 2, 3, 4, 5 and 2 more of a"


class Ids(Callback):
    """A callback that records the row numbers of every training batch."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.rows.append(sorted(int(i) for part in batch["micro_batches"] for i in part["ids"]))


def train(module: PromptTuning, toy: Path, folder: Path, steps: int = 6, **options: Any) -> tuple[L.Trainer, Ids]:
    ids = Ids()
    data = TaskDataModule(str(toy), "local", batch_size=4, eval_batch_size=8)
    callbacks = [ids, ModelCheckpoint(folder, save_on_train_epoch_end=False, filename="last")]
    defaults: dict[str, Any] = {"val_check_interval": 2, "log_every_n_steps": 100}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=-1, max_steps=steps, check_val_every_n_epoch=None, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False, default_root_dir=folder,
        logger=False, callbacks=callbacks, **{**defaults, **options},
    )  # fmt: skip
    with pytest.raises(UserError) if "strategy" not in options else pytest.raises(Exception) as caught:  # noqa: PT011
        trainer.fit(module, datamodule=data, weights_only=True)
    trainer.told = str(caught.value)
    return trainer, ids


def broken_from(module: PromptTuning, step: int, what: str, rank: int | None = None) -> None:
    """Make the loss or the gradient NaN from optimizer step `step` (counted from 1) on."""
    if what == "loss":
        losses = module.summed_losses
        module.summed_losses = lambda *batch: (
            losses(*batch)
            * (  # type: ignore[method-assign]
                NAN if module.global_step >= step - 1 and rank in (None, module.global_rank) else 1
            )
        )
        return
    setup = module.setup

    def after(stage: str) -> None:
        setup(stage)
        hook = lambda g: g * NAN if module.global_step >= step - 1 else g  # noqa: E731
        module.trained()[0].register_hook(hook)

    module.setup = after  # type: ignore[method-assign]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_that_breaks_stops_with_step_and_batch_and_keeps_its_checkpoint(
    what: str, toy: Path, tiny_roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    found = FirstNonFinite.found
    module = PromptTuning(str(tiny_roberta), prompt_length=3)
    monkeypatch.setattr(
        FirstNonFinite, "found", lambda self, gather=None: asked.append(module.global_step) or found(self)
    )
    broken_from(module, 3, what)
    trainer, ids = train(module, toy, tmp_path / "run")
    # Found in step 3 and reported before the evaluation after step 4: the batch is still that of step 3.
    rows = ", ".join(map(str, ids.rows[2]))
    kept = tmp_path / "run" / "last.ckpt"
    told = f"step 3: the {what} of the prompt is NaN or Inf (training rows {rows} of toy)"
    assert trainer.told.startswith(told)
    assert trainer.told.endswith(f"the last good checkpoint is kept: {kept}")
    assert torch.load(kept, weights_only=True)["global_step"] == 2
    # Values are synchronized only at evaluations and checkpoints, because nothing was logged.
    assert set(asked) == {2, 4}


def test_what_is_logged_is_looked_at(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    module = PromptTuning(str(tiny_roberta), prompt_length=3)
    broken_from(module, 2, "loss")
    trainer, _ = train(module, toy, tmp_path / "run", val_check_interval=6, log_every_n_steps=3)
    # Stopped in step 3, before its optimizer step.
    assert trainer.global_step == 2
    assert trainer.told.startswith("step 2: the loss")


class Breaking(torch.optim.SGD):
    """An optimizer whose steps make the parameters infinite."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            parameter.data.fill_(INF)
        return loss


def test_a_prompt_that_a_step_breaks_is_not_evaluated(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    module = PromptTuning(str(tiny_roberta), prompt_length=3, optimizer=lambda p: Breaking(p, lr=0.1))
    trainer, _ = train(module, toy, tmp_path / "run", val_check_interval=1)
    assert trainer.told.startswith("step 1: the prompt holds NaN or Inf: lower --model.learning_rate")
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_what_breaks_on_one_process_stops_all(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    module = PromptTuning(str(tiny_roberta), prompt_length=3)
    broken_from(module, 2, "loss", rank=1)
    trainer, _ = train(module, toy, tmp_path / "run", devices=2, strategy="ddp_fork")
    assert "step 2: the loss of the prompt is NaN or Inf (training rows " in trainer.told


def test_of_several_prompts_the_others_go_on(toy: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    module = PromptEnsemble(backbone=str(tiny_roberta), prompt_length=3, seeds=[4, 5])
    setup = module.setup

    def after(stage: str) -> None:
        setup(stage)
        gradient = lambda g: g * INF if module.global_step == 1 else g  # noqa: E731
        next(module.member(0).parameters()).register_hook(gradient)
        # The other prompt breaks in the fifth step, as the last one left.
        next(module.member(1).parameters()).register_hook(lambda g: g * NAN if module.global_step == 4 else g)

    module.setup = after  # type: ignore[method-assign]
    match = r"step 2: the gradient of the prompt seed4 is NaN or Inf \(training rows .* of toy\); it is stopped"
    with pytest.warns(UserWarning, match=match):
        trainer, _ = train(module, toy, tmp_path / "run")
    assert trainer.told.startswith("step 5: the gradient of the prompt seed5 is NaN or Inf")
    assert "it was the last one" in trainer.told
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert (state["global_step"], state["active"]) == (4, [1])


def test_a_resumed_run_that_breaks_keeps_what_it_had(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    names = ("prompt.safetensors", "checkpoints/last.ckpt")
    before = [(output / name).read_bytes() for name in names]
    losses = PromptTuning.summed_losses
    monkeypatch.setattr(
        PromptTuning,
        "summed_losses",
        lambda self, *batch: losses(self, *batch) * (NAN if self.global_step == 5 else 1),
    )
    told = error_of(capsys, main(["fit", "--output", str(output), "--resume", "--trainer.max_steps", "8"]))
    assert "step 6: the loss of the prompt is NaN or Inf (training rows " in told
    assert [(output / name).read_bytes() for name in names] == before


def nan_for_row(monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    logits = Classification.logits

    def broken(self: Any, prompt: Any, batch: Any) -> torch.Tensor:
        return logits(self, prompt, batch).masked_fill((batch["ids"] == row)[:, None], NAN)

    monkeypatch.setattr(Classification, "logits", broken)


def test_nothing_is_scored_or_predicted_from_nan(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    assert fit(toy, tiny_roberta, runs / "one") == 0
    nan_for_row(monkeypatch, 7)
    prompt = ["--prompt", str(runs / "one")]
    told = error_of(capsys, main(["test", *prompt, "--output", str(out)]))
    assert "the loss on the test split is NaN or Inf, first in row 7 of toy" in told
    told = error_of(capsys, main(["predict", *prompt, "--output", str(out)]))
    assert "the answer on the predict split is NaN or Inf, first in row 7 of toy" in told
    study = ["--backbone", str(tiny_roberta), "--prompts", str(runs), "--tasks", str(toy), "--data.source", "local"]
    told = error_of(capsys, main(["transfer", *study, "--random_prompts", "0", "--output", str(out)]))
    assert "the answers of the prompt one to row 7 of toy (test (official)) are NaN or Inf" in told
    assert not list(out.rglob("results.*"))
    assert not list(out.rglob("predictions.*"))


def test_broken_neurons_are_told_with_prompt_and_rows(toy: Path, tiny_roberta: Path) -> None:
    backbone = FrozenBackbone(str(tiny_roberta))
    good, bad = torch.zeros(3, 32), torch.full((3, 32), NAN)
    with pytest.raises(UserError, match="neurons of prompt b are NaN or Inf"):
        capture_prompts(backbone, [good, bad], ["a", "b"])
    task, data = get_task(str(toy)), EvaluationData("local")
    target = load_target(task, data, "default", "test", backbone.encoder(3))
    with pytest.raises(UserError, match=r"of prompt b are NaN or Inf, first in rows \d.* of toy"):
        over_inputs(backbone, [good, bad], [target], names=["a", "b"])
    found = over_inputs(backbone, [good], [target])
    assert np.isfinite(found["mean"].numpy()).all()
