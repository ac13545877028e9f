"""`analyze`: tables and figures from the results of other commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prompt_transfer.commands.parsing import subcommand
from prompt_transfer.commands.projection import projection
from prompt_transfer.tracking.options import WandbOptions
from prompt_transfer.utils import results

WANDB = WandbOptions()


def convergence(runs: list[str], output: str, tolerance: float = 0.005) -> None:
    """convergence speed-ups from transferred prompts: convergence RUN... --output DIR

    Args:
        runs: folders of `fit --convergence`, from scratch and transferred, at any depth.
        output: folder for the tables and the figure.
        tolerance: a run has converged within this distance of its best score, a fraction.
    """
    from prompt_transfer.studies.transfer import convergence as study

    overview = study.convergence(runs, output, tolerance)
    rows: list[dict[str, Any]] = overview.to_dict("records")  # type: ignore[assignment]
    results.show(rows, columns=("task", "source", "measure", "unit", "n", "result"))
    print(output)


def indicators(
    prompts: str,
    output: str,
    matrix: str | None = None,
    neurons: str | None = None,
    backbone: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> None:
    """compute indicators of transfer and their correlation with transfer scores

    Writes indicators.parquet (one row per indicator and pair of prompts), correlations.csv (one row per indicator and
    statistic, with intervals) and figures to the output folder.

    Args:
        prompts: folder with prompt files of one backbone; prompts of one task (seeds) are averaged.
        output: folder for tables and figures.
        matrix: transfer matrix as CSV, target tasks as rows, source tasks as columns.
        neurons: folder of captured activations, with the layout of the prompts folder.
        backbone: use only prompts of this backbone.
        resamples: number of bootstrap samples, and of permutations, of tasks.
        seed: seed of both.
    """
    from prompt_transfer.studies.transfer.indicators import analyze

    analyze(prompts, output, matrix, neurons, backbone, resamples, seed)


def matrix(file: str, output: str, types: dict[str, str] | None = None) -> None:
    """means of a transfer matrix by task type: matrix FILE --output DIR

    Args:
        file: matrix.csv or results.parquet of `transfer`, or a table with targets as rows and sources as columns.
        output: folder for summary.csv, contrasts.csv, best_sources.csv and summary.png.
        types: task -> type, for tasks outside the registry.
    """
    from prompt_transfer.studies.transfer.matrix import analyze_matrix

    analyze_matrix(file, output, types)
    print(output)


def dashboard(
    wandb: WandbOptions = WANDB, study: str | None = None, name: str = "prompt-transfer", dry_run: bool = False
) -> None:
    """save a W&B dashboard for all logged values: dashboard --wandb.entity NAME

    Args:
        wandb: user or team, and project.
        study: show only the runs of this group.
        name: name of the dashboard.
        dry_run: print the panels without contacting W&B.
    """
    from prompt_transfer.tracking.dashboard import SECTIONS, create

    rows = [
        {"section": section.name, "panel": panel.title, "kind": panel.kind, "shows": list(panel.shows)}
        for section in SECTIONS
        for panel in section.panels
    ]
    if dry_run:
        results.show(rows)
    else:
        print(create(wandb, study, name))


SUBCOMMANDS: dict[str, Callable[..., Any]] = {
    "convergence": convergence,
    "indicators": indicators,
    "matrix": matrix,
    "dashboard": dashboard,
    "projection": projection,
}
# Subcommand -> usage of its positional argument.
POSITIONAL = {"convergence": "RUN...", "projection": "PROJECTOR...", "matrix": "FILE"}


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer analyze`."""
    subcommand(command, SUBCOMMANDS, arguments, POSITIONAL)
