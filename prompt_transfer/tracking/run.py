"""A fault-tolerant W&B run: failures become warnings, and results are always on disk."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prompt_transfer.tracking.base import BaseTracker, one_line
from prompt_transfer.tracking.options import WandbOptions, clean
from prompt_transfer.utils.files import write_text_atomic

if TYPE_CHECKING:
    import pandas as pd

ID_FILE = "wandb.json"
STEP = "trainer/global_step"
# W&B displays at most this many rows of a table; the artifact's files are complete.
MOST_ROWS = 10_000


class Tracker(BaseTracker[WandbOptions]):
    """A W&B run whose errors become warnings.

    Its methods do nothing before `start`, after `finish` and after a failed start. The folder receives `wandb/` (unless
    WANDB_DIR is set) and, for resumable runs, `wandb.json`.
    """

    service, longest_tag = "W&B", 64

    @property
    def run_id(self) -> str | None:
        """The run's id; None before the start."""
        return None if self.run is None else str(self.run.id)

    def start(self, keep_id: bool = False, resume: bool = False) -> None:
        """Start the run; without network or account, start an offline run for `wandb sync`.

        Args:
            keep_id: write `wandb.json` for resuming the run later.
            resume: resume the run recorded in `wandb.json`.
        """
        import wandb

        path = self.folder / ID_FILE
        facts: dict[str, Any] = {
            "project": self.options.project,
            "entity": self.options.entity,
            "group": self.options.group,
            "job_type": self.job_type,
            "name": os.environ.get("WANDB_NAME") or self.name,
            "tags": self.tags,
            "config": self.config,
            "dir": os.environ.get("WANDB_DIR") or str(self.folder),
            "resume": "allow",
        }
        if clean(sys.argv) != sys.argv:
            # W&B's metadata include the command line.
            facts["settings"] = wandb.Settings(x_disable_meta=True)
        # The agent of a W&B sweep sets the run id.
        if resume and path.is_file() and not os.environ.get("WANDB_RUN_ID"):
            with self.shielded("a new W&B run is started"):
                facts["id"] = json.loads(path.read_text())["id"]
        try:
            self.run = wandb.init(**facts)
        except Exception as error:
            reason = one_line(error)
            with self.shielded("nothing is logged to W&B"):
                self.run = wandb.init(**facts, mode="offline")
                warnings.warn(
                    f"W&B: {reason}; the run is stored offline: upload it with `wandb sync "
                    f"{self.run.settings.sync_dir}`",
                    stacklevel=2,
                )
        if self.run is not None and keep_id:
            with self.shielded(f"{path} was not written"):
                write_text_atomic(path, json.dumps({"id": self.run.id, "project": self.options.project}) + "\n")

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics, tables, images or charts.

        Args:
            values: name -> value.
            step: optimizer step.
        """
        if self.run is not None and values:
            with self.shielded(f"{', '.join(list(values)[:3])} was not logged"):
                self.run.log({**values, **({} if step is None else {STEP: step})})

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Set summary values, the columns of W&B's run table; None is skipped."""
        if self.run is not None:
            with self.shielded("the summary was not written"):
                self.run.summary.update({key: value for key, value in values.items() if value is not None})

    def add(self, artifact: Any) -> None:
        """Log an output artifact."""
        if self.run is not None:
            with self.shielded(f"the artifact {artifact.name} was not logged"):
                self.run.log_artifact(artifact)

    def use(self, artifact: Any) -> None:
        """Log an input artifact.

        W&B versions artifacts by name and content: one rebuilt from the file is the version another run logged. This
        works offline too.
        """
        if self.run is None:
            return
        with self.shielded(f"the artifact {artifact.name} was not linked"):
            if self.run.offline:
                # `use_artifact` refuses to work offline; it makes this call for a local artifact.
                self.run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)
            else:
                self.run.use_artifact(artifact)

    def finish(self, exit_code: int = 0) -> None:
        """End the run after the upload completes."""
        if self.run is not None:
            run, self.run = self.run, None
            with self.shielded("the run may be incomplete there"):
                run.finish(exit_code=exit_code)


def to_table(frame: pd.DataFrame) -> Any:
    """Return a frame as a W&B table; missing values become None, non-scalar values strings."""
    import wandb

    shown = frame.head(MOST_ROWS)
    columns = [[_plain(value) for value in shown[column].tolist()] for column in shown]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return wandb.Table(columns=[str(column) for column in shown], data=rows, allow_mixed_types=True)


def _plain(value: Any) -> Any:
    # Comparing pandas' NA with itself gives NA, not a bool.
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)
