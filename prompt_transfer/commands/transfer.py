"""`transfer`: scores of every prompt on every task."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_transfer.commands.messages import quiet, show_warning
from prompt_transfer.commands.parsing import call
from prompt_transfer.studies.transfer.study import TransferStudy
from prompt_transfer.studies.transfer.study import transfer as run_study
from prompt_transfer.utils import results

if TYPE_CHECKING:
    import pandas as pd


def transfer(study: TransferStudy) -> None:
    """score every prompt of a folder on every task"""
    frame = run_study(study)
    if frame.empty:
        return  # the first process prints the table
    from prompt_transfer.analysis.matrix import from_results
    from prompt_transfer.studies.transfer.matrix import show_contrasts, show_summary, write_summary

    show(frame)
    summary, differences = write_summary(from_results(frame), Path(study.output))
    show_summary(summary)
    show_contrasts(differences)
    print(study.output)


def show(frame: pd.DataFrame) -> None:
    """Print one row per target: its own prompt, the best other prompt, and the baselines."""
    import pandas as pd

    from prompt_transfer.analysis.matrix import BASELINES

    rows = []
    for target, mine in frame.groupby("task", sort=False):
        trained = mine[mine["kind"] == "trained"].groupby("source")["value"].mean()
        others = trained.drop(str(target), errors="ignore")
        random = mine[mine["kind"] == "random"].groupby("source", sort=False)["value"].mean()
        first = mine.iloc[0]
        baseline = mine[mine["kind"].isin(BASELINES)].iloc[0]
        rows.append(
            {
                "target": target,
                "own": float(trained[target]) if target in trained else None,
                "best other": float(others.max()) if len(others) else None,
                "of": others.idxmax() if len(others) else None,
                **{str(kind).removeprefix("random_"): float(value) for kind, value in random.items()},
                str(baseline["kind"]): float(baseline["value"]),
                "learned": "-" if pd.isna(first["learned"]) else ("yes" if first["learned"] else "no"),
            }
        )
    results.show(rows, title="scores; vocabulary, uniform: means of random prompts")


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer transfer`."""
    quiet()
    warnings.showwarning = show_warning
    call(transfer, command, arguments)
