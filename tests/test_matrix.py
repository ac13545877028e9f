"""The summary of transfer matrices: the published one, and small ones worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prompt_transfer.analysis import plots
from prompt_transfer.analysis.heatmaps import linkage_order, summary_figure, transfer_heatmap
from prompt_transfer.analysis.matrix import Matrix, read_matrix
from prompt_transfer.analysis.matrix_summary import best_sources, pairs, summarize
from prompt_transfer.cli import main
from prompt_transfer.studies.transfer.matrix import show_summary
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError


def published(name: str) -> Path:
    path = Path(__file__).resolve().parents[2] / "shared" / "reference" / f"zeroshot_{name}.csv"
    if not path.is_file():
        pytest.skip(f"no published matrix: {path} is absent")
    return path


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "same", "different", "random", "best", "targets"),
    [("roberta_base", 80.8, 56.6, 49.1, 13, 13), ("t5_base", 82.6, 49.8, 52.1, 13, 17)],
)
def test_published_matrices_give_the_published_summary(
    name: str, same: float, different: float, random: float, best: int, targets: int, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["analyze", "matrix", str(published(name)), "--output", str(tmp_path)]) == 0
    assert f"best source of the same type for {best} of {targets} targets" in capsys.readouterr().out
    summary = pd.read_csv(tmp_path / "summary.csv")
    means = summary[summary["type"] == "all"].set_index("kind")["mean"] * 100
    assert means[["same", "different", "random"]].round(1).tolist() == [same, different, random]
    counts = summary[summary["type"] == "all"].set_index("kind")["n_pairs"]
    assert counts["same"] + counts["different"] == targets * (targets - 1)
    found = pd.read_csv(tmp_path / "best_sources.csv")
    assert (len(found), int(found["same_type"].sum())) == (targets, best)
    assert (tmp_path / "summary.png").stat().st_size > 10_000


@pytest.mark.real_data
def test_published_means_of_each_type() -> None:
    summary = summarize(read_matrix(published("roberta_base"))).set_index(["kind", "type"])["mean"] * 100
    types = ["sentiment", "nli", "ethics", "paraphrase"]
    assert summary["same"][types].round(1).tolist() == [81.2, 77.0, 86.6, 80.0]
    assert summary["different"][types].round(1).tolist() == [53.6, 45.7, 71.8, 62.1]
    assert summary["random"][types].round(1).tolist() == [39.4, 44.8, 72.2, 61.5]


def matrix(learned: list[bool] | None = None) -> Matrix:
    names = ["a", "b", "c"]
    scores = pd.DataFrame(
        [[0.8, 0.6, 0.4, 0.1], [0.9, 1.0, 0.5, 0.2], [0.2, 0.3, 0.5, 0.3]], index=names, columns=[*names, "made"]
    )
    return Matrix(
        scores=scores,
        random=pd.DataFrame({"random_vocabulary": [0.4, 0.5, 0.4], "random_uniform": [0.2, 0.5, 0.2]}, index=names),
        baseline=pd.Series([0.5, 0.5, 0.25], index=names),
        types={"a": "sentiment", "b": "sentiment", "c": "nli"},
        learned=None if learned is None else pd.Series(learned, index=names),
    )


def test_by_hand() -> None:
    summary = summarize(matrix()).set_index(["measure", "kind", "type"])
    means = summary["mean"]["relative"]
    assert means["same", "all"] == pytest.approx((0.6 / 0.8 + 0.9) / 2)
    assert means["different", "all"] == pytest.approx((0.4 / 0.8 + 0.5 + 0.2 / 0.5 + 0.3 / 0.5) / 4)
    assert means["random", "all"] == pytest.approx(np.mean([0.5, 0.25, 0.5, 0.5, 0.8, 0.4]))
    assert means["random_uniform", "all"] == pytest.approx(np.mean([0.25, 0.5, 0.4]))
    corrected = summary["mean"]["chance_corrected"]
    assert corrected["same", "all"] == pytest.approx(((0.6 - 0.5) / 0.3 + (0.9 - 0.5) / 0.5) / 2)
    assert corrected["different", "nli"] == pytest.approx(((0.2 - 0.25) / 0.25 + (0.3 - 0.25) / 0.25) / 2)
    # c is not counted: it has no other source of its type.
    assert summary["n_targets"]["relative"]["best source of the same type", "all"] == 2
    assert best_sources(matrix())["best"].tolist() == ["b", "a"]
    assert set(pairs(matrix())["source"]) == {"a", "b", "c", "random_vocabulary", "random_uniform"}


def test_means_without_targets_that_were_not_learned() -> None:
    summary = summarize(matrix([True, False, True])).set_index(["targets", "measure", "kind", "type"])["mean"]
    assert summary["learned", "relative", "same", "all"] == pytest.approx(0.6 / 0.8)
    assert summary["all", "relative", "same", "all"] == pytest.approx((0.6 / 0.8 + 0.9) / 2)


@pytest.mark.parametrize(("learned", "tables"), [([True] * 3, 2), ([True, False, True], 3), (None, 2)])
def test_no_table_is_shown_twice(learned: list[bool] | None, tables: int, capsys: pytest.CaptureFixture[str]) -> None:
    # One of four tables is omitted: chance-corrected scores that include unlearned targets are noise.
    show_summary(summarize(matrix(learned)))
    assert capsys.readouterr().out.count("mean over pairs") == tables
    with results.kept() as kept:
        show_summary(summarize(matrix(learned)))
    assert len(kept) == (2 if learned is None else 4)


def test_intervals_hold_their_means_and_shrink_with_targets() -> None:
    random = np.random.default_rng(0)
    widths = []
    for count in (4, 40):
        names = [f"t{number}" for number in range(count)]
        scores = pd.DataFrame(random.uniform(0.4, 0.8, (count, count)), index=names, columns=names)
        whole = Matrix(scores, scores.iloc[:, :0], scores["t0"] * np.nan, dict.fromkeys(names, "sentiment"))
        row = summarize(whole).iloc[0]
        assert row["low"] < row["mean"] < row["high"]
        widths.append(row["high"] - row["low"])
    assert widths[1] < widths[0]


def test_tables_that_are_no_matrix(tmp_path: Path) -> None:
    def refused(text: str) -> str:
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(UserError) as caught:
            read_matrix(tmp_path / "m.csv")
        return str(caught.value)

    assert "matrix of numbers" in refused("target,sst2\nsst2,good\n")
    assert "own prompt" in refused("target,sst2\nmnli,0.5\n")
    assert "contains task sst2 twice; remove one" in refused("target,sst2\nsst2,0.5\nSST2,0.6\n")
    assert "--types" in refused("target,mine\nmine,0.5\n")
    with pytest.raises(UserError, match="No such file"):
        read_matrix(tmp_path / "none.csv")
    (tmp_path / "m.csv").write_text("target,mine,sst2\nmine,0.5,0.4\nSST-2,0.3,0.9\n")
    assert read_matrix(tmp_path / "m.csv", {"mine": "topic"}).scores.index.tolist() == ["mine", "sst2"]


def test_leaves_that_are_alike_stand_together() -> None:
    values = np.array([[0.0], [10.0], [0.1], [10.1], [5.0]])
    order = linkage_order(values)
    assert sorted(order) == [0, 1, 2, 3, 4]
    places = {leaf: place for place, leaf in enumerate(order)}
    assert abs(places[0] - places[2]) == 1
    assert abs(places[1] - places[3]) == 1
    assert linkage_order(np.zeros((1, 3))) == [0]


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("order", ["abc", "bca", "cba"])
def test_heatmaps_are_ordered(clustered: bool, order: str, tmp_path: Path) -> None:
    whole = matrix()
    # Rows may come in any order.
    whole = replace(whole, scores=whole.scores.loc[list(order)], random=whole.random.loc[list(order)])
    whole.types["made"] = ""
    ax = transfer_heatmap(whole, clustered)
    targets = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(targets) == ["a", "b", "c"]
    columns = [label.get_text() for label in ax.get_xticklabels()]
    colours = np.ma.filled(ax.collections[0].get_array(), np.nan).reshape(len(targets), len(columns))
    texts = [text.get_text() for text in ax.texts]
    for row, target in enumerate(targets):
        for column, source in enumerate(columns[:4]):
            score = whole.scores.loc[target, source]
            assert colours[row, column] == pytest.approx(score / whole.scores.loc[target, target])
            assert texts[row * len(columns) + column] == f"{score * 100:.0f}"
    if not clustered:
        assert [whole.types[target] for target in targets] == ["sentiment", "sentiment", "nli"]
        assert columns == ["a", "b", "c", "made", "random tokens", "random uniform", "majority"]
    assert plots.save(ax, tmp_path / "m.png").stat().st_size > 5_000


def test_targets_that_were_not_learned_are_not_clustered() -> None:
    whole = matrix([True, False, True])
    drawn = {}
    for value in (0.0, 0.9):
        scores = whole.scores.copy()
        scores.loc["b", ["a", "c"]] = [value, 1 - value]
        ax = transfer_heatmap(replace(whole, scores=scores), clustered=True)
        drawn[value] = [label.get_text() for label in ax.get_xticklabels()]
        assert [label.get_text() for label in ax.get_yticklabels()][-1] == "b *"
    assert drawn[0.0] == drawn[0.9]
    # Without a learned target there is nothing to cluster.
    ax = transfer_heatmap(matrix([False] * 3), clustered=True)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a *", "b *", "c *"]


def test_the_summary_figure_shows_every_type(tmp_path: Path) -> None:
    ax = summary_figure(summarize(matrix()))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["all targets\n(3)", "sentiment\n(2)", "NLI\n(1)"]
    plots.save(ax, tmp_path / "s.png")


def test_two_targets_of_one_type_have_no_interval_and_no_second_row(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ["a", "b"]
    scores = pd.DataFrame([[0.8, 0.6], [0.5, 0.9]], tasks, tasks)
    none = pd.DataFrame(index=tasks)
    show_summary(summarize(Matrix(scores, none, pd.Series(np.nan, tasks), dict.fromkeys(tasks, "t"))))
    printed = capsys.readouterr().out
    assert "relative score: mean over pairs (2 targets)" in printed
    assert "interval" not in printed
    assert "best source of the same type" not in printed
    assert [line.split()[0] for line in printed.splitlines()[1:] if line[:1].isalpha()] == ["type", "t"]
