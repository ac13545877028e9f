"""The page of a report in a real browser: no error, no request, numbers on hover, sorting, filter, themes, widths.

Needs Chromium (`apt install chromium`, or the variable CHROMIUM) and playwright (the extra `browser`). Without them the
tests are skipped; with BROWSER_TESTS=required, as in `make test-browser`, they fail.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

REQUIRED = os.environ.get("BROWSER_TESTS") == "required"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """Yield a browser and the address of the report of the stored cross-task study."""
    absent = pytest.fail if REQUIRED else pytest.skip
    if CHROMIUM is None:
        absent("no Chromium found: apt install chromium, or set CHROMIUM")
    try:
        api = importlib.import_module("playwright.sync_api")
        importlib.import_module("vl_convert")
    except ImportError as error:
        absent(f"{error}: pip install prompt_transfer[report,browser]")
    from prompt_transfer.studies.report.study import report

    page = report(RESULTS / "nano" / "cross_task", tmp_path_factory.mktemp("report") / "page.html").page
    with api.sync_playwright() as play:
        # The sandbox needs rights that containers lack; the page is our own.
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium, page.as_uri()
        chromium.close()


def _open(browser: tuple[Any, str], width: int, scheme: str = "light") -> tuple[Any, list[str]]:
    """Open the page; return it and a list that collects errors and requests."""
    chromium, address = browser
    page, found = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    page.on("console", lambda message: found.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", lambda request: None if request.url in (address, "data:,") else found.append(request.url))
    page.goto(address)
    page.wait_for_selector("html[data-drawn]")
    return page, found


def _column(page: Any, place: int) -> list[str]:
    rows = page.locator("#s0-cells-table tbody tr:not([hidden])")
    return rows.locator(f"td:nth-child({place})").all_text_contents()


def test_hover_shows_the_numbers_and_charts_switch(browser: tuple[Any, str]) -> None:
    page, found = _open(browser, 1440)
    assert page.title() == "cross task \N{EN DASH} prompt_transfer report"
    # The number lies above the coloured cell; both show the same tooltip.
    page.locator("#s0-matrix [aria-roledescription='rect mark']").first.hover(force=True)
    tip = page.locator("#vg-tooltip-element")
    tip.wait_for(state="visible")
    text = tip.inner_text()
    for part in ("score [95 % interval]", "examples", "1,000", "relative performance", "chance-corrected score"):
        assert part in text
    assert "majority class" in text
    assert re.search(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", text)
    # 13 targets, 13 sources and two kinds of random prompts; the page is wide enough for numbers.
    cells = page.locator("#s0-matrix .mark-text.role-mark text")
    before = cells.all_text_contents()
    assert len(before) == 13 * 15
    assert all(re.fullmatch(r"\d\.\d\d", text) for text in before)
    page.locator("select[data-chart='s0-matrix']").select_option("chance_corrected")
    page.wait_for_function(
        "() => document.querySelector('#s0-matrix .mark-text.role-mark').textContent.includes('\N{EN DASH}')"
    )
    after = cells.all_text_contents()
    # One target's own prompt equals the majority class: its 15 cells have no value.
    assert after.count("\N{EN DASH}") == 15
    assert all(re.fullmatch(r"\W?\d+\.\d\d", text) for text in after if text != "\N{EN DASH}")
    assert found == []
    page.close()


def test_tables_sort_by_keyboard_and_filter(browser: tuple[Any, str]) -> None:
    page, found = _open(browser, 1440)
    score = page.locator("#s0-cells-table th", has_text=re.compile("^score$"))
    score.locator("button").focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") in ("solid", "auto")
    page.keyboard.press("Enter")
    values = [float(text.split()[0]) for text in _column(page, 3)]
    assert values == sorted(values)
    assert score.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert [float(text.split()[0]) for text in _column(page, 3)] == sorted(values, reverse=True)
    assert score.get_attribute("aria-sort") == "descending"
    page.locator("[data-filter='s0-cells-table']").fill("sst-2 random")
    assert set(_column(page, 1)) == {"SST-2"}
    assert len(_column(page, 1)) == 2
    assert page.locator("[data-count='s0-cells-table']").inner_text() == "2 of 208 rows"
    assert found == []
    page.close()


def test_dark_mode_follows_the_system_and_the_button(browser: tuple[Any, str]) -> None:
    page, found = _open(browser, 1440, "dark")
    colours = (
        "[getComputedStyle(document.body).backgroundColor, "
        "getComputedStyle(document.querySelector('#s0-matrix .role-axis-label text')).fill]"
    )
    back, text = page.evaluate(colours)
    assert _lightness(back) < 0.2
    assert _lightness(text) > 0.8
    page.get_by_role("button", name="Switch between light and dark").click()
    back, text = page.evaluate(colours)
    assert _lightness(back) > 0.9
    assert _lightness(text) < 0.2
    # Print is light whatever the theme.
    page.get_by_role("button", name="Switch between light and dark").click()
    page.emulate_media(media="print")
    back, text = page.evaluate(colours)
    assert _lightness(back) > 0.9
    assert _lightness(text) < 0.2
    assert found == []
    page.close()


def _lightness(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 / 255


@pytest.mark.parametrize("width", [390, 1440])
def test_no_width_overflows(browser: tuple[Any, str], width: int) -> None:
    page, found = _open(browser, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Charts end inside their card, and no two names of columns overlap.
    outside = """[...document.querySelectorAll('.chart svg.marks')].filter(svg =>
        svg.getBoundingClientRect().right > svg.closest('.card').getBoundingClientRect().right + 0.5).length"""
    assert page.evaluate(outside) == 0
    sizes = page.evaluate(
        "[...document.querySelectorAll('.chart svg.marks text')].map(t => parseFloat(getComputedStyle(t).fontSize))"
    )
    assert min(sizes) >= 10
    assert found == []
    page.close()


@pytest.mark.parametrize(("required", "outcome"), [("required", "1 error"), ("", "1 skipped")])
def test_a_missing_browser_fails_where_it_is_required(required: str, outcome: str) -> None:
    code = (
        "import pathlib, shutil, sys, pytest; shutil.which = lambda *_: None; "
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {__file__!r}, '-k', 'dark']))"
    )
    settings = {**os.environ, "BROWSER_TESTS": required, "CHROMIUM": ""}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False)
    assert outcome in done.stdout
    assert "no Chromium found" in done.stdout
    assert (done.returncode != 0) == bool(required)


def test_make_requires_the_browser() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\ntest-browser: ")[2].partition("\n\n")[0]
    assert "BROWSER_TESTS=required" in recipe
    assert "tests/test_report_browser.py" in recipe
    assert "browser]" in makefile.partition("\n$(BROWSER_STAMP): ")[2].partition("\n\n")[0]


def test_cells_are_read_by_keyboard(browser: tuple[Any, str]) -> None:
    page, found = _open(browser, 1440)
    # A single cell is in the tab order.
    assert page.locator("#s0-matrix [tabindex='0']").count() == 1
    page.locator("select[data-chart='s0-matrix']").focus()
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#s0-matrix [aria-roledescription]')"):
            break
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "IMDB" in tip.inner_text()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    label = "document.activeElement.getAttribute('aria-label')"
    start = page.evaluate(label)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    text = tip.inner_text()
    assert re.search(r"target\s+Movie", text)
    assert re.search(r"source of the prompt\s+Movie", text)
    assert page.evaluate(label) != start
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(label) == start
    page.keyboard.press("End")
    assert re.search(r"source of the prompt\s+random uniform", tip.inner_text())
    page.keyboard.press("Escape")
    assert tip.count() == 0
    assert page.locator("#s0-matrix [tabindex='0']").count() == 1
    # Points of other charts, too.
    page.locator("#s0-means [tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    assert "mean [95 % interval]" in tip.inner_text()
    assert found == []
    page.close()


def test_the_colour_bar_states_its_range(browser: tuple[Any, str]) -> None:
    page, found = _open(browser, 1440)
    script = "[...document.querySelectorAll('#s0-matrix .role-legend-label text')].map(t => t.textContent)"
    bounds = "JSON.parse(document.querySelector('[data-spec=s0-matrix]').textContent).params[1].value.{}"
    for measure in ("relative", "value"):
        page.locator("select[data-chart='s0-matrix']").select_option(measure)
        low, high = page.evaluate(bounds.format(measure))
        page.wait_for_function(f"() => ({script})[0] === '{low:.2f}'")
        assert page.evaluate(script) == [f"{low:.2f}", f"{(low + high) / 2:.2f}", f"{high:.2f}"]
    assert found == []
    page.close()


def test_a_narrow_table_shows_scores_and_says_that_it_scrolls(browser: tuple[Any, str]) -> None:
    page, found = _open(browser, 390)
    table = page.locator("#s0-cells-table")
    inside = """table => {
        const box = table.closest('.scroll').getBoundingClientRect();
        return [...table.rows].every(row => row.cells[2].getBoundingClientRect().right <= box.right + 0.5);
    }"""
    assert table.evaluate(inside)
    more = table.locator("xpath=ancestor::details").locator(".more")
    assert more.is_visible()
    scroll = table.locator("xpath=..")
    assert scroll.get_attribute("data-more") is not None
    scroll.evaluate("box => { box.scrollLeft = box.scrollWidth }")
    page.wait_for_function("() => !document.querySelector('#s0-cells-table').parentElement.hasAttribute('data-more')")
    assert found == []
    page.close()
    page, found = _open(browser, 1440)
    assert not page.locator("#s0-cells-table").locator("xpath=ancestor::details").locator(".more").is_visible()
    assert found == []
    page.close()


def test_sections_with_long_names_fit_a_phone(browser: tuple[Any, str], tmp_path: Path) -> None:
    from prompt_transfer.studies.report.study import report

    folder = tmp_path / "long"
    for place in ("quantization", "nano/recommend", "start_token"):
        shutil.copytree(RESULTS / place, folder / place)
    written = report(folder, tmp_path / "long.html").page
    page, found = _open((browser[0], written.as_uri()), 390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    outside = """[...document.querySelectorAll('.chart svg.marks')].filter(svg =>
        [...svg.querySelectorAll('.role-legend text')].some(text =>
            text.getBoundingClientRect().right > svg.getBoundingClientRect().right + 0.5)).length"""
    assert page.evaluate(outside) == 0
    assert not any("…" in text for text in page.locator(".role-axis-label text").all_text_contents())
    assert found == []
    page.close()
