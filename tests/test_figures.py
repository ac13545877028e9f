"""Rules of all figures: colour ranges, names, numbers in cells, intervals, captions, formats, few points."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text

from prompt_transfer.analysis import (
    captions,
    comparison_plots,
    curves,
    indicator_plots,
    neuron_plots,
    plots,
    projection,
    style,
)
from prompt_transfer.analysis.convergence import Curve
from prompt_transfer.analysis.correlation import correlations
from prompt_transfer.analysis.heatmaps import summary_figure, transfer_heatmap
from prompt_transfer.analysis.matrix import from_results
from prompt_transfer.cli import main
from prompt_transfer.studies.transfer import indicators
from prompt_transfer.tasks.registry import display_name
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.figures import VARIABLE, figure_formats, using_formats
from prompt_transfer.utils.results import show

RESULTS = Path(__file__).resolve().parent.parent / "results"
PAPER = {
    "imdb": "IMDB", "sst2": "SST-2", "laptop": "laptop", "restaurant": "restaurant", "movie_rationales": "Movie",
    "tweet_eval_sentiment": "Tweet", "mnli": "MNLI", "qnli": "QNLI", "snli": "SNLI", "ethics_deontology": "deontology",
    "ethics_justice": "justice", "qqp": "QQP", "mrpc": "MRPC", "squad": "SQuAD", "nq_open": "NQ-Open",
    "multi_news": "Multi-News", "samsum": "SAMSum",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _close() -> object:
    yield
    plt.close("all")


def _texts(ax: Axes) -> list[str]:
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]  # type: ignore[attr-defined]


def _square(size: int = 4, symmetric: bool = True) -> pd.DataFrame:
    values = np.random.default_rng(0).uniform(0.2, 0.6, (size, size))
    names = (list(PAPER) + [f"task_{number}" for number in range(size)])[:size]
    values = (values + values.T) / 2 if symmetric else values
    return pd.DataFrame(values, pd.Index(names), names)


def test_tasks_have_the_names_of_the_paper() -> None:
    assert {name: display_name(name) for name in PAPER} == PAPER
    assert display_name("laptop+sst2") == "laptop + SST-2"
    assert style.task_labels(["trec", "random_vocabulary", "majority"]) == ["trec", "random tokens", "majority"]


def test_colours_span_the_data_unless_it_is_noise() -> None:
    assert style.colour_range([0.3, np.nan, 0.9]) == (0.3, 0.9)
    assert style.colour_range([[0.3], [0.9]], noise=0.2) == (0.3, 0.9)
    # Values closer than an interval is wide: the scale is as wide as the interval, around them.
    assert style.colour_range([0.5, 0.52], noise=0.1) == (pytest.approx(0.46), pytest.approx(0.56))
    low, high = style.colour_range([0.5])
    assert low < 0.5 < high
    assert style.colour_range([np.nan]) == (0.0, 1.0)


def test_colours_are_readable_in_black_and_white() -> None:
    red, green, blue, _ = mpl.colormaps[style.COLOURS](np.linspace(0, 1, 50)).T
    lightness = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert (np.diff(lightness) > 0).all()


def test_the_range_is_the_data_and_stands_in_the_label() -> None:
    square = _square()
    ax = indicator_plots.similarity_matrix(square, ["a", "a", "b", "b"], "ON")
    low, high = square.to_numpy().min(), square.to_numpy().max()
    assert ax.collections[0].get_clim() == (pytest.approx(low), pytest.approx(high))
    assert f"ON ({low:.2f} to {high:.2f})" in _texts(ax)


def test_the_matrix_spans_its_data_and_not_less_than_its_intervals() -> None:
    frame = pd.read_parquet(RESULTS / "nano" / "cross_task" / "results.parquet")
    matrix = from_results(frame)
    ratio = (frame["high"] - frame["low"]) / frame["value"] * frame["relative"]
    assert matrix.noise == pytest.approx(ratio.median())
    ax = transfer_heatmap(matrix)
    whole = pd.concat([matrix.scores, matrix.random, matrix.baseline.rename("majority")], axis=1)
    # Targets that were not learned have numbers, but neither a colour nor an influence on the range.
    relative = matrix.measured(whole, "relative").drop(index=list(matrix.not_learned)).to_numpy()
    assert (np.nanmin(relative), np.nanmax(relative)) == (pytest.approx(0.5753, abs=1e-4), 1)
    assert ax.collections[0].get_clim() == (pytest.approx(np.nanmin(relative)), pytest.approx(np.nanmax(relative)))
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert {name.removesuffix(" *") for name in names} == {display_name(name) for name in matrix.scores.index}
    assert {name for name in names if name.endswith("*")} == {f"{display_name(name)} *" for name in matrix.not_learned}
    assert len(matrix.not_learned) == 8
    array = ax.collections[0].get_array()
    assert array is not None
    cells = np.ma.filled(array, np.nan).reshape(13, 16)
    grey = [name.endswith("*") for name in names]
    assert np.isnan(cells).all(axis=1).tolist() == np.isnan(cells).any(axis=1).tolist() == grey
    assert len([text for text in ax.texts if text.get_text()]) == 13 * 16
    # Equal scores within a wide interval: no colour structure from noise.
    flat = frame.assign(value=0.5 + 0.001 * (np.arange(len(frame)) % 3), low=0.4, high=0.6)
    flat["relative"] = flat["value"] / 0.5
    low, high = transfer_heatmap(from_results(flat)).collections[0].get_clim()
    assert high - low == pytest.approx(0.4, rel=0.02)


@pytest.mark.parametrize(("size", "numbers"), [(20, 400), (21, 0)])
def test_cells_have_numbers_up_to_twenty_tasks(size: int, numbers: int) -> None:
    ax = indicator_plots.similarity_matrix(_square(size), ["a"] * size, "ON")
    assert len([text for text in ax.texts if text.get_text()]) == numbers


@pytest.mark.parametrize("size", [2, 13, 30])
def test_names_of_columns_do_not_collide(size: int) -> None:
    ax = indicator_plots.similarity_matrix(_square(size), ["a"] * size, "ON")
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    labels = ax.get_xticklabels()
    # At 45 degrees the lines of two names are apart by the sine of 45 degrees times the distance of the columns.
    places = [ax.transData.transform((label.get_position()[0], 0))[0] for label in labels]
    height = labels[0].get_fontsize() * figure.dpi / 72
    assert min(right - left for left, right in pairwise(places)) * np.sin(np.pi / 4) > height


def test_only_directed_measures_name_target_and_source() -> None:
    ax = indicator_plots.similarity_matrix(_square(), ["a"] * 4, "ON")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("", "")
    ax = indicator_plots.similarity_matrix(_square(symmetric=False), ["a"] * 4, "LEEP")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("source", "target")


def test_missing_cells_are_dashes_in_every_heatmap() -> None:
    square = _square().mask(np.eye(4, dtype=bool))
    for ax in (
        indicator_plots.similarity_matrix(square, ["a"] * 4, "ON"),
        neuron_plots.overlap_dendrogram(square, ["a", "a", "b", "b"]),
    ):
        texts = _texts(ax)
        assert texts.count("\N{EN DASH}") == 4
        assert not any("nan" in text.lower() for text in texts)


def test_masks_have_intervals_that_do_not_hide_each_other() -> None:
    rows = [
        {"mask": mask, "method": "zero", "ratio": ratio, "drop": 0.1, "low": 0.05, "high": 0.2, "tasks": 4}
        for mask in ("own", "same_type", "different_type", "random") for ratio in (0.1, 0.3)
    ]  # fmt: skip
    ax = neuron_plots.masking_curve(pd.DataFrame(rows))
    bars = [container for container in ax.containers if isinstance(container, ErrorbarContainer)]
    ends = [segment for bar in bars for segment in bar.lines[2][0].get_segments()]
    assert [tuple(segment[:, 1]) for segment in ends] == [(pytest.approx(5), pytest.approx(20))] * 8
    assert len({round(float(segment[0, 0]), 6) for segment in ends}) == 8
    # Fewer than three tasks: points without bars, no "nan".
    few = pd.DataFrame(rows).assign(low=np.nan, high=np.nan)
    assert not any("nan" in text.lower() for text in _texts(neuron_plots.masking_curve(few)))


def test_layers_have_intervals_next_to_each_other() -> None:
    rows = [{"layer": layer, "value": 0.1 * number, "pair": pair}
            for layer in (0, 1) for pair in ("same type", "different type") for number in range(4)]  # fmt: skip
    ax = neuron_plots.overlap_by_layer(pd.DataFrame(rows))
    bars = [segment for container in ax.collections for segment in container.get_segments()]  # type: ignore[attr-defined]
    assert sorted(round(float(bar[0, 0]), 2) for bar in bars) == [-0.06, 0.06, 0.94, 1.06]
    assert [tick for tick in ax.get_xticks() if 0 <= tick <= 1] == [0, 1]


def test_curves_hold_no_caption() -> None:
    evaluations = pd.DataFrame({"step": [0, 10], "samples": [0, 80], "seconds": [0, 1], "value": [0.5, 0.6]})
    runs = [Curve("a", "sst2", None, "0", evaluations, 0.5), Curve("b", "sst2", "imdb", "0", evaluations, 0.5)]
    ax = curves.convergence(runs)
    texts = _texts(ax)
    assert {"SST-2", "from IMDB", "vanilla"} <= set(texts)
    assert max(map(len, texts)) < 40
    assert "0.5 points" in captions.convergence(0.005)


def test_projections_show_intervals_of_own_and_projected_prompts() -> None:
    table = pd.read_csv(RESULTS / "nano" / "projection" / "bert-nano-to-roberta-nano-unseen-prompts" / "projection.csv")
    ax = projection.scores_figure(table.assign(cosine=np.nan))
    texts = _texts(ax)
    assert any(text.startswith("SST-2") for text in texts)
    assert not any("nan" in text.split() for text in texts)
    name = table["projector"].iloc[0]
    tasks = table[table["metric"].notna() & (table["projector"] == name)]["task"].nunique()
    lines = [len(one.get_segments()) for one in ax.collections if hasattr(one, "get_segments")]
    # Own and projected prompts, and the majority class.
    assert lines == [tasks, tasks, tasks]


def test_projections_fit_a_page_and_hide_no_mark() -> None:
    table = pd.read_csv(RESULTS / "nano" / "projection" / "bert-nano-to-roberta-nano" / "projection.csv")
    ax = projection.scores_figure(table)
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    # Three seeds share a panel.
    panels = [panel for panel in figure.axes if panel.axison]
    assert [panel.get_title().split("\n")[0] for panel in panels] == [
        "distill, 3 seeds",
        "linear-distill",
        "task_tuning",
    ]
    assert figure.get_figwidth() <= 7.5
    for panel in panels:
        marks = [one for one in panel.collections if isinstance(one, PathCollection)]
        heights = np.sort(np.concatenate([np.asarray(one.get_offsets())[:, 1] for one in marks]))
        assert np.diff(heights).min() > 0.1
    mine = table[(table["task"] == "imdb") & (table["what"] == "projected")].set_index("projector")["value"]
    (projected,) = (one for one in panels[0].collections if one.get_label() == "projected")
    shown = np.asarray(projected.get_offsets())[0, 0]
    assert shown == pytest.approx(mine[[f"distill-seed{seed}" for seed in range(3)]].mean())


def test_a_comparison_has_no_text_over_its_marks() -> None:
    folder = RESULTS / "compare" / "sst2_roberta_nano"
    summary, runs = pd.read_csv(folder / "summary.csv"), pd.read_csv(folder / "results.csv")
    ax = comparison_plots.scores(summary, runs, {name: name for name in summary["method"]})
    figure = ax.get_figure(root=True)
    assert figure is not None
    left, right = figure.axes
    assert left.get_xlabel() == "accuracy on SST-2 (test, n = 1821)"
    assert not [*left.texts, *right.texts]
    for seeds, bands in ((2, 0), (3, 2)):
        rows = [
            {"method": method, "seed": seed, "step": step, "value": 0.5 + 0.1 * seed}
            for method in ("a", "b") for seed in range(seeds) for step in (10, 20)
        ]  # fmt: skip
        ax = comparison_plots.curves(pd.DataFrame(rows), {"a": "a", "b": "b"}, "accuracy", 0.5)
        assert len([band for band in ax.collections if isinstance(band, PolyCollection)]) == bands
        figure = ax.get_figure(root=True)
        assert figure is not None
        figure.canvas.draw()
        legend = ax.get_legend()
        assert legend is not None
        assert not legend.get_window_extent().overlaps(ax.get_window_extent())


def test_means_of_few_targets_have_no_bar() -> None:
    summary = pd.read_csv(RESULTS / "nano" / "cross_task" / "summary.csv")
    ax = summary_figure(summary)
    ends = [bar.lines[2][0].get_segments() for bar in ax.containers if isinstance(bar, ErrorbarContainer)]
    drawn = [sum(bool(np.isfinite(segment).all()) and len(segment) == 2 for segment in kind) for kind in ends]
    # All targets, sentiment and NLI; ethics and paraphrase have two targets each.
    assert drawn == [3, 3, 3]


def test_rank_correlations_of_two_sources_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values, transfer = _square(3, False).to_numpy(), _square(3, False).to_numpy()[::-1]
    table = correlations({"euclidean_concat": values}, ["a", "a", "b"], transfer, resamples=20)
    one = table.set_index("statistic")
    assert (
        one.loc[["spearman_per_target", "kendall_per_target"], ["value", "low", "high", "p_value"]]
        .isna()
        .all(axis=None)
    )
    assert not np.isnan(one.loc["spearman_pooled", "value"])
    assert indicators.ranked_by(table) == "spearman_pooled"
    monkeypatch.setenv("COLUMNS", "200")

    class Prompts:
        names, tasks, prompts = ("a", "b", "c"), ("a", "b", "c"), [type("P", (), {"metadata": {}})]

    indicators._print(tmp_path, table, Prompts, [])  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert "nan" not in printed.lower()
    assert "note: no value for per target: fewer than 3 sources per target" in printed


def test_titles_refuse_few_pairs() -> None:
    pairs = pd.DataFrame({"value": [0.1, 0.2], "transfer": [0.5, 0.6], "target": ["a", "b"], "source": ["b", "a"],
                          "source_type": "x", "target_type": "x"})  # fmt: skip
    assert indicator_plots.indicator_against_transfer(pairs, rho=1.0).get_title() == "Spearman \N{EN DASH}: 2 pairs"


def test_nan_is_printed_as_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"value": float("nan"), "other": 1.0}])
    assert capsys.readouterr().out.split()[-2:] == ["-", "1.000"]


def test_formats_and_captions_are_written_next_to_each_other(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        with using_formats("png,PDF, svg"):
            assert (
                plots.save(plt.figure().subplots(), tmp_path / folder / "x.png", "About.")
                == tmp_path / folder / "x.png"
            )
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"x.png", "x.pdf", "x.svg", "x.txt"}
    # Equal figures give equal files.
    for name in ("x.pdf", "x.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "x.txt").read_text() == "About.\n"
    assert plots.save(plt.figure().subplots(), tmp_path / "y.pdf").suffix == ".pdf"
    assert figure_formats() == ("png",)


def test_the_option_holds_for_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    matrix = RESULTS / "nano" / "cross_task" / "matrix.csv"
    assert main(["analyze", "matrix", str(matrix), "--output", str(tmp_path), "--figures", "svg"]) == 0
    assert {path.suffix for path in tmp_path.glob("summary.*")} == {".csv", ".svg", ".txt"}
    assert VARIABLE not in os.environ
    assert main(["--figures=gif", "tasks", "list"]) == 2
    assert (
        capsys.readouterr().err == "error: --figures 'gif': give one or several of png, pdf, svg, separated by commas\n"
    )
    monkeypatch.setenv(VARIABLE, "tiff")
    with pytest.raises(UserError, match=f"{VARIABLE} 'tiff'"):
        figure_formats()
