"""Tracking of a training run on MLflow: metrics, convergence, input prompts and output files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd

from prompt_transfer.callbacks.convergence import ConvergenceSpeed
from prompt_transfer.callbacks.tracking import RunTracking, finish_fit
from prompt_transfer.tracking.artifacts import find_prompt_files
from prompt_transfer.tracking.mlflow_run import MlflowTracker, source_facts
from prompt_transfer.tracking.run import Tracker


class MlflowTracking(RunTracking):
    """`RunTracking` for MLflow: the input prompts are a tag."""

    tracker: Any  # MlflowTracker

    def record_inputs(self) -> None:
        """Name the input prompts in a tag."""
        with self.tracker.shielded("the input prompts were not recorded"):
            if found := source_facts(list(find_prompt_files(self.sources))):
                self.tracker.set_tag("source_prompts", found)


def track(
    tracker: Tracker | MlflowTracker, convergence: ConvergenceSpeed, sources: Sequence[str | Path], resume: bool
) -> L.Callback:
    """Return the callback that tracks a run on W&B or MLflow; see `RunTracking`."""
    if isinstance(tracker, MlflowTracker):
        return MlflowTracking(tracker, convergence, sources, resume)  # type: ignore[arg-type]
    return RunTracking(tracker, convergence, sources, resume)


def finish(tracker: Tracker | MlflowTracker, rows: Sequence[Mapping[str, Any]], folder: Path, log: Path) -> None:
    """Log the outputs of a run folder, and finish the run on W&B or MLflow.

    Args:
        tracker: of the run.
        rows: of its results table.
        folder: contains the trained prompts or projector.
        log: the convergence file.
    """
    if isinstance(tracker, Tracker):
        finish_fit(tracker, rows, folder, log)
        return
    with tracker.shielded("the results were not logged"):
        tracker.log_table("results", pd.DataFrame(list(rows)))
        if log.is_file():
            tracker.log_table("convergence", pd.read_csv(log))
        for path in sorted(folder.glob("*.safetensors")):
            tracker.log_file(path, "projector" if path.stem == "projector" else "prompts")
        if (folder / "config.yaml").is_file():
            tracker.log_file(folder / "config.yaml", "config")
    tracker.finish()
