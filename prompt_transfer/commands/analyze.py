"""`analyze`: tables and figures from what other commands have written."""

from __future__ import annotations

from prompt_transfer.commands.parsing import subcommand


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
    from prompt_transfer.studies.indicators import analyze

    analyze(prompts, output, matrix, neurons, backbone, resamples, seed)


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer analyze`."""
    subcommand(command, {"indicators": indicators}, arguments)
