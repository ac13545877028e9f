"""Paired differences between sources of the same type and others, and intervals over seeds, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prompt_transfer.analysis.contrasts import contrasts
from prompt_transfer.analysis.matrix import Matrix, from_results, read_matrix
from prompt_transfer.analysis.matrix_summary import summarize
from prompt_transfer.studies.transfer.matrix import analyze_matrix
from prompt_transfer.utils import results

NAMES = ["a", "b", "c", "d"]
TYPES = {"a": "sentiment", "b": "sentiment", "c": "nli", "d": "nli"}
SCORES = [[0.8, 0.6, 0.4, 0.5], [0.9, 1.0, 0.5, 0.3], [0.2, 0.3, 0.5, 0.4], [0.3, 0.1, 0.2, 0.4]]


def matrix(scores: list[list[float]] = SCORES) -> Matrix:
    return Matrix(
        scores=pd.DataFrame(scores, index=NAMES, columns=NAMES),
        random=pd.DataFrame({"random_vocabulary": [0.4, 0.5, 0.4, 0.4], "random_uniform": [0.2, 0.5, 0.2, 0.2]}, NAMES),
        baseline=pd.Series([0.5, 0.5, 0.25, 0.25], index=NAMES),
        types=TYPES,
    )


def frame(seeds: dict[int, float]) -> pd.DataFrame:
    """Return a study's table: each seed adds a number to the scores of same-type sources."""
    rows = [
        {
            "task": target, "source": source, "kind": "trained", "seed": seed, "task_type": TYPES[target],
            "source_type": TYPES[source],
            "value": SCORES[i][j] + (more if i != j and TYPES[target] == TYPES[source] else 0.0),
        }
        for seed, more in seeds.items()
        for i, target in enumerate(NAMES)
        for j, source in enumerate(NAMES)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def row(table: pd.DataFrame, measure: str, against: str) -> pd.Series:
    return table.set_index(["measure", "against"]).loc[(measure, against)]


def test_by_hand() -> None:
    table = contrasts(matrix())
    score = row(table, "score", "different")
    # Same type minus the mean of the two other sources: 0.6 - 0.45, 0.9 - 0.4, 0.4 - 0.25, 0.2 - 0.2.
    assert score["difference"] == pytest.approx(np.mean([0.15, 0.5, 0.15, 0.0]))
    assert (score["n_targets"], score["n_better"]) == (4, 3)
    relative = row(table, "relative", "random")
    by_target = [(0.6 - 0.3) / 0.8, 0.9 - 0.5, (0.4 - 0.3) / 0.5, (0.2 - 0.3) / 0.4]
    assert relative["difference"] == pytest.approx(np.mean(by_target))
    assert relative["low"] <= relative["difference"] <= relative["high"]


def test_the_test_exchanges_signs() -> None:
    # Of the 16 combinations of signs of four equal differences, two are as extreme as the one observed.
    scores = [[0.8, 0.6, 0.4, 0.4], [0.6, 0.8, 0.4, 0.4], [0.4, 0.4, 0.8, 0.6], [0.4, 0.4, 0.6, 0.8]]
    found = row(contrasts(matrix(scores)), "score", "different")
    assert found["difference"] == pytest.approx(0.2)
    assert found["p_value"] == pytest.approx(2 / 16)
    assert found["low"] == pytest.approx(found["high"]) == pytest.approx(0.2)


def test_two_targets_have_no_interval() -> None:
    two = Matrix(
        scores=pd.DataFrame([[0.8, 0.6, 0.4], [0.9, 1.0, 0.5]], index=["a", "b"], columns=["a", "b", "c"]),
        random=pd.DataFrame(index=["a", "b"]), baseline=pd.Series([np.nan] * 2, index=["a", "b"]), types=TYPES,
    )  # fmt: skip
    (found,) = contrasts(two).query("measure == 'score'").to_dict("records")
    assert found["against"] == "different"
    assert np.isnan([found["low"], found["high"], found["p_value"]]).all()


def test_intervals_are_over_seeds_too() -> None:
    # With equal differences in all targets, only the seeds differ: every draw of two seeds has one of three means.
    apart, equal = (from_results(frame(seeds)) for seeds in ({0: 0.1, 1: 0.3}, {0: 0.2, 1: 0.2}))
    assert len(apart.seed_draws) == len(equal.seed_draws) > 0
    assert from_results(frame({0: 0.2})).seed_draws == ()
    widths = []
    for each in (apart, equal):
        found = row(contrasts(each), "score", "different")
        assert found["difference"] == pytest.approx(0.4)
        widths.append(found["high"] - found["low"])
    assert widths[0] > widths[1]
    draws = {round(float(each.scores.loc["a", "b"]), 6) for each in apart.seed_draws}
    assert draws == {0.7, 0.8, 0.9}
    # The target's own prompt has the same score in both seeds.
    assert {round(float(each.scores.loc["a", "a"]), 6) for each in apart.seed_draws} == {0.8}
    tables = [summarize(each).set_index(["measure", "type", "kind"]) for each in (apart, equal)]
    means = [table.loc[("relative", "all", "same")] for table in tables]
    assert means[0]["mean"] == pytest.approx(means[1]["mean"])
    assert means[0]["high"] - means[0]["low"] > means[1]["high"] - means[1]["low"]


def test_seeds_are_found_next_to_the_table_unless_it_was_changed(tmp_path: Path) -> None:
    study = frame({0: 0.1, 1: 0.3})
    results.write(study, tmp_path / "results.parquet")
    whole = from_results(study)
    table = pd.concat([whole.scores, whole.baseline.rename("majority")], axis=1)
    table.to_csv(tmp_path / "matrix.csv", index_label="target")
    types = dict(TYPES)
    assert len(read_matrix(tmp_path / "matrix.csv", types).seed_draws) == len(whole.seed_draws)
    table.loc["a", "b"] = 0.1
    table.to_csv(tmp_path / "matrix.csv", index_label="target")
    assert read_matrix(tmp_path / "matrix.csv", types).seed_draws == ()


def test_the_command_writes_and_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = frame({0: 0.1, 1: 0.3})
    results.write(study, tmp_path / "results.parquet")
    analyze_matrix(tmp_path / "results.parquet", tmp_path / "out", TYPES)
    written = pd.read_csv(tmp_path / "out" / "contrasts.csv")
    assert set(written["measure"]) == {"score", "relative"}
    assert "paired by target" in capsys.readouterr().out
