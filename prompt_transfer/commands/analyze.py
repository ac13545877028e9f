"""`analyze`: what the tables of studies say."""

from __future__ import annotations

from prompt_transfer.commands.parsing import subcommand


def matrix(file: str, output: str, types: dict[str, str] | None = None) -> None:
    """means of a transfer matrix by task type: matrix FILE --output DIR

    Args:
        file: matrix.csv or results.parquet of `transfer`, or a table with targets in rows and sources in columns.
        output: folder for summary.csv, best_sources.csv and summary.png.
        types: task -> type, for tasks that are not in the registry.
    """
    from prompt_transfer.studies.matrix import analyze_matrix

    analyze_matrix(file, output, types)
    print(output)


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer analyze`."""
    # The file reads best without its option's name.
    if arguments[:1] == ["matrix"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        arguments = ["matrix", "--file", *arguments[1:]]
    subcommand(command, {"matrix": matrix}, arguments)
