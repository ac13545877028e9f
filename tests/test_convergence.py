"""Convergence and speed-ups: definitions on hand-made curves, and the choice of compared runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection

from prompt_transfer.analysis import curves
from prompt_transfer.analysis.convergence import KINDS, Curve, compare, summarise
from prompt_transfer.analysis.plots import save
from prompt_transfer.cli import main
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.transfer.convergence import convergence
from prompt_transfer.utils.errors import UserError

VANILLA = [0.5, 0.6, 0.8, 0.896, 0.9, 0.89]
FAST = [0.7, 0.91, 0.92, 0.93, 0.9, 0.9]


def curve(values: list[float], source: str | None = None, seed: str = "0", **options: Any) -> Curve:
    steps = [100 * index for index in range(len(values))]
    columns = {"step": steps, "samples": [32 * step for step in steps], "seconds": [2 + step / 50 for step in steps]}
    frame = pd.DataFrame({**columns, "value": values})
    return Curve(
        **{"name": "run", "task": "sst2", "majority": 0.51, **options}, source=source, seed=seed, evaluations=frame
    )


def test_convergence_is_the_first_evaluation_near_the_best() -> None:
    assert curve(VANILLA).converged() == 3
    assert curve(VANILLA).converged(tolerance=0) == 4
    assert curve([0.9, 0.8, 0.895]).converged() == 0
    # Half a percentage point; float32 rounds 0.895 down slightly.
    assert curve([0.2, float(torch.tensor(0.895)), 0.9]).converged() == 1
    assert curve(VANILLA).reached(0.8) == 2
    assert curve(VANILLA).reached(0.95) is None
    assert curve(VANILLA).learned
    assert not curve([0.5, 0.51]).learned
    assert curve([0.5, 0.7, 0.9]).area() == pytest.approx(0.7)


def test_both_speed_ups_in_every_unit() -> None:
    rows = {(row["measure"], row["unit"]): row for row in compare(curve(VANILLA), curve(FAST, "imdb"))}
    # Vanilla converges at step 300 with 0.896; the other at step 300 with 0.93, reaching 0.896 at step 100.
    assert rows["convergence", "step"]["value"] == 1
    assert rows["comparable result", "step"]["value"] == 3
    assert rows["comparable result", "samples"]["value"] == 3
    assert rows["comparable result", "seconds"]["value"] == pytest.approx((2 + 6) / (2 + 2))
    assert {row["outcome"] for row in rows.values()} == {"exact"}
    area = rows["area", "score"]
    assert area["vanilla"] == pytest.approx((0.25 + 0.6 + 0.8 + 0.896 + 0.9 + 0.445) / 5)
    assert area["value"] == pytest.approx(area["transferred"] - area["vanilla"])
    best = rows["best score", "score"]
    assert (best["vanilla"], best["transferred"]) == (0.9, 0.93)
    assert best["value"] == pytest.approx(0.03)
    slower = compare(curve(VANILLA), curve(FAST, "imdb", at_once=8))
    assert [row["value"] for row in slower if row["unit"] == "seconds"] == [None, None]


@pytest.mark.parametrize(
    ("vanilla", "transferred", "outcomes", "values"),
    [
        (VANILLA, [0.9, 0.9, 0.8], ("at least", "at least"), (3, 3)),
        (VANILLA, [0.7, 0.85, 0.86], ("exact", "not reached"), (1.5, None)),
        (VANILLA, [0.5, 0.5, 0.5], ("did not learn", "not reached"), (None, None)),
        ([0.5, 0.5, 0.5], FAST, ("did not learn", "did not learn"), (None, None)),
        ([0.9, 0.9, 0.9], FAST, ("vanilla needs no training",) * 2, (None, None)),
    ],
)
def test_what_cannot_be_divided_is_told(
    vanilla: list[float], transferred: list[float], outcomes: tuple[str, str], values: tuple[float | None, ...]
) -> None:
    rows = [row for row in compare(curve(vanilla), curve(transferred, "imdb")) if row["unit"] == "step"]
    assert tuple(row["outcome"] for row in rows) == outcomes
    assert tuple(row["value"] for row in rows) == values


def test_over_seeds_nothing_is_dropped() -> None:
    pairs = []
    for seed, values in enumerate((FAST, [0.95, 0.9, 0.9], [0.7, 0.85, 0.86], [0.5, 0.9, 0.94])):
        pairs += compare(curve(VANILLA), curve(values, "imdb", str(seed)))
    rows = {(row["task"], row["measure"], row["unit"]): row for row in summarise(pairs)}
    row = rows["sst2", "comparable result", "step"]
    assert (row["n"], row["at_least"], row["not_reached"]) == (4, 1, 1)
    assert row["value"] == pytest.approx(3)
    assert row["result"] == "at least 3 times [3, 3]; not reached in 1 of 4"
    row = rows["sst2", "convergence", "step"]
    # 300 / 300, 300 / (at most 100), 300 / 200, 300 / 200
    assert row["value"] == pytest.approx((1 * 3 * 1.5 * 1.5) ** 0.25)
    assert row["low"] < row["value"] < row["high"]
    assert not any(task == "all" for task, _, _ in rows)
    other = compare(curve(VANILLA, task="mnli"), curve(FAST, "imdb", task="mnli"))
    total = {(row["task"], row["measure"], row["unit"]): row for row in summarise([*pairs, *other])}
    assert total["all", "comparable result", "step"]["n"] == 5
    assert total["mnli", "comparable result", "step"]["low"] is None


def test_sources_of_the_same_type_are_apart() -> None:
    pairs = [
        *compare(curve(VANILLA), curve(FAST, "imdb", kind="same type")),
        *compare(curve(VANILLA), curve([0.7, 0.85, 0.896], "laptop", kind="same type")),
        *compare(curve(VANILLA), curve([0.4, 0.5, 0.5, 0.8, 0.896], "mnli", kind="other types")),
    ]
    rows = {(row["task"], row["source"], row["measure"]): row for row in summarise(pairs) if row["unit"] == "step"}
    comparable = {source: rows["all", source, "comparable result"] for source in (*KINDS, "")}
    assert [row["n"] for row in comparable.values()] == [2, 1, 3]
    assert comparable["same type"]["value"] == pytest.approx((3 * 1.5) ** 0.5)
    assert comparable["other types"]["value"] == pytest.approx(0.75)
    assert comparable[""]["value"] == pytest.approx((3 * 1.5 * 0.75) ** (1 / 3))
    ax = curves.speedups(pd.DataFrame(summarise(pairs)))
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[-3:] == ["all, same type", "all, other types", "all"]
    plt.close("all")
    same = summarise([pair for pair in pairs if pair["kind"] == "same type"])
    assert {row["source"] for row in same if row["task"] == "all"} == {""}


def test_figure(tmp_path: Path) -> None:
    ax = curves.convergence([curve(VANILLA), curve(VANILLA, seed="1"), curve(FAST, "imdb")])
    assert ax.get_title() == "SST-2"
    figure = ax.get_figure(root=True)
    assert figure is not None
    # Outside the axes, where no curve crosses it.
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["vanilla", "from IMDB", "majority class"]
    figure.canvas.draw()
    assert not legend.get_window_extent().overlaps(ax.get_window_extent())
    # Two seeds have no interval.
    assert not [band for band in ax.collections if isinstance(band, PolyCollection)]
    assert save(ax, tmp_path / "curves.png").stat().st_size > 5000
    assert not plt.get_fignums()


def test_bands_need_three_seeds() -> None:
    ax = curves.convergence([curve(VANILLA, seed=str(seed)) for seed in range(3)] + [curve(FAST, "sst2")])
    assert len([band for band in ax.collections if isinstance(band, PolyCollection)]) == 1
    figure = ax.get_figure(root=True)
    assert figure is not None
    assert "from a prompt of the same task" in [text.get_text() for text in figure.legends[0].get_texts()]
    plt.close(figure)


def test_lower_bounds_are_open_and_have_no_interval(tmp_path: Path) -> None:
    pairs = []
    for seed, values in enumerate((FAST, [0.7, 0.85, 0.9], [0.5, 0.9, 0.94])):
        pairs += compare(curve(VANILLA), curve(values, "imdb", str(seed)))
        pairs += compare(curve(VANILLA, task="mnli"), curve([0.95, 0.9, 0.9], "snli", str(seed), task="mnli"))
    ax = curves.speedups(pd.DataFrame(summarise(pairs)))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["IMDB \u2192 SST-2", "SNLI \u2192 MNLI", "all"]
    marks = [line for line in ax.lines if line.get_marker() == "o"]
    assert [mark.get_markerfacecolor() == "white" for mark in marks] == [False, True, True]
    assert [bar.get_segments()[0][0, 1] for bar in ax.collections] == [0]  # type: ignore[attr-defined]
    arrows = [text for text in ax.texts if text.arrow_patch is not None]  # type: ignore[attr-defined]
    assert len(arrows) == 2
    assert [text.get_text() for text in ax.texts if "/" in text.get_text()] == ["3/3", "3/3", "6/6"]
    assert save(ax, tmp_path / "speedups.png").stat().st_size > 5000


def write_run(folder: Path, values: list[float], init: str = "Vocabulary()", **options: Any) -> Path:
    """Write a run folder as `fit --convergence` leaves it."""
    seed, facts = options.pop("seed", 0), {"task": "sst2", "init": init, "learning_rate": "0.1"}
    if init.startswith("FromPrompt"):
        facts["source_prompt"] = str(folder.parent / "source.safetensors")
    names = options.pop("names", ["prompt"])
    rows = ["prompt,step,samples,seconds,metric,value,majority"]
    for number, name in enumerate(names):
        filled = torch.full((2, 4), float(options.get("fill", seed + number)))
        Prompt(filled, {**facts, "seed": str(seed + number)}).save(folder / f"{name}.safetensors")
        rows += [f"{name},{100 * i},{3200 * i},{1 + i},accuracy,{value},0.5" for i, value in enumerate(values)]
    (folder / "convergence.csv").write_text("\n".join(rows) + "\n")
    config: dict[str, Any] = {
        "model": {"backbone": "x", "init": init, "prompt_length": 2},
        "data": {"task": "sst2", "seed": 0, "num_workers": 0},
        "trainer": {"max_steps": 100 * (len(values) - 1), "val_check_interval": 100},
        "early_stopping": None,
    }
    options.pop("fill", None)
    for key, value in options.items():
        group, _, name = key.partition("__")
        config[group] = {**config[group], name: value} if name else value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_runs_are_paired_by_options_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Prompt(torch.ones(2, 4), {"task": "imdb"}).save(tmp_path / "source.safetensors")
    for seed in (0, 1):
        write_run(tmp_path / f"vanilla{seed}", VANILLA, seed=seed)
    write_run(
        tmp_path / "transferred", FAST, "FromPrompt(...)", names=["prompt-seed0", "prompt-seed1"], data__num_workers=2
    )
    assert (
        main(["analyze", "convergence", str(tmp_path), "--output", str(tmp_path / "out"), "--tolerance", "0.005"]) == 0
    )
    shown = capsys.readouterr().out
    assert "3 times" in shown
    assert shown.splitlines()[-1] == str(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "runs.csv",
        "pairs.csv",
        "speedups.csv",
        "speedups.png",
        "speedups.txt",
        "curves.csv",
        "curves.png",
        "curves.txt",
    }
    evaluations = pd.read_csv(tmp_path / "out" / "curves.csv")
    assert evaluations.groupby("run")["step"].min().eq(0).all()
    assert set(evaluations["source"].dropna()) == {"imdb"}
    pairs = pd.read_csv(tmp_path / "out" / "pairs.csv")
    assert set(pairs["source"]) == {"imdb"}
    assert pairs["seed"].tolist() == [0] * 8 + [1] * 8
    assert pairs[pairs["unit"] == "seconds"]["value"].isna().all()
    assert len(pd.read_csv(tmp_path / "out" / "runs.csv")) == 4
    # A second call does not mistake the first call's tables for runs.
    assert len(convergence([tmp_path], tmp_path / "out")) == 8


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"data__seed": 1}, "differs in data.seed"),
        ({"model__prompt_length": 3}, "differs in model.prompt_length"),
        ({"seed": 4}, "differs in seed"),
        ({"trainer__max_steps": 900}, "stopped at step 500 of 900"),
        ({"early_stopping": 3}, "--early_stopping"),
        ({"init": "Vocabulary()", "seed": 1}, "nothing to compare"),
        ({"init": "Vocabulary()"}, "the same run twice"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    vanilla = write_run(tmp_path / "vanilla", VANILLA)
    other = write_run(tmp_path / "other", FAST, **{"init": "FromPrompt(...)", **options})
    with pytest.raises(UserError, match=expected):
        convergence([vanilla, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_seeds_of_the_same_run_are_refused(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"vanilla{seed}", VANILLA, seed=seed)
        write_run(tmp_path / f"other{seed}", FAST, "FromPrompt(...)", seed=seed, fill=3)
    with pytest.raises(UserError, match=r"are the same run with the seeds 0 and 1.*--data\.seed"):
        convergence([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # The source itself may be the best prompt of both.
    write_run(tmp_path / "other1", [*FAST[:-1], 0.8], "FromPrompt(...)", seed=1, fill=3)
    assert len(convergence([tmp_path], tmp_path / "out")) == 8


def test_runs_without_a_beginning_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", VANILLA)
    log = run / "convergence.csv"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], *lines[2:]]))
    assert main(["analyze", "convergence", str(run), "--output", str(tmp_path / "out")]) == 2
    assert "not evaluated at step 0" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["analyze", "convergence", str(tmp_path / "empty"), "--output", str(tmp_path / "out")]) == 2
    assert "fit --convergence" in capsys.readouterr().err
    (run / "config.yaml").write_text("- 1")
    assert main(["analyze", "convergence", str(run), "--output", str(tmp_path / "out")]) == 2
    assert "not the folder of a run" in capsys.readouterr().err
