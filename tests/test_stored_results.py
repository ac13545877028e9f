"""Stored tables and figures are those of the current code."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from prompt_transfer.analysis.contrasts import contrasts
from prompt_transfer.analysis.convergence import summarise
from prompt_transfer.analysis.matrix import from_results
from prompt_transfer.analysis.matrix_summary import pairs, summarize

RESULTS = Path(__file__).resolve().parent.parent / "results"
PAIRS = sorted(RESULTS.rglob("pairs.csv"))


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: str(path.parent.relative_to(RESULTS)))
def test_speedups_are_those_of_the_pairs(path: Path) -> None:
    pairs = pd.read_csv(path)
    found = pd.DataFrame(summarise(pairs.astype(object).where(pairs.notna(), None).to_dict("records")))  # type: ignore[arg-type]
    stored = pd.read_csv(path.with_name("speedups.csv"))
    found = found.fillna({"source": ""}).astype({"value": float, "low": float, "high": float})
    pd.testing.assert_frame_equal(found, stored.fillna({"source": ""}), check_dtype=False)
    # Two pairs have no interval.
    counted = stored["n"] - stored["not_reached"] - stored["not_learned"] - stored["no_need"]
    single = stored["task"] != "all"
    assert (stored.loc[single, "low"].notna() == (counted[single] >= 3)).all()


@pytest.mark.parametrize("study", ["nano", "smollm2"])
@pytest.mark.parametrize(("name", "compute"), [("contrasts", contrasts), ("summary", summarize)])
def test_means_and_contrasts_are_those_of_the_scores(name: str, compute: object, study: str) -> None:
    matrix = from_results(pd.read_parquet(RESULTS / study / "cross_task" / "results.parquet"))
    stored = pd.read_csv(RESULTS / study / "cross_task" / f"{name}.csv")
    pd.testing.assert_frame_equal(compute(matrix), stored, check_dtype=False)  # type: ignore[operator]


def test_every_figure_has_a_caption() -> None:
    figures = sorted(RESULTS.rglob("*.png"))
    assert len(figures) > 10
    assert [str(path) for path in figures if not path.with_suffix(".txt").is_file()] == []


def test_the_findings_quote_the_stored_speedups_and_contrasts() -> None:
    text = (RESULTS.parent / "docs/pages/findings_nano.md").read_text()
    speedups = pd.read_csv(RESULTS / "nano" / "transfer_init" / "speedups.csv").fillna({"source": ""})
    rows = speedups[(speedups["unit"] == "step") & (speedups["task"] != "all")]
    for (task, source), mine in rows.groupby(["task", "source"], sort=False):
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {task} | {source} |"))
        cells = dict(zip(("convergence", "comparable result"), line.split(" | ")[2:4], strict=True))
        for row in mine.to_dict("records"):
            cell = cells[row["measure"]]
            assert ("[" in cell) == (not pd.isna(row["low"])), line
            assert cell.startswith("at least") == bool(row["at_least"]), line
            if not pd.isna(row["value"]):
                assert f"{row['value']:.1f} times" in cell, line
    stored = pd.read_csv(RESULTS / "nano" / "cross_task" / "contrasts.csv")
    stored = stored[(stored["measure"] == "relative") & (stored["targets"] == "all")]
    for row in stored.to_dict("records"):
        ends = f"[{row['low']:.3f}, {row['high']:.3f}], {row['n_better']} of"
        assert ends in text


def test_the_stored_page_has_the_stored_contrasts() -> None:
    page = (RESULTS / "nano" / "cross_task" / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    stored = pd.read_csv(RESULTS / "nano" / "cross_task" / "contrasts.csv")
    for row in stored[stored["measure"] == "relative"].to_dict("records"):
        low, high = (f"{row[end]:.3f}".replace("-", "\N{MINUS SIGN}") for end in ("low", "high"))
        assert f"[{low}, {high}]" in page


def test_the_findings_quote_the_stored_starts() -> None:
    text = (RESULTS.parent / "docs/pages/findings.md").read_text()
    speedups = pd.read_csv(RESULTS / "smollm2" / "transfer_init" / "speedups.csv").fillna({"source": "all"})
    rows = speedups[speedups["unit"].isin(["step", "score"])]
    for (task, source), mine in rows.groupby(["task", "source"], sort=False):
        assert f"| {task} | {source} | {' | '.join(mine['result'])} |" in text
    pairs = pd.read_csv(RESULTS / "smollm2" / "transfer_init" / "pairs.csv")
    # Runs of several seeds from one source are not the same run.
    areas = pairs[pairs["measure"] == "area"]
    assert areas.groupby(["task", "source"])["transferred"].nunique().eq(3).all()
    assert areas.drop_duplicates(["task", "source"])["kind"].value_counts().to_dict() == {
        "same type": 8,
        "other types": 4,
    }


def test_the_findings_quote_the_stored_matrix() -> None:
    text = (RESULTS.parent / "docs/pages/findings.md").read_text()
    matrix = from_results(pd.read_parquet(RESULTS / "smollm2" / "cross_task" / "results.parquet"))
    scores = matrix.scores
    means = pairs(matrix, "score").groupby(["target", "kind"])["value"].mean().unstack()
    assert len(scores) == 13
    for target in scores.index:
        others = scores.loc[target].drop(target)
        cells = [scores.loc[target, target], *means.loc[target, ["same", "different", "random"]]]
        values = " | ".join(f"{value:.3f}" for value in (*cells, matrix.baseline[target]))
        assert f"| {target} | {values} | {others.idxmax()} {others.max():.3f} |" in text
    best = pd.read_csv(RESULTS / "smollm2" / "cross_task" / "best_sources.csv")
    assert f"the target's type for {best['same_type'].sum()} of 13 targets" in " ".join(text.split())
