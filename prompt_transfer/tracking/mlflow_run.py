"""A fault-tolerant MLflow run: failures become warnings, and results are always on disk."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_transfer.tracking.base import BaseTracker
from prompt_transfer.tracking.options import MlflowOptions
from prompt_transfer.utils.errors import UserError, install_command
from prompt_transfer.utils.files import write_text_atomic

if TYPE_CHECKING:
    import pandas as pd

ID_FILE = "mlflow.json"
# MLflow's limits: characters of a parameter's value, and entities of one request.
LONGEST_VALUE, MOST_AT_ONCE = 500, 100


def check_installed() -> None:
    """Raise UserError if MLflow is missing."""
    from importlib.util import find_spec

    if find_spec("mlflow") is None:
        raise UserError(f"--logger mlflow needs an extra: {install_command('mlflow')}")


class MlflowTracker(BaseTracker[MlflowOptions]):
    """An MLflow run with the interface of `tracking.run.Tracker`.

    Its methods do nothing before `start`, after `finish` and after a failed start. The folder receives `mlflow.json`
    for resumable runs.
    """

    service = "MLflow"
    client: Any = None

    @property
    def run_id(self) -> str | None:
        """The run's id; None before the start."""
        return None if self.run is None else str(self.run.info.run_id)

    def start(self, keep_id: bool = False, resume: bool = False) -> None:
        """Start the run.

        Args:
            keep_id: write `mlflow.json` for resuming the run later.
            resume: resume the run recorded in `mlflow.json`.
        """
        path = self.folder / ID_FILE
        # MLflow would wait for minutes for a server that does not answer.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        uri = str(self.options.tracking_uri)
        if "://" not in uri:
            uri = Path(uri).expanduser().absolute().as_uri()
        if uri.startswith("file:"):
            # MLflow 3 reads and writes folders only on request.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        with self.shielded("nothing is logged to MLflow"):
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=uri)
            if resume and path.is_file():
                with self.shielded("a new MLflow run is started"):
                    known = json.loads(path.read_text())["id"]
                    client.update_run(known, status="RUNNING")
                    self.run = client.get_run(known)
            if self.run is None:
                experiment = client.get_experiment_by_name(self.options.experiment)
                number = experiment.experiment_id if experiment else client.create_experiment(self.options.experiment)
                facts = {"job_type": self.job_type, "study": self.options.group, "tags": ",".join(self.tags)}
                tags = {key: value for key, value in facts.items() if value}
                self.run = client.create_run(number, run_name=self.name, tags=tags)
                self.client = client
                self._log_config()
            self.client = client
        if self.run is not None and keep_id:
            with self.shielded(f"{path} was not written"):
                facts = {"id": self.run_id, "experiment": self.options.experiment}
                write_text_atomic(path, json.dumps(facts) + "\n")

    def _log_config(self) -> None:
        from mlflow.entities import Param

        with self.shielded("the options were not logged"):
            known = {_name(name): str(value) for name, value in _flat(self.config) if value is not None}
            parameters = [Param(name, value[:LONGEST_VALUE]) for name, value in known.items()]
            for first in range(0, len(parameters), MOST_AT_ONCE):
                self.client.log_batch(self.run_id, params=parameters[first : first + MOST_AT_ONCE])

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics.

        Args:
            values: name -> number; other values are skipped.
            step: optimizer step.
        """
        if self.run is None:
            return
        with self.shielded(f"{', '.join(list(values)[:3])} was not logged"):
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
            metrics = [Metric(_name(name), float(value), now, step or 0) for name, value in numbers.items()]
            for first in range(0, len(metrics), MOST_AT_ONCE):
                self.client.log_batch(self.run_id, metrics=metrics[first : first + MOST_AT_ONCE])

    def log_table(self, name: str, frame: pd.DataFrame) -> None:
        """Log a table as the artifact `tables/NAME.csv`."""
        if self.run is None:
            return
        with self.shielded(f"the table {name} was not logged"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.csv"
            frame.to_csv(path, index=False)
            self.client.log_artifact(self.run_id, str(path), "tables")

    def log_file(self, path: Path, place: str) -> None:
        """Log a file as an artifact in the folder `place`."""
        if self.run is not None:
            with self.shielded(f"{path.name} was not logged"):
                self.client.log_artifact(self.run_id, str(path), place)

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        if self.run is not None:
            with self.shielded(f"the tag {name} was not set"):
                self.client.set_tag(self.run_id, name, value)

    def finish(self, exit_code: int = 0) -> None:
        """End the run."""
        if self.run is not None:
            with self.shielded("the run may be incomplete there"):
                self.client.set_terminated(self.run_id, "FAILED" if exit_code else "FINISHED")
            self.run = None


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _name(text: str) -> str:
    """Return a valid name of a metric or parameter."""
    return re.sub(r"[^\w\-. :/]+", "_", text)


def source_facts(paths: Sequence[Path]) -> str:
    """Return the digests of input prompt files, by which a run is found again."""
    import hashlib

    found = []
    for path in paths:
        with suppress(OSError):
            found.append(f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}")
    return ", ".join(found)[:5000]
