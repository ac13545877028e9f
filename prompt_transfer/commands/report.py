"""`report`: one page with everything about a study or run."""

from __future__ import annotations

from pathlib import Path

from prompt_transfer.commands.parsing import call
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError


def report(folder: str, output: str = "report.html", pdf: str | None = None, latex: str | None = None) -> None:
    """write one self-contained HTML page about a study or run: report DIR --output FILE.html

    Finds the results of transfer, analyze, neurons, prompts recommend, compare, sweep, fit, test and quickstart below
    the folder, one section each, and names the tables that it does not know. The page needs no network. Needs the
    extra `report`.

    Args:
        folder: output folder of a command, or a folder of such folders.
        output: the HTML file.
        pdf: folder for the figures as PDF, each with its caption as a text file.
        latex: folder for the tables as LaTeX (booktabs).
    """
    if not Path(folder).is_dir():  # told before the imports of the study
        raise UserError(f"no such folder: {folder}; give the output folder of a command, or a folder of such folders")
    from prompt_transfer.studies.report.content import counted
    from prompt_transfer.studies.report.study import report as study

    written = study(folder, output, pdf, latex)
    rows = [{"sections": written.sections, "figures": len(written.figures), "tables": len(written.tables)}]
    results.keep(rows, "report")
    if written.left_out and not results.keeping():
        folders = list(dict.fromkeys(str(path.parent) for path in written.left_out))
        print(f"no section for {counted(len(written.left_out), 'table')}, listed on the page, in: {', '.join(folders)}")
    for path, files, noun in ((pdf, written.figures, "figure"), (latex, written.tables, "table")):
        if path is not None and not results.keeping():
            print(f"{counted(len(files), noun)} in {path}" if files else f"no {noun}s: these sections have none")
    print(written.page)


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer report`."""
    call(report, command, arguments, "DIR")
