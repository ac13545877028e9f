"""Summary of a transfer matrix: means by type, best sources, a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from prompt_transfer.analysis import captions, plots
from prompt_transfer.analysis.contrasts import AGAINST, contrasts
from prompt_transfer.analysis.heatmaps import summary_figure
from prompt_transfer.analysis.matrix import Matrix, read_matrix
from prompt_transfer.analysis.matrix_summary import best_sources, summarize
from prompt_transfer.utils import results
from prompt_transfer.utils.files import check_writable_dir


def analyze_matrix(file: str | Path, output: str | Path, types: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Write `summary.csv`, `contrasts.csv`, `best_sources.csv` and `summary.png`, and print means and differences.

    Args:
        file: see `prompt_transfer.analysis.matrix.read_matrix`.
        output: folder.
        types: task -> type, for tasks that are not in the registry.

    Returns:
        The summary (`prompt_transfer.analysis.matrix_summary.summarize`).
    """
    matrix = read_matrix(file, types)
    folder = check_writable_dir(output)
    summary, differences = write_summary(matrix, folder)
    show_summary(summary)
    show_contrasts(differences)
    return summary


def write_summary(matrix: Matrix, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write tables and figure of the summary; return the summary and the contrasts."""
    summary, differences = summarize(matrix), contrasts(matrix)
    results.write(summary, folder / "summary.csv")
    results.write(differences, folder / "contrasts.csv")
    results.write(best_sources(matrix), folder / "best_sources.csv")
    if len(summary):
        plots.save(summary_figure(summary), folder / "summary.png", captions.SUMMARY)
    return summary, differences


def show_summary(summary: pd.DataFrame) -> None:
    """Print means and intervals: task types in rows, kinds of prompts in columns.

    Skips the table of learned targets if it equals that of all targets, and chance-corrected scores over all targets
    if some were not learned (then they divide by noise). Both are in `summary.csv` and in machine-readable output.
    """
    best = "best source of the same type"
    shown: list[pd.DataFrame] = []
    for (measure, targets), table in summary.groupby(["measure", "targets"], sort=False):
        contents = table.drop(columns="targets").reset_index(drop=True)
        again = any(contents.equals(before) for before in shown)
        noise = measure == "chance_corrected" and targets == "all" and (summary["targets"] == "learned").any()
        if not results.keeping() and (again or noise):
            continue
        shown.append(contents)
        rows: dict[str, dict[str, object]] = {}
        everything: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
        for row in table[table["kind"] != best].to_dict("records"):
            ends = "" if pd.isna(row["low"]) else f" [{row['low']:.2f},{results.FIXED}{row['high']:.2f}]"
            rows.setdefault(row["type"], {"type": row["type"]})[row["kind"]] = f"{row['mean']:.3f}{ends}"
        if len(rows) == 2 and len({tuple(list(row.values())[1:]) for row in rows.values()}) == 1:
            # With a single type its row equals that of all targets.
            rows.pop("all", None)
        chosen = "" if targets == "all" else ", targets that were learned"
        few = f" ({table['n_targets'].max()} targets)"
        interval = ", 95 % interval over targets" if table["low"].notna().any() else few
        title = f"{str(measure).replace('_', '-')} score{chosen}: mean over pairs{interval}"
        columns = ["type", *[kind for kind in dict.fromkeys(table["kind"]) if kind != best]]
        # The mean over random prompts summarizes their kinds, which narrow tables drop.
        spare = [column for column in columns if column.startswith("random_")]
        results.show(list(rows.values()), title, columns, everything, spare)
        if "different" not in set(table["kind"]):
            continue  # with a single type the best source always has it
        for row in table[(table["kind"] == best) & (table["type"] == "all")].to_dict("records"):
            same = f"{round(row['mean'] * row['n_targets'])} of {row['n_targets']} targets"
            print(f"{best} for {same} (selected by the scores of this table)")


def show_contrasts(table: pd.DataFrame) -> None:
    """Print the paired differences between same-type sources and others; chance-corrected ones are only in the file."""
    rows: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    shown = []
    for row in rows:
        if row["measure"] == "chance_corrected":
            continue
        ends = "" if pd.isna(row["low"]) else f" [{row['low']:.3f},{results.FIXED}{row['high']:.3f}]"
        shown.append(
            {
                "measure": row["measure"],
                "targets": f"{row['targets']} ({row['n_targets']})",
                "same type minus": AGAINST[row["against"]],
                "difference": f"{row['difference']:+.3f}{ends}",
                "p": "" if pd.isna(row["p_value"]) else f"{row['p_value']:.3f}",
                "positive": f"{row['n_better']} of {row['n_targets']}",
            }
        )
    if shown:
        results.show(shown, "sources of the same type minus others, paired by target", None, rows)
