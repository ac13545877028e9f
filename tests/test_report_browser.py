"""The page of a report in a real browser: no error, no request, numbers on hover, sorting, filter, themes, widths.

Needs Chromium (`apt-get install chromium`, or the variable CHROMIUM) and playwright (the extra `browser`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).resolve().parent.parent / "results" / "cross_task"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: apt-get install chromium, or set CHROMIUM")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """Yield a browser and the address of the report of the stored cross-task study."""
    pytest.importorskip("vl_convert", reason="needs the extra report")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install prompt_transfer[browser]")
    from prompt_transfer.studies.report.study import report

    page = report(RESULTS, tmp_path_factory.mktemp("report") / "page.html").page
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
