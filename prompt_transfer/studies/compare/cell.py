"""One cell of a comparison: a method trained with one seed, its best state scored on the test split.

A cell's folder holds `cell.json` (its facts, written last), `predictions.parquet`, `convergence.csv` and the trained
file: `prompt.safetensors`, `adapter/` in PEFT's format, `probe.safetensors`, or with `--keep_weights` `model/`.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from prompt_transfer.callbacks.checkpoints import AtomicCheckpointIO, FinalValidation
from prompt_transfer.callbacks.convergence import ConvergenceSpeed
from prompt_transfer.callbacks.export import PromptExport
from prompt_transfer.callbacks.progress import StepProgress
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.own import is_table
from prompt_transfer.data.readers import data_root
from prompt_transfer.data.tokens import ID_BITS
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.modules.trained import TrainedModule
from prompt_transfer.modules.weight_tuning import FineTuning, WeightTuning
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.studies.compare.methods import METHODS, RANDOM
from prompt_transfer.studies.compare.plan import DONE, Cell
from prompt_transfer.studies.compare.probe import fit_probe
from prompt_transfer.tasks.definition import format_metadata
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import exclusive_lock, write_text_atomic
from prompt_transfer.utils.memory import peak_memory

if TYPE_CHECKING:
    from prompt_transfer.studies.compare.study import CompareStudy

PREDICTIONS, CONVERGENCE, PROMPT = "predictions.parquet", "convergence.csv", "prompt.safetensors"
ADAPTER, MODEL, PROBE, CHECKPOINTS = "adapter", "model", "probe.safetensors", "checkpoints"
# Options of `fit` in its messages -> options here.
_OPTIONS = {"--model.learning_rate": "--learning_rates", "--model.dtype": "--dtype", "--model.": "--"}


@dataclass(frozen=True)
class Outcome:
    """The facts of a finished cell; None where a method has no such number.

    Attributes:
        validation: best validation score.
        best_step, seconds_to_best: optimizer steps and seconds until that score was first seen.
        seconds: seconds of training with all validations.
        trained_parameters: trained numbers.
        stored_bytes: bytes to keep per task, without metadata.
        learning_rate: the rate in use.
        layout, attention, dtype: of the backbone.
        peak_memory_mib: largest resident memory of the process; None if it was not a new process.
        loaded_memory_mib: the same before training, with libraries, backbone and data.
        peak_gpu_memory_mib: largest memory of tensors on the GPU.
        regularization: C of the linear probe.
    """

    validation: float
    layout: str
    attention: str
    dtype: str
    best_step: int | None = None
    seconds_to_best: float | None = None
    seconds: float | None = None
    trained_parameters: int = 0
    stored_bytes: int = 0
    learning_rate: float | None = None
    peak_memory_mib: float | None = None
    loaded_memory_mib: float | None = None
    peak_gpu_memory_mib: float | None = None
    regularization: float | None = None


def run_cell(study: CompareStudy, cell: Cell, measure_memory: bool = False) -> None:
    """Train and score a cell, or resume it, and write its folder.

    Args:
        study: the settings.
        cell: the cell.
        measure_memory: record the memory of this process.

    Raises:
        UserError: training broke off, or another process is in the folder.
    """
    folder = cell.folder(study.output)
    with exclusive_lock(folder):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        L.seed_everything(cell.seed, verbose=False)
        try:
            run = Run(study, cell, folder, measure_memory)
            outcome, records = _random(run) if cell.method == RANDOM else _fit(run)
        except torch.OutOfMemoryError as error:
            text = " ".join(str(error).split())[:150]
            raise UserError(f"{text}; --data.max_tokens splits batches without changing the result") from error
        except UserError as error:
            message = str(error)
            for name, here in _OPTIONS.items():
                message = message.replace(name, here)
            raise UserError(message) from error
        results.write(records, folder / PREDICTIONS)
        write_text_atomic(folder / DONE, json.dumps({**asdict(cell), **asdict(outcome)}, indent=2) + "\n")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


@dataclass(frozen=True)
class Run:
    """The parts that the methods share.

    Attributes:
        study, cell, measure_memory: see `run_cell`.
        folder: folder of the cell.
    """

    study: CompareStudy
    cell: Cell
    folder: Path
    measure_memory: bool

    def data(self, module: TrainedModule) -> TaskDataModule:
        """Return the data module, tokenized for training."""
        data = self.study.data.module(self.study.task, self.cell.seed).connect(module.encoder)
        data.prepare_data()
        data.setup("fit")
        return data

    def memory(self) -> float | None:
        """Return the peak memory so far, if it is measured."""
        return round(peak_memory(), 1) if self.measure_memory else None

    def trainer(self, callbacks: list[L.Callback]) -> L.Trainer:
        """Return a trainer; every method has the same one."""
        study = self.study
        trainer = L.Trainer(
            accelerator=study.accelerator,
            devices=1,
            max_steps=study.max_steps,
            max_epochs=-1,
            val_check_interval=min(study.val_check_interval, study.max_steps),
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=bool(callbacks),
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=str(self.folder),
            callbacks=[StepProgress(), *callbacks],
        )
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer


def _fit(run: Run) -> tuple[Outcome, pd.DataFrame]:
    method = METHODS[run.cell.method]
    if method.make is None:
        return _probe(run)
    module = method.make(run.study, run.cell.rate)
    data, loaded = run.data(module), run.memory()
    checkpoints = [_checkpoint(run.folder, "best", monitor="validation/score", mode="max", save_weights_only=True)]
    checkpoints.append(_checkpoint(run.folder, "last"))
    last = run.folder / CHECKPOINTS / "last.ckpt"
    resumed = str(last) if last.is_file() else None
    if not resumed:
        (run.folder / PROMPT).unlink(missing_ok=True)
    convergence = ConvergenceSpeed(run.folder / CONVERGENCE, started=time.monotonic())
    callbacks = [FinalValidation(), convergence]
    if isinstance(module, PromptTuning):
        callbacks.append(PromptExport(run.folder / PROMPT, _facts(run)))
    trainer = run.trainer([*callbacks, *checkpoints])
    trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    seconds, peak = convergence.rows[-1][3], run.memory()
    gpu = round(torch.cuda.max_memory_allocated() / 2**20, 1) if torch.cuda.is_available() else None

    records = _test(module, data, run, str(run.folder / CHECKPOINTS / "best.ckpt"))
    if isinstance(module, WeightTuning) and (run.study.keep_weights or not isinstance(module, FineTuning)):
        place = run.folder / (MODEL if isinstance(module, FineTuning) else ADAPTER)
        shutil.rmtree(place, ignore_errors=True)
        module.save(place)
    best = max(convergence.rows, key=lambda row: row[5])  # the first of equals
    weights = module.trained()
    outcome = Outcome(
        validation=best[5],
        **_backbone(module),
        best_step=best[1],
        seconds_to_best=best[3],
        seconds=seconds,
        trained_parameters=sum(weight.numel() for weight in weights),
        stored_bytes=sum(weight.nbytes for weight in weights),
        learning_rate=module.hparams.learning_rate,
        peak_memory_mib=peak,
        loaded_memory_mib=loaded,
        peak_gpu_memory_mib=gpu,
    )
    return outcome, records


def _backbone(module: TrainedModule) -> dict[str, Any]:
    backbone = module.backbone
    return {"layout": backbone.layout.name, "attention": backbone.attention, "dtype": backbone.dtype_name}


def _checkpoint(folder: Path, name: str, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=folder / CHECKPOINTS,
        filename=name,
        every_n_epochs=1,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
        **options,
    )


def _facts(run: Run) -> dict[str, str]:
    """Return the metadata from which `test` and `predict` read a prompt's options."""
    data, task = run.study.data, run.study.task
    # Absolute, for use from other working directories.
    is_file = is_table(task) or task.endswith((".yaml", ".yml"))
    task = str(Path(task).expanduser().resolve()) if is_file else task
    files = {name: str(Path(file).expanduser().resolve()) for name in ("validation", "test")
             if (file := getattr(data, name)) is not None}  # fmt: skip
    shots = {f"data_{name}": str(getattr(data, name)) for name in ("shots", "validation_shots")}
    root = data_root(data.root) if data.source == "local" else None
    return {
        "seed": str(run.cell.seed),
        "data_task": json.dumps([task]),
        "data_source": str(data.source or ""),
        "data_root": "" if root is None else str(root.resolve()),
        "label_words_policy": run.study.label_words_policy or "",
        "data_label_words": data.word_set,
        **{f"data_{name}": file for name, file in files.items()},
        **(shots if data.shots is not None else {}),
        **format_metadata(data.template, data.chat_template),
        "data_max_length": "" if data.max_length is None else str(data.max_length),
        "data_seed": str(data.seed),
        "data_special_tokens": data.special_tokens,
        "data_revision": data.revision or "",
    }


def _test(module: TrainedModule, data: TaskDataModule, run: Run, checkpoint: str | None = None) -> pd.DataFrame:
    """Return the answers on the test split, one row per example: `id` (row of the split), `label` and `answer`.

    An answer is the predicted class, or the score of the generated `text`.
    """
    module.keep_records, module.records = True, []
    run.trainer([]).test(module, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    task = module.tasks[0]
    parts = []
    for record in module.records:
        rows = {"id": record["ids"].numpy() & (2**ID_BITS - 1)}
        if task.is_generation:
            scores = record["scores"][:, list(task.metrics).index(task.metric)].numpy()
            parts.append(pd.DataFrame({**rows, "label": -1, "answer": scores, "text": record["texts"]}))
        else:
            answers = record["predictions"].numpy().astype("float32")
            parts.append(pd.DataFrame({**rows, "label": record["labels"].numpy(), "answer": answers}))
    return pd.concat(parts).sort_values("id", ignore_index=True)


def _random(run: Run) -> tuple[Outcome, pd.DataFrame]:
    """Score an untrained random prompt."""
    module = METHODS["prompt"].make(run.study, None)  # type: ignore[misc]
    assert isinstance(module, PromptTuning)
    module.build(
        random_prompt(module.backbone, (run.study.prompt_length, module.backbone.hidden_size), run.cell.seed + 1)
    )
    data = run.data(module)
    (scores,) = run.trainer([]).validate(module, datamodule=data, verbose=False)
    return Outcome(scores["validation/score"], **_backbone(module)), _test(module, data, run)


def _probe(run: Run) -> tuple[Outcome, pd.DataFrame]:
    """Fit a linear probe to the examples that the other methods train on."""
    module = METHODS["prompt"].make(run.study, None)  # type: ignore[misc]
    data, loaded = run.data(module), run.memory()
    data.setup("test")
    started = time.monotonic()
    probe = fit_probe(module.backbone, data, run.study.features, run.study.max_steps, run.study.accelerator)
    seconds, peak = round(time.monotonic() - started, 3), run.memory()
    probe.save(run.folder / PROBE)
    records = probe.predict(data.test_dataloader())
    outcome = Outcome(
        validation=probe.validation,
        **_backbone(module),
        seconds_to_best=seconds,
        seconds=seconds,
        trained_parameters=probe.trained_parameters,
        stored_bytes=probe.stored_bytes,
        peak_memory_mib=peak,
        loaded_memory_mib=loaded,
        regularization=probe.regularization,
    )
    return outcome, records
