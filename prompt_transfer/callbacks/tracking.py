"""Tracking of a training run on W&B: metrics, convergence, input prompts and output artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from prompt_transfer.callbacks.convergence import COLUMNS, ConvergenceSpeed
from prompt_transfer.tracking import artifacts, charts
from prompt_transfer.tracking.mlflow_run import MlflowTracker
from prompt_transfer.tracking.options import LOGGERS
from prompt_transfer.tracking.run import STEP, Tracker, to_table


class WandbLog(Logger):
    """Logger that passes metrics to a tracker, of W&B or MLflow.

    Lightning's W&B logger starts the run before data and options have been checked.

    Args:
        tracker: started by `RunTracking`.
    """

    def __init__(self, tracker: Tracker | MlflowTracker) -> None:
        super().__init__()
        self.tracker = tracker

    @property
    def name(self) -> str | None:
        return self.tracker.name

    @property
    def version(self) -> str | None:
        return self.tracker.run_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.tracker.log(metrics, step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the tracker has the resolved configuration from the start."""


class RunTracking(Callback):
    """Callback that starts the tracked run with training, and logs every evaluation with its cumulative cost.

    Logs `convergence/score`, `/majority`, `/samples`, `/seconds`, `best/score`, `best/above_majority` and `best/step`.
    For an ensemble the score is the mean, and `convergence/<prompt>/score` is logged for each prompt.

    Args:
        tracker: not started yet.
        convergence: the callback whose rows are logged; it must come before this one.
        sources: prompt files, or folders of them, that the run is initialized from.
        resume: continue the tracked run of the folder.
    """

    def __init__(
        self, tracker: Tracker, convergence: ConvergenceSpeed, sources: Sequence[str | Path], resume: bool = False
    ) -> None:
        self.tracker, self.convergence, self.sources, self.resume = tracker, convergence, sources, resume
        self._logged = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # An earlier process logged the rows of the checkpoint.
        self._logged = len(self.convergence.rows)
        if not trainer.is_global_zero:
            return
        self.tracker.start(keep_id=True, resume=self.resume)
        self.record_inputs()

    def record_inputs(self) -> None:
        """Set the axes of the charts and link the input prompts."""
        if self.tracker.run is not None:
            with self.tracker.shielded("the axes were not set"):
                self.tracker.run.define_metric(STEP)
                self.tracker.run.define_metric("*", step_metric=STEP, step_sync=True)
            with self.tracker.shielded("the input prompts were not linked"):
                for path in artifacts.find_prompt_files(self.sources):
                    self.tracker.use(artifacts.prompt_artifact(path))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values, step = evaluation_values(self.convergence, self._logged)
        self._logged = len(self.convergence.rows)
        if values and trainer.state.fn == "fit":
            self.tracker.log(values, step)


def evaluation_values(convergence: ConvergenceSpeed, logged: int) -> tuple[dict[str, Any], int]:
    """Return the values of the last evaluation by name, and its step; nothing if no rows follow the `logged` ones."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in convergence.rows]
    new = rows[logged:]
    if not new:
        return {}, 0
    best, last = max(rows, key=lambda row: row["value"]), new[-1]
    values = {
        "convergence/score": sum(row["value"] for row in new) / len(new),
        **{f"convergence/{key}": last[key] for key in ("majority", "samples", "seconds")},
        "best/score": best["value"],
        "best/above_majority": best["value"] - best["majority"],
        "best/step": best["step"],
    }
    if len({row["prompt"] for row in rows}) > 1:
        values |= {f"convergence/{row['prompt']}/score": row["value"] for row in new}
    return values, last["step"]


def finish_fit(tracker: Tracker, rows: Sequence[Mapping[str, Any]], folder: Path, log: Path) -> None:
    """Log the outputs of a run folder, and finish the run on W&B.

    Args:
        tracker: of the run.
        rows: of its results table.
        folder: contains the trained prompts or projector.
        log: the convergence file.
    """
    with tracker.shielded("the results were not logged"):
        if tracker.run is not None:
            shown = {"results/table": to_table(pd.DataFrame(list(rows)))}
            if log.is_file():
                frame = pd.read_csv(log)
                shown["convergence/table"] = to_table(frame)
                shown["convergence/curves"] = charts.curves(frame, "prompt", f"{tracker.name}: score on validation")
            tracker.log(shown)
            for path in sorted(folder.glob("*.safetensors")):
                made = _artifact(path)
                if made is not None:
                    tracker.add(made)
    tracker.finish()


def _artifact(path: Path) -> Any:
    """Return the artifact of a prompt or projector; None for the copy of an ensemble's best prompt."""
    if path.stem == "projector":
        return artifacts.projector_artifact(path)
    if path.stem.startswith("prompt") and path in artifacts.find_prompt_files([path.parent]):
        return artifacts.prompt_artifact(path)
    return None


def describe_fit(config: Mapping[str, Any], name: str) -> tuple[str, list[str], dict[str, Any]]:
    """Return the default group, the tags and the configuration of a `fit` run on W&B.

    Args:
        config: the resolved options as plain values.
        name: of the run.

    Returns:
        The group (task and backbone), tags (task, backbone, seed, start), and the configuration: task, backbone,
        seed, start and run, by which runs are grouped, followed by the options.
    """
    data, model = config["data"], config["model"]
    tasks = data["task"] if isinstance(data["task"], list) else [data["task"]]
    seeds = model.get("seeds") or [config["seed_everything"]]
    start = model.get("init") or model.get("projector") or {}
    facts: dict[str, Any] = {
        "task": "+".join(Path(task).stem for task in tasks),
        "backbone": Path(model["backbone"]).name,
        "seed": seeds[0] if len(seeds) == 1 else "+".join(map(str, seeds)),
        "start": str(start.get("class_path", "default")).rpartition(".")[2],
    }
    tags = [facts["task"], facts["backbone"], f"seed{facts['seed']}", facts["start"]]
    options = {key: value for key, value in config.items() if key not in ("logger", *LOGGERS)}
    return f"{facts['task']}-{facts['backbone']}", tags, {**facts, "run": name, **options}


def sources_of(config: Mapping[str, Any]) -> list[str]:
    """Return the prompt files and folders that a `fit` run is initialized from, with `{seed}` filled in."""
    model = config["model"]
    init = (model.get("init") or {}).get("init_args") or {}
    found: list[str] = []
    for given in (init.get("prompt"), model.get("prompts"), model.get("target_prompts")):
        found += [given] if isinstance(given, str) else list(given or [])
    seeds = model.get("seeds") or [config["seed_everything"]]
    return list(dict.fromkeys(path.replace("{seed}", str(seed)) for path in found for seed in seeds))
