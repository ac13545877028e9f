"""Draw the figures in results/ again from the stored tables: python benchmarks/figures.py --results results.

The learning curve of the quick start is drawn by `prompt-transfer quickstart`; it gets its caption here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from prompt_transfer.analysis import captions, comparison_plots, curves, indicator_plots, neuron_plots, plots
from prompt_transfer.analysis.convergence import summarise
from prompt_transfer.analysis.matrix import from_results, read_matrix
from prompt_transfer.analysis.projection import scores_figure
from prompt_transfer.studies.compare.methods import TITLES
from prompt_transfer.studies.report.convergence_curves import curve_figure
from prompt_transfer.studies.transfer.indicators import draw_scatter, square_of_tasks
from prompt_transfer.studies.transfer.matrix import write_summary
from prompt_transfer.studies.transfer.report import draw
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils import results
from prompt_transfer.utils.files import write_text_atomic


def transfer(folder: Path) -> None:
    """Draw matrix and means of a transfer study."""
    matrix = from_results(pd.read_parquet(folder / "results.parquet"))
    draw(matrix, folder)
    write_summary(matrix, folder)


def neurons(folder: Path, transfer_folder: Path) -> None:
    """Draw overlap, indicators, and masks where they were measured."""
    pairs = pd.read_parquet(folder / "indicators.parquet")
    pairs = pairs.astype({name: str for name in pairs if name != "value"})
    mine = pairs[pairs["indicator"] == "neuron_overlap"]
    names = list(dict.fromkeys(mine["target_prompt"]))
    tasks = list(mine.drop_duplicates("target_prompt")["target"])
    whole = mine.pivot(index="target_prompt", columns="source_prompt", values="value").loc[names, names].to_numpy()
    square = square_of_tasks(np.asarray(whole, dtype=float), tasks)
    types = [get_task(task).type for task in square.index]
    plots.save(indicator_plots.similarity_matrix(square, types, "ON"), folder / "overlap.png", captions.OVERLAP)
    correlations = pd.read_csv(folder / "correlations.csv")
    rows = correlations[~correlations["indicator"].str.contains("/")]
    plots.save(indicator_plots.indicator_ranking(rows), folder / "ranking.png", captions.RANKING)
    plots.save(indicator_plots.layer_curve(correlations), folder / "layers.png", captions.INDICATOR_LAYERS)
    matrix = read_matrix(transfer_folder / "matrix.csv")
    order = list(square.index)
    relative = matrix.measured(matrix.scores, "relative").loc[order, order]
    draw_scatter(folder, pairs, correlations, relative)
    if (folder / "masking.csv").is_file():
        summary = pd.read_csv(folder / "masking.csv")
        caption = captions.MASKING.format(tasks=summary["tasks"].max())
        plots.save(neuron_plots.masking_curve(summary), folder / "masking.png", caption)


def convergence(folder: Path) -> None:
    """Summarize the pairs of runs and draw the speed-ups, and learning curves where the evaluations are stored."""
    pairs = pd.read_csv(folder / "pairs.csv")
    # The columns of missing sources and values hold None, as in memory.
    summary = pd.DataFrame(summarise(pairs.astype(object).where(pairs.notna(), None).to_dict("records")))  # type: ignore[arg-type]
    results.write(summary, folder / "speedups.csv")
    plots.save(curves.speedups(summary), folder / "speedups.png", captions.SPEEDUPS)
    if (folder / "curves.csv").is_file():
        figure = curve_figure(folder / "curves.csv")
        plots.save(figure.draw(), folder / "curves.png", figure.caption)


def comparison(folder: Path) -> None:
    """Draw scores, and learning curves where the evaluations are stored."""
    summary, runs = pd.read_csv(folder / "summary.csv"), pd.read_csv(folder / "results.csv")
    plots.save(comparison_plots.scores(summary, runs, TITLES), folder / "compare.png", captions.COMPARISON)
    if (folder / "curves.csv").is_file():
        evaluations = pd.read_csv(folder / "curves.csv")
        majority = float(evaluations["majority"].iloc[0])
        ax = comparison_plots.curves(evaluations, TITLES, str(evaluations["metric"].iloc[0]), majority)
        plots.save(ax, folder / "curves.png", captions.COMPARISON_CURVES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"))
    root = parser.parse_args().results
    for folder in sorted(root.glob("*/cross_task")):
        transfer(folder)
        neurons(folder.with_name("neurons"), folder)
    for table in sorted(root.glob("*/projection/*/projection.csv")):
        plots.save(scores_figure(pd.read_csv(table)), table.with_name("projection.png"), captions.PROJECTION)
    for table in sorted(root.rglob("pairs.csv")):
        convergence(table.parent)
    for table in sorted(root.glob("compare/*/summary.csv")):
        comparison(table.parent)
    write_text_atomic(root / "quickstart" / "learning_curve.txt", captions.LEARNING_CURVE + "\n")


if __name__ == "__main__":
    main()
