"""`analyze`: tables and figures from what other commands left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prompt_transfer.commands.parsing import collect_positionals, expand_flags, subcommand
from prompt_transfer.tracking.options import WandbOptions
from prompt_transfer.utils import results

WANDB = WandbOptions()


def convergence(runs: list[str], output: str, tolerance: float = 0.005) -> None:
    """how much faster runs converge from a transferred prompt

    Args:
        runs: folders of `fit --convergence`, vanilla and transferred, or folders that hold them.
        output: folder for the tables and the figure.
        tolerance: how near its best a run counts as converged, a fraction.
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
    """which numbers tell, from the prompts alone, where a prompt transfers

    Leaves indicators.parquet (a row an indicator and pair of prompts), correlations.csv (a row an indicator and
    statistic, with intervals) and figures in the output folder.

    Args:
        prompts: folder of prompt files for one backbone; several of a task (seeds) are averaged.
        output: folder for tables and figures.
        matrix: transfer matrix as CSV: a row a target task, a column a source task.
        neurons: folder of captured activations; a file lies there as its prompt does in the folder of prompts.
        backbone: take only the prompts for this backbone, by the name in their files.
        resamples: bootstrap draws, and permutations, of tasks.
        seed: of both.
    """
    from prompt_transfer.studies.transfer.indicators import analyze

    analyze(prompts, output, matrix, neurons, backbone, resamples, seed)


def matrix(file: str, output: str, types: dict[str, str] | None = None) -> None:
    """means of a transfer matrix by task type: matrix FILE --output DIR

    Args:
        file: matrix.csv or results.parquet of `transfer`, or a table with targets in rows and sources in columns.
        output: folder for summary.csv, best_sources.csv and summary.png.
        types: task -> type, for tasks that are not in the registry.
    """
    from prompt_transfer.studies.transfer.matrix import analyze_matrix

    analyze_matrix(file, output, types)
    print(output)


def dashboard(
    wandb: WandbOptions = WANDB, study: str | None = None, name: str = "prompt-transfer", dry_run: bool = False
) -> None:
    """a saved view on W&B with panels for all that runs log: dashboard --wandb.entity NAME

    Args:
        wandb: user or team, and project.
        study: show the runs of this group alone.
        name: of the view.
        dry_run: show the panels and send nothing.
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
}
# Subcommands that take files or folders without an option's name -> that option, a list.
POSITIONAL = {"convergence": "--runs", "projection": "--projectors"}


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer analyze`."""
    if arguments[:1] == ["dashboard"]:
        arguments = expand_flags(arguments, ["--dry_run"])
    # One file reads best without its option's name.
    if arguments[:1] == ["matrix"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        arguments = ["matrix", "--file", *arguments[1:]]
    if arguments and arguments[0] in POSITIONAL:
        arguments = [arguments[0], *collect_positionals(POSITIONAL[arguments[0]], arguments[1:])]
    table = dict(SUBCOMMANDS)
    if not arguments or arguments[0] not in table:
        # Its options are of types that take seconds to import, which the others do without.
        from prompt_transfer.commands.projection import projection

        table["projection"] = projection
    subcommand(command, table, arguments, {"convergence": "RUN...", "projection": "PROJECTOR...", "matrix": "FILE"})
