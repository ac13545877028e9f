"""Tables of a report as LaTeX with rules of the package booktabs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from prompt_transfer.studies.report.content import DASH, MINUS, Table
from prompt_transfer.utils.files import write_text_atomic

# A longer table needs a page break.
LONG = 40
SYMBOLS = {DASH: "--", MINUS: "$-$", "→": r"$\rightarrow$", "\N{NO-BREAK SPACE}": "~"}


def to_latex(table: Table, label: str) -> str:
    """Return a table as LaTeX: escaped text, booktabs rules, numbers right-aligned with their intervals.

    Args:
        table: the table; more than 40 rows become a `longtable`.
        label: for `\\ref`.
    """
    texts = [[column.text(row) for column in table.columns] for row in table.rows]
    frame = pd.DataFrame(texts, columns=[column.title for column in table.columns])
    written = frame.to_latex(
        index=False,
        escape=True,
        longtable=len(frame) > LONG,
        column_format="".join("r" if column.kind == "number" else "l" for column in table.columns),
        caption=_escape(f"{table.title}. {table.caption}".rstrip()) if table.caption else _escape(table.title),
        label=f"tab:{label}",
        position=None if len(frame) > LONG else "htbp",
    )
    for symbol, code in SYMBOLS.items():
        written = written.replace(symbol, code)
    needs = "booktabs, longtable" if len(frame) > LONG else "booktabs"
    return f"% needs \\usepackage{{{needs}}}\n{written}"


def _escape(text: str) -> str:
    """Escape text for LaTeX; `DataFrame.to_latex` leaves captions as they are."""
    codes = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    codes |= {symbol: f"\\{symbol}" for symbol in "&%$#_{}"}
    return "".join(codes.get(letter, letter) for letter in text)


def write(table: Table, path: Path, label: str) -> Path:
    """Write a table to a `.tex` file."""
    write_text_atomic(path, to_latex(table, label))
    return path
