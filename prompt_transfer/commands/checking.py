"""Options of runs that are to come, parsed before the first of them starts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from prompt_transfer.commands.training import FitCommand
from prompt_transfer.studies.sweep.plan import Run
from prompt_transfer.utils.errors import UserError


class FitOptions(FitCommand):
    """The options of a `fit`, checked; nothing is made, loaded or written."""

    def _set_seed(self) -> None:
        self.check_seed()

    def instantiate_classes(self) -> None:
        """Nothing: parsing is all that is asked for."""

    def claim(self, folder: Path) -> None:
        """Whose turn has not come yet may lie in a folder that another run still makes."""


def check_runs(runs: Sequence[Run]) -> None:
    """Parse the options of every run as `fit` will.

    Raises:
        UserError: an option is unknown, missing or has a value that it cannot have; says in which run.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        for run in runs:
            file.write_text(run.config(), encoding="utf-8")
            try:
                FitOptions("fit", ["--config", str(file)])
            except UserError as error:
                raise UserError(f"run {run.name}: {error}") from error
