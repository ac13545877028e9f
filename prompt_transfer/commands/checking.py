"""Validation of a sweep's options before its first run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from prompt_transfer.commands.training import FitCommand
from prompt_transfer.studies.sweep.plan import Run
from prompt_transfer.utils.errors import UserError


class FitOptions(FitCommand):
    """A parser of `fit` options that creates, loads and writes nothing."""

    def _set_seed(self) -> None:
        self.check_seed()

    def instantiate_classes(self) -> None:
        """Do nothing: only the options are needed."""

    def claim(self, folder: Path) -> None:
        """Skip the folder check: an earlier run may create the folder."""


def check_runs(runs: Sequence[Run]) -> None:
    """Parse the options of every run as `fit` does.

    Raises:
        UserError: an option is unknown, missing or invalid; names the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        for run in runs:
            file.write_text(run.config(), encoding="utf-8")
            try:
                FitOptions("fit", ["--config", str(file)])
            except UserError as error:
                raise UserError(f"run {run.name}: {error}") from error
