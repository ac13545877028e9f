"""The HTML page of a report: one file with styles, script, chart library and data, which needs no network."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from prompt_transfer.studies.report.content import DASH, Section, Table
from prompt_transfer.studies.report.origin import Origin
from prompt_transfer.utils.errors import UserError, install_command
from prompt_transfer.utils.results import plain
from prompt_transfer.version import __version__

# Rows of a table beyond this number stay in the results file: browsers slow down.
MOST_ROWS = 2000


@dataclass(frozen=True)
class Page:
    """Content of the page.

    Attributes:
        title: heading of the page.
        sections: the sections, each with the origin of its results and its folder below the reported one.
        left_out: folder -> names of its tables that no section shows.
        made: time of writing.
    """

    title: str
    sections: Sequence[tuple[Section, Origin, str]]
    left_out: Mapping[str, str]
    made: str


def check_libraries() -> None:
    """Check that the libraries of the extra `report` are installed.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in ("jinja2", "vl_convert") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"reports need {' and '.join(missing)}: {install_command('report')}")


def render(page: Page) -> str:
    """Return the page as HTML."""
    import vl_convert
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("prompt_transfer.studies.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = resources.files("prompt_transfer.studies.report") / "templates"
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version="6.4")
    titles = [section.title for section, _, _ in page.sections]
    return environment.get_template("page.html").render(
        page=page,
        sections=[
            _with_ids(number, *entry, titles.count(entry[0].title) > 1) for number, entry in enumerate(page.sections)
        ],
        style=(files / "page.css").read_text(encoding="utf-8"),
        script=(files / "page.js").read_text(encoding="utf-8"),
        library=library.replace("</script", "<\\/script"),
        version=__version__,
        dash=DASH,
    )


def _with_ids(number: int, section: Section, origin: Origin, place: str, repeated: bool) -> dict[str, Any]:
    """Return a section for the template, with ids that are unique on the page."""
    name = f"s{number}"
    return {
        "id": name,
        "section": section,
        "place": place,
        "repeated": repeated,
        "origin": origin,
        "charts": [
            {"id": f"{name}-{chart.name}", "chart": chart, "spec": _plain(chart.spec)} for chart in section.charts
        ],
        "tables": [{"id": f"{name}-{table.name}-table", **_table(table)} for table in section.tables],
    }


def _plain(value: Any) -> Any:
    """Return a specification as JSON values: NaN as null."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return plain(value)


def _table(table: Table) -> dict[str, Any]:
    rows = []
    for row in table.rows[:MOST_ROWS]:
        cells = []
        for column in table.columns:
            # An interval stays on one line, below its number where a column is narrow.
            text, order = column.text(row), column.order(row)
            text = text.replace(", ", ",\N{NO-BREAK SPACE}") if column.ends else text
            # The order is written only where it differs from the text.
            shown = str(order) if isinstance(order, float | int) and str(order) != text else None
            cells.append({"text": text, "order": shown, "missing": column.missing if text == DASH else None})
        rows.append(cells)
    return {"table": table, "rows": rows, "left_out": max(0, len(table.rows) - MOST_ROWS)}
