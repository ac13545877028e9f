"""`fit`: training of a prompt or projector in a resumable run folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from prompt_transfer.callbacks.checkpoints import FinalValidation, GivenOptimizerOptions
from prompt_transfer.callbacks.convergence import ConvergenceSpeed
from prompt_transfer.callbacks.export import ProjectorExport, PromptExport
from prompt_transfer.callbacks.logs import LogFlush, RunLog
from prompt_transfer.callbacks.mlflow import track
from prompt_transfer.callbacks.shots import FewShotReport
from prompt_transfer.callbacks.stopping import StopEach
from prompt_transfer.callbacks.tracking import WandbLog, describe_fit, sources_of
from prompt_transfer.commands.fit_report import report
from prompt_transfer.commands.lightning import CONFIG_FILE, Command, as_user_error
from prompt_transfer.commands.parsing import program
from prompt_transfer.commands.run_folders import (
    CONVERGENCE_FILE,
    LAST,
    PROJECTOR_FILE,
    PROMPT_FILE,
    RunFolder,
    has_files,
    is_run,
)
from prompt_transfer.modules.cross_model_projector import CrossModelProjector
from prompt_transfer.modules.prompt_ensemble import PromptEnsemble
from prompt_transfer.tasks.definition import format_metadata
from prompt_transfer.tracking.mlflow_run import MlflowTracker
from prompt_transfer.tracking.options import LOGGERS, MlflowOptions
from prompt_transfer.tracking.run import Tracker
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import LOCK, check_writable_dir, exclusive_lock

# Metadata of the prompts of few-shot runs.
SHOTS = ("data_shots", "data_validation_shots")
# Model options that cannot change when a run is resumed.
FIXED_OPTIONS = ("method", "init", "reparameterization", "layout", "attention", "head")
FIXED_PROJECTOR_OPTIONS = ("projector", "objective", "source_prompts", "select")


class FitCommand(Command):
    """The parsed options of `fit`, with model, data and trainer."""

    def __init__(self, *args: Any) -> None:
        self.started = time.monotonic()
        self.lock = ExitStack()
        super().__init__(*args)

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        config = self.config
        if config.convergence and config.early_stopping is not None:
            raise UserError("--convergence needs a fixed budget of steps: leave out --early_stopping")
        if config.output is None:
            tasks = config.data.task if isinstance(config.data.task, list) else [config.data.task]
            names = "+".join(Path(task).stem for task in tasks)
            numbers = config.model.get("seeds") or [config.seed_everything]
            few = "" if config.data.shots is None else f"-shots{config.data.shots}"
            config.output = f"runs/{names}-{Path(config.model.backbone).name}{few}-seed{'+'.join(map(str, numbers))}"
            # All runs of a W&B sweep have the same command line.
            if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
                config.output = f"runs/sweep-{os.environ['WANDB_SWEEP_ID']}/{os.environ['WANDB_RUN_ID']}"
        self.claim(Path(config.output))

    def claim(self, folder: Path) -> None:
        """Check the folder for files of other runs, and remember the folders to remove after a failure."""
        self.made_folders = [place for place in (folder, *folder.parents) if not place.exists()]
        self.occupied = has_files(folder)
        self.check_free(folder)

    def check_free(self, folder: Path) -> None:
        """Raise UserError unless the options allow resuming or replacing the files in `folder`."""
        config, occupied = self.config, has_files(folder)
        if config.resume and config.overwrite:
            raise UserError("--resume and --overwrite exclude each other: give one of them")
        if occupied and not config.resume and not config.overwrite:
            raise UserError(f"{folder} is not empty: give --resume to resume its run, or --overwrite to replace it")
        if occupied and config.overwrite and not is_run(folder):
            raise UserError(f"{folder} has files but no run to overwrite: give another --output")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Return the trainer; create and lock the output folder, now that model and data are valid."""
        assert self.output is not None
        check_writable_dir(self.output)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except BaseException:
            if not (self.output / LOCK).exists():
                self.tidy()
            raise
        if trainer.is_global_zero:
            with ExitStack() as lock:
                lock.enter_context(exclusive_lock(self.output))
                # Another run may have started and finished since the first check.
                self.check_free(self.output)
                self.lock = lock.pop_all()
        return trainer

    def tidy(self) -> None:
        """Remove the new files and folders of a failed run that has no prompt or checkpoint."""
        folder = self.output
        assert folder is not None
        if self.occupied or any((folder / name).exists() for name in (PROMPT_FILE, PROJECTOR_FILE, LAST)):
            return
        shutil.rmtree(folder, ignore_errors=True)
        if not self.made_folders:
            folder.mkdir(exist_ok=True)
        for parent in self.made_folders[1:]:
            with suppress(OSError):
                parent.rmdir()

    def extra_callbacks(self) -> list[Callback]:
        folder, config = self.output, self.config
        assert folder is not None
        tasks = config.data.task if isinstance(config.data.task, list) else [config.data.task]
        # `test` and `predict` read these options from the prompt's metadata.
        facts = {
            "seed": str(config.seed_everything),
            "data_task": json.dumps(tasks),
            "data_source": config.data.source,
            "data_root": config.data.root or "",
            "label_words_policy": config.model.label_words_policy or "",
            # The words of a table are part of the task's definition.
            "data_label_words": config.data.label_words if config.data.label_words == "paper" else "default",
            **{f"data_{name}": config.data[name] for name in ("validation", "test") if config.data.get(name)},
            "data_max_length": "" if config.data.max_length is None else str(config.data.max_length),
            "data_seed": str(config.data.seed),
            "data_special_tokens": config.data.special_tokens,
            **format_metadata(config.data.get("template"), config.data.get("chat_template")),
            "data_revision": config.data.revision or "",
            **({name: str(config.data[name[5:]]) for name in SHOTS} if config.data.shots is not None else {}),
        }
        callbacks: list[Callback] = [
            RunFolder(folder, self.config_text(), bool(config.overwrite)),
            FewShotReport(len(config.model.get("seeds") or [0])),
            LogFlush(),
            GivenOptimizerOptions(),
            FinalValidation(),
            self._export(folder, facts),
            (convergence := ConvergenceSpeed(folder / CONVERGENCE_FILE, bool(config.convergence), self.started)),
            # Saved after each validation: resuming from an earlier checkpoint would skip the validation that was due.
            ModelCheckpoint(
                dirpath=folder / "checkpoints",
                filename="last",
                every_n_epochs=1,
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            ),
        ]
        if self.tracker is not None:
            callbacks.append(track(self.tracker, convergence, sources_of(self.plain_config()), bool(config.resume)))
        if config.early_stopping is not None:
            several = isinstance(self.model, PromptEnsemble)
            one = EarlyStopping("validation/score", mode="max", patience=config.early_stopping)
            callbacks.append(StopEach(config.early_stopping) if several else one)
        return callbacks

    @cached_property
    def tracker(self) -> Tracker | MlflowTracker | None:
        """The run on W&B or MLflow; None with other loggers."""
        name = self.config.logger
        if name not in LOGGERS:
            return None
        assert self.output is not None
        plain, options = self.plain_config(), LOGGERS[name](**vars(self.config[name])).resolved()
        group, tags, facts = describe_fit(plain, self.output.name)
        facts["study"], options.group = options.group, options.group or group
        if isinstance(options, MlflowOptions):
            return MlflowTracker("fit", self.output.name, self.output, facts, options, tags)
        return Tracker("fit", self.output.name, self.output, facts, options, tags)

    def make_logger(self) -> Logger | list[Logger] | bool:
        """Return the loggers; a run logged to W&B or MLflow also keeps its log on disk."""
        if self.tracker is None:
            return super().make_logger()
        return [RunLog(self.tracker.folder), WandbLog(self.tracker)]

    def _export(self, folder: Path, facts: dict[str, str]) -> Callback:
        if isinstance(self.model, CrossModelProjector):
            return ProjectorExport(folder / PROJECTOR_FILE, facts)
        return PromptExport(folder / PROMPT_FILE, facts)


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer fit`."""
    fit = FitCommand(command, _with_stored_config(arguments))
    with fit.lock:
        _train(fit, command)


def _train(fit: FitCommand, command: str) -> None:
    folder = fit.output
    assert folder is not None
    last = folder / LAST
    if fit.config.resume and not last.is_file():
        print(f"no checkpoint in {folder} yet: starting from the beginning", file=sys.stderr)
    try:
        resume = str(last) if fit.config.resume and last.is_file() else None
        if resume:
            _check_resumable(fit, folder)
        with as_user_error(command):
            fit.trainer.fit(fit.model, datamodule=fit.datamodule, ckpt_path=resume, weights_only=True)
    except BaseException as error:
        if fit.tracker is not None:
            fit.tracker.finish(1)
        fit.tidy()
        if isinstance(error, KeyboardInterrupt) and last.is_file():
            print(f"resume with: {program()} fit --output {shlex.quote(str(folder))} --resume", file=sys.stderr)
        raise
    if fit.trainer.is_global_zero:
        report(fit, folder)


def _read(checkpoint: Path) -> dict[str, Any]:
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch share no base class
        raise UserError(f"the checkpoint {checkpoint} is damaged: restart the run with --overwrite") from error


def _check_resumable(fit: FitCommand, folder: Path) -> None:
    """Raise UserError if options changed that a run cannot change when resumed."""
    checkpoint = _read(folder / LAST)
    original, now = checkpoint["hyper_parameters"], fit.model.hparams
    changed = {
        f"--model.{name}": (original[name], now.get(name))
        for name in (*FIXED_OPTIONS, *FIXED_PROJECTOR_OPTIONS)
        if name in original and original[name] != now.get(name)
    }
    stored = yaml.safe_load((folder / CONFIG_FILE).read_text()) if (folder / CONFIG_FILE).is_file() else {}
    seed = stored.get("seed_everything", fit.config.seed_everything)
    if seed != fit.config.seed_everything:
        changed["--seed_everything"] = (seed, fit.config.seed_everything)
    if changed:
        changes = ", ".join(f"{option} was {old}, not {new}" for option, (old, new) in changed.items())
        raise UserError(
            f"cannot resume the run in {folder}: {changes}; leave the option out, or restart with --overwrite"
        )
    done, steps = checkpoint["global_step"], fit.config.trainer.max_steps
    if 0 < steps < done:
        raise UserError(
            f"the run in {folder} already has {done} steps, more than --trainer.max_steps {steps}: give {done} or "
            "more, or restart with --overwrite"
        )


def _with_stored_config(arguments: list[str]) -> list[str]:
    """Return the arguments with `--config DIR/config.yaml` in front for `fit --output DIR --resume`."""
    if not any(argument.startswith("--resume") for argument in arguments):
        return arguments
    for position, argument in enumerate(arguments):
        folder = arguments[position + 1 : position + 2] if argument == "--output" else [argument.partition("=")[2]]
        if argument.split("=")[0] == "--output" and folder and (Path(folder[0]) / CONFIG_FILE).is_file():
            return ["--config", str(Path(folder[0]) / CONFIG_FILE), *_stored_layout(Path(folder[0])), *arguments]
        if argument.split("=")[0] == "--output" and folder and not any("task" in a or "config" in a for a in arguments):
            raise UserError(f"there is no run in {folder[0]} to resume (working folder: {Path.cwd()})")
    return arguments


def _stored_layout(folder: Path) -> list[str]:
    """Return the layout option of a run whose configuration has none: default layouts differ between releases."""
    try:
        model = yaml.safe_load((folder / CONFIG_FILE).read_text())["model"]
        known = {**model, **model.get("init_args", {})}.get("layout") is not None
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError):
        return []  # the parser reports errors in the file
    if known or not (folder / LAST).is_file():
        return []
    layout = _read(folder / LAST)["hyper_parameters"].get("layout")
    return [f"--model.layout={layout}"] if layout else []
