"""Indicator figures: drawn values match the table."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from prompt_transfer.analysis.indicator_plots import (
    indicator_against_transfer,
    indicator_ranking,
    layer_curve,
    readable_name,
    similarity_matrix,
)

TASKS = {"imdb": "sentiment", "sst2": "sentiment", "mnli": "nli"}
VALUES = {("imdb", "imdb"): 1.0, ("imdb", "sst2"): 0.5, ("imdb", "mnli"): 0.2}


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def pairs() -> pd.DataFrame:
    rows = []
    for target in TASKS:
        for source in TASKS:
            value = VALUES.get((target, source), VALUES.get((source, target), 1.0 if target == source else 0.1))
            types = {"target_type": TASKS[target], "source_type": TASKS[source]}
            rows.append({"target": target, "source": source, "value": value, "transfer": 2 * value, **types})
    return pd.DataFrame(rows)


@pytest.fixture
def correlations() -> pd.DataFrame:
    names = ["cosine_concat", "source_norm", "neuron_overlap", *(f"neuron_overlap_per_layer/{i:02d}" for i in (1, 0))]
    rows = [
        {"indicator": name, "statistic": statistic, "value": i / 10, "low": i / 10 - 0.1, "high": i / 10 + 0.2}
        for statistic in ("spearman_per_target", "regret_at_1")
        for i, name in enumerate(names)
    ]
    return pd.DataFrame(rows)


def test_names_for_people() -> None:
    assert readable_name("neuron_overlap_per_layer/03") == "neuron overlap, layer 3"
    assert readable_name("linear_cka") == "linear CKA"


def test_similarity_matrix(pairs: pd.DataFrame) -> None:
    square = pairs.pivot(index="target", columns="source", values="value").loc[list(TASKS), list(TASKS)]
    square = square.mask(np.eye(3, dtype=bool))
    square.iloc[0, 0] = 0.7
    ax = similarity_matrix(square, list(TASKS.values()), "ON")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["IMDB", "SST-2", "MNLI"]
    mesh = ax.collections[0]
    assert np.asarray(mesh.get_array()).reshape(3, 3)[0] == pytest.approx([0.7, 0.5, 0.2])
    assert (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx((0.1, 0.7))
    bar = mesh.colorbar
    assert bar is not None
    assert bar.ax.get_ylabel() == "ON (0.10 to 0.70)"
    # One line between the two types in each direction.
    assert [len(lines.get_segments()) for lines in ax.collections[1:]] == [1, 1]


def test_scatter_leaves_out_own_prompts(pairs: pd.DataFrame) -> None:
    pairs.loc[pairs.target == "mnli", "transfer"] = np.nan
    ax = indicator_against_transfer(pairs, rho=0.25)
    dots = np.asarray(ax.collections[0].get_offsets())
    assert sorted(map(tuple, dots.tolist())) == [(0.1, 0.2), (0.2, 0.4), (0.5, 1.0), (0.5, 1.0)]
    assert ax.get_title() == "Spearman 0.25, all pairs"
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["same type", "different type"]


def test_ranking_has_the_best_on_top(correlations: pd.DataFrame) -> None:
    ax = indicator_ranking(correlations)
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names[0] == "neuron overlap, layer 0"
    assert names[-1] == "cosine concat"
    assert ax.yaxis_inverted()
    assert [text.get_text() for text in indicator_ranking(correlations, "regret_at_1").get_yticklabels()] == names[::-1]


def test_layer_curve_is_in_the_order_of_layers(correlations: pd.DataFrame) -> None:
    ax = layer_curve(correlations)
    curve, chance, reference = ax.lines
    assert list(chance.get_ydata()) == [0, 0]
    assert np.asarray(curve.get_xydata()) == pytest.approx(np.array([[0, 0.4], [1, 0.3]]))
    assert np.asarray(reference.get_ydata()) == pytest.approx([0.2, 0.2])
