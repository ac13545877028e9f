"""`report`: collect everything below a folder and write the page, figures and tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prompt_transfer.studies.report.content import Section
from prompt_transfer.studies.report.kinds import left_out, sections
from prompt_transfer.studies.report.latex import write
from prompt_transfer.studies.report.origin import origin_of
from prompt_transfer.studies.report.page import Page, check_libraries, render
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic


@dataclass(frozen=True)
class Written:
    """Files of a report.

    Attributes:
        page, figures, tables: files.
        sections: number of sections.
        left_out: tables below the folder that no section shows, relative to it.
    """

    page: Path
    sections: int
    figures: list[Path]
    tables: list[Path]
    left_out: list[Path]


def report(
    folder: str | Path, output: str | Path, pdf: str | Path | None = None, latex: str | Path | None = None
) -> Written:
    """Write a report of everything below a folder.

    Args:
        folder: output folder of a command, or a folder of such folders.
        output: the HTML file.
        pdf: folder for the figures as PDF, each with its caption as text; None: no figures.
        latex: folder for the tables as LaTeX; None: no tables.

    Raises:
        UserError: nothing to report, a damaged table, a missing library, or an output that is not an HTML file.
    """
    output, root = Path(output), Path(folder)
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {output} must end in .html: the report is one HTML file")
    check_libraries()
    found = sections(root)
    unknown = [path.relative_to(root) for path in left_out(root)]
    page = Page(
        title=root.resolve().name.replace("_", " "),
        sections=[
            (section, origin_of(section.folder, section.command), str(_inner(section.folder, root)))
            for section in found
        ],
        left_out=_by_folder(unknown),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    written = Written(output, len(found), [], [], unknown)
    write_text_atomic(output, render(page))
    names = _names(found, root)
    if pdf is not None:
        written.figures.extend(_figures(found, names, Path(pdf)))
    if latex is not None:
        for section, name in zip(found, names, strict=True):
            for table in section.tables:
                label = f"{name}-{table.name}".replace("_", "-")
                written.tables.append(write(table, Path(latex) / f"{label}.tex", label))
    return written


def _by_folder(paths: list[Path]) -> dict[str, str]:
    """Return folder -> names of its tables."""
    folders = dict.fromkeys(path.parent for path in paths)
    return {str(folder): ", ".join(path.name for path in paths if path.parent == folder) for folder in folders}


def _figures(found: list[Section], names: list[str], folder: Path) -> list[Path]:
    from prompt_transfer.analysis import plots

    return [
        plots.save(figure.draw(), folder / f"{name}-{figure.name}.pdf".replace("_", "-"), figure.caption)
        for section, name in zip(found, names, strict=True)
        for figure in section.figures
    ]


def _names(found: list[Section], root: Path) -> list[str]:
    """Return one file name stem per section: its folder and command, unique."""
    names: list[str] = []
    for section in found:
        stem = "-".join([*_inner(section.folder, root).parts, section.command])
        stem = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-").lower()
        names.append(stem if stem not in names else f"{stem}-{names.count(stem) + 1}")
    return names


def _inner(folder: Path, root: Path) -> Path:
    """Return a folder relative to the reported one."""
    folder, root = folder.resolve(), root.resolve()
    return folder.relative_to(root) if folder.is_relative_to(root) else Path(folder.name)
