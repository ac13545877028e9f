"""A run on W&B that cannot stop the work: whatever W&B does, results are on disk and the command goes on."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_transfer.tracking.options import WandbOptions, clean
from prompt_transfer.utils.files import write_text_atomic

if TYPE_CHECKING:
    import pandas as pd

ID_FILE = "wandb.json"
STEP = "trainer/global_step"
# W&B shows no more rows of a table; longer ones are in the files of the artifact.
MOST_ROWS = 10_000
LONGEST_TAG = 64


class Tracker:
    """One run on W&B, or nothing where W&B cannot be had.

    Before `start`, after `finish` and after a failed start its methods do nothing. What W&B raises becomes a warning.

    Args:
        job_type: the command.
        name: of the run.
        folder: gets `wandb/` (unless WANDB_DIR says otherwise) and, for runs that can be resumed, `wandb.json`.
        config: options, and study, task, backbone and seed where they are known; secrets are left out here.
        options: project, entity, group and tags.
        tags: of the run.
    """

    def __init__(
        self,
        job_type: str,
        name: str,
        folder: str | Path,
        config: Mapping[str, Any],
        options: WandbOptions,
        tags: Sequence[str] = (),
    ) -> None:
        self.job_type, self.name, self.folder = job_type, name, Path(folder)
        self.config, self.options = clean(config), options.resolved()
        given = [tag.strip() for tag in (self.options.tags or "").split(",")]
        self.tags = list(dict.fromkeys(tag[:LONGEST_TAG] for tag in (*tags, *given) if tag))
        self.run: Any = None

    def start(self, keep_id: bool = False, resume: bool = False) -> None:
        """Begin the run; without network or account an offline one, which `wandb sync` sends later.

        Args:
            keep_id: write `wandb.json`, so that the run can be resumed.
            resume: go on with the run that `wandb.json` names.
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
            # W&B keeps the command line among the facts of the machine.
            facts["settings"] = wandb.Settings(x_disable_meta=True)
        # An agent of a W&B sweep says which run this is.
        if resume and path.is_file() and not os.environ.get("WANDB_RUN_ID"):
            with self.shielded("the run begins anew there"):
                facts["id"] = json.loads(path.read_text())["id"]
        try:
            self.run = wandb.init(**facts)
        except Exception as error:
            reason = _one_line(error)
            with self.shielded("nothing is sent there"):
                self.run = wandb.init(**facts, mode="offline")
                warnings.warn(
                    f"W&B: {reason}; this run is kept offline, `wandb sync {self.run.settings.sync_dir}` sends it",
                    stacklevel=2,
                )
        if self.run is not None and keep_id:
            with self.shielded(f"{path} was not written"):
                write_text_atomic(path, json.dumps({"id": self.run.id, "project": self.options.project}) + "\n")

    @contextmanager
    def shielded(self, what: str) -> Iterator[None]:
        """Turn any exception into a warning that says what was not done."""
        try:
            yield
        except Exception as error:
            warnings.warn(f"W&B: {_one_line(error)}; {what}, files in {self.folder} are complete", stacklevel=3)

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Metrics, tables, images or charts by name.

        Args:
            values: what is logged together.
            step: optimizer step.
        """
        if self.run is not None and values:
            with self.shielded(f"{', '.join(list(values)[:3])} was not logged"):
                self.run.log({**values, **({} if step is None else {STEP: step})})

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Numbers that stand for the whole run, columns of the table of runs."""
        if self.run is not None:
            with self.shielded("the summary was not written"):
                self.run.summary.update({key: value for key, value in values.items() if value is not None})

    def add(self, artifact: Any) -> None:
        """An artifact that the run has made."""
        if self.run is not None:
            with self.shielded(f"the artifact {artifact.name} was not logged"):
                self.run.log_artifact(artifact)

    def use(self, artifact: Any) -> None:
        """An artifact that the run has used.

        Equal contents under one name are one version to W&B, so an artifact that is made anew from the file is the
        one that another run has logged; no run needs to know of the other, and it works offline too.
        """
        if self.run is None:
            return
        with self.shielded(f"the artifact {artifact.name} was not linked"):
            if self.run.offline:
                # `use_artifact` refuses to work offline; this is what it does with an artifact that was made here.
                self.run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)
            else:
                self.run.use_artifact(artifact)

    def finish(self, exit_code: int = 0) -> None:
        """End the run; waits until all is sent."""
        if self.run is not None:
            run, self.run = self.run, None
            with self.shielded("the run may be incomplete there"):
                run.finish(exit_code=exit_code)


def to_table(frame: pd.DataFrame) -> Any:
    """A frame as a W&B table; missing values are empty, lists and the like are text."""
    import wandb

    shown = frame.head(MOST_ROWS)
    columns = [[_plain(value) for value in shown[column].tolist()] for column in shown]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return wandb.Table(columns=[str(column) for column in shown], data=rows, allow_mixed_types=True)


def _plain(value: Any) -> Any:
    # `NA` of pandas is neither equal to itself nor not.
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
