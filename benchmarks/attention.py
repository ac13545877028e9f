"""Accuracy of `shared` relative to `full` attention: a table of the runs of `configs/study/attention.yaml`.

    prompt-transfer sweep --config study/attention.yaml --data.root ../shared/data --output runs/attention
    python benchmarks/attention.py --sweep runs/attention --output results/attention.csv

One row per backbone and task: best validation accuracy in each mode, averaged over seeds, and the paired difference
`shared` minus `full` with a bootstrap interval over seeds; the row `all` is the mean over tasks, with an interval over
tasks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from prompt_transfer.commands.parsing import call
from prompt_transfer.tasks.metrics import interval_over
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic

MODES = ["full", "shared"]


def table(scores: pd.DataFrame) -> pd.DataFrame:
    """Compute the table from one row per prompt: backbone, task, seed, attention, value, majority."""
    paired = scores.pivot_table(index=["backbone", "task", "seed"], columns="attention", values="value")
    missing = [mode for mode in MODES if mode not in paired] or paired[paired[MODES].isna().any(axis=1)].index.tolist()
    if missing:
        raise UserError(f"both modes are needed of every backbone, task and seed; missing: {missing}")
    paired["difference"] = paired["shared"] - paired["full"]
    majority = scores.groupby("task")["majority"].first()
    rows = []
    for backbone, part in paired.groupby("backbone", sort=False):
        tasks = part.groupby("task").mean()
        for task, means in tasks.iterrows():
            low, high = interval_over(part.loc[(backbone, task), "difference"].to_numpy())
            rows.append(
                {"backbone": backbone, "task": task, "majority": majority[task], **means, "low": low, "high": high}
            )
        low, high = interval_over(tasks["difference"].to_numpy())
        rows.append({"backbone": backbone, "task": "all", **tasks.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def run(sweep: str, output: str) -> None:
    """Write the table as CSV.

    Args:
        sweep: folder of the finished sweep.
        output: the file.
    """
    file = Path(sweep) / "results.parquet"
    if not file.is_file():
        raise UserError(f"{file} is missing: finish the sweep first, with the same command")
    scores = pd.read_parquet(file)
    found = table(scores[scores["metric"] == "accuracy"])
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(output, found.to_csv(index=False))
    results.show(found.to_dict("records"))


if __name__ == "__main__":
    call(run, "attention", sys.argv[1:])
