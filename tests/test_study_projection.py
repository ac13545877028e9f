"""The study of projectors: scores equal those of single prompts, controls are complete, nothing is computed twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_cross_model_projector import P, save_prompts, tasks  # noqa: F401  (a fixture)
from test_transfer import counted, score_alone

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.projectors.file import ProjectorFile, Side
from prompt_transfer.projectors.projector import MLP, Linear, Space
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.studies.projection.load import load
from prompt_transfer.studies.projection.plan import plan
from prompt_transfer.studies.projection.study import ProjectionStudy, projection
from prompt_transfer.studies.projection.table import CONTROLS, check_controls
from prompt_transfer.studies.targets import EvaluationData
from prompt_transfer.utils.errors import UserError

Tiny = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def study(tiny: Tiny, tasks: list[str], tmp_path: Path) -> ProjectionStudy:  # noqa: F811
    """Set up roberta to gpt2: a linear map, and a network that gives the same prompt for all sources."""
    source, target = tiny("roberta"), tiny("gpt2")
    sides = [Side.of_backbone(FrozenBackbone(str(folder))) for folder in (source, target)]
    space = Space(P, 32)
    linear = Linear().build(space, space, torch.Generator().manual_seed(0))
    facts = {"tasks": "films", "objective": "task_tuning", "seed": "0"}
    ProjectorFile(linear, *sides, facts).save(tmp_path / "linear.safetensors")
    collapsed = MLP(3).build(space, space, torch.Generator().manual_seed(0))
    with torch.no_grad():
        collapsed.down.zero_()
    whole = [replace(side, prompt_length=P) for side in sides]
    ProjectorFile(collapsed, *whole, facts).save(tmp_path / "run" / "projector.safetensors")
    return ProjectionStudy(
        projectors=[str(tmp_path / "linear.safetensors"), str(tmp_path / "run")],
        sources=[str(save_prompts(tmp_path / "source", source))],
        own=[str(save_prompts(tmp_path / "own", target))],
        tasks=tasks,
        output=str(tmp_path / "out"),
        data=EvaluationData("local"),
        random_prompts=1,
        shuffles=2,
        closed_forms=["least_squares"],
        accelerator="cpu",
    )


def test_scores_are_those_of_each_prompt_alone(study: ProjectionStudy, tmp_path: Path) -> None:
    frame = projection(study)
    backbone = FrozenBackbone(ProjectorFile.load(study.projectors[0]).target.backbone)
    source = FrozenBackbone(ProjectorFile.load(study.projectors[0]).source.backbone)
    table = frame[frame["metric"].notna()].set_index(["projector", "task", "what"])
    assert set(frame["what"]) == {*CONTROLS, "projected", "least_squares"}
    assert not table["value"].isna().any()
    for name in study.projectors:
        file = ProjectorFile.load(name)
        where = "linear" if "linear" in name else "run"
        for number, task in enumerate(("films", "rooms", "pairs")):

            def alone(*prompts: torch.Tensor) -> float:
                scores = [score_alone(backbone, prompt, study.tasks[number]) for prompt in prompts]  # noqa: B023
                return float(np.mean(scores))

            own_source = [Prompt.load(tmp_path / "source" / f"{task}-{seed}.safetensors") for seed in (0, 1)]
            others = [Prompt.load(path) for path in sorted((tmp_path / "source").iterdir()) if task not in path.name]
            # Two shuffles of three tasks: each other task is the substitute once.
            expected = {
                "own": alone(
                    *(Prompt.load(tmp_path / "own" / f"{task}-{seed}.safetensors").embeddings for seed in (0, 1))
                ),
                "projected": alone(*(file.project(prompt).embeddings for prompt in own_source)),
                "shuffled_source": alone(*(file.project(prompt).embeddings for prompt in others)),
                "constant_source": alone(file.rows(random_prompt(source, (P, 32), 1)[None])[0]),
                "random_vocabulary": alone(random_prompt(backbone, (P, 32), 1)),
            }
            for what, value in expected.items():
                assert table.loc[(where, task, what), "value"] == pytest.approx(value, abs=1e-6), (name, task, what)
    assert table.loc[("run", "rooms", "projected"), "group"] == "same_type"
    assert set(table.loc["run"].groupby("task")["group"].first()) == {"trained", "same_type", "other_type"}


def test_a_collapsed_projector_is_seen(study: ProjectionStudy) -> None:
    frame = projection(study).set_index(["projector", "task", "what"])
    collapsed, linear = frame.loc["run"], frame.loc["linear"]
    assert collapsed["cosine"].iloc[0] == pytest.approx(1.0, abs=1e-5)
    assert linear["cosine"].iloc[0] < 0.5
    for task in ("films", "rooms", "pairs", "mean of trained", "mean of same_type", "mean of other_type"):
        for control in ("shuffled_source", "constant_source", "mean_source"):
            row = collapsed.loc[(task, control)]
            assert row["ahead"] == row["ahead_low"] == row["ahead_high"] == 0.0
    row = linear.loc[("rooms", "baseline")]
    assert row["ahead"] == pytest.approx(linear.loc[("rooms", "projected"), "value"] - row["value"])
    assert row["ahead_low"] <= row["ahead"] <= row["ahead_high"]
    assert pd.isna(linear.loc[("rooms", "projected"), "ahead"])


def test_a_second_time_nothing_is_computed(
    study: ProjectionStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = projection(study)
    again = counted(monkeypatch)
    pd.testing.assert_frame_equal(projection(study), whole)
    assert again == []
    assert {"projection.csv", "projection.parquet", "projection.png"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert json.loads(whole["values"].iloc[0])


def test_there_is_no_table_without_controls(study: ProjectionStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(study, load(study))
    cells: dict[str, Any] = {**planned.projected["linear"].cells, **planned.common}
    check_controls(cells, planned.targets, {})
    for left_out in cells:
        rest = {what: cell for what, cell in cells.items() if what != left_out}
        with pytest.raises(ValueError, match="no table of projectors without their controls"):
            check_controls(rest, planned.targets, {})
    with pytest.raises(ValueError, match="own on rooms missing"):
        check_controls({**cells, "own": {**cells["own"], "rooms": []}}, planned.targets, {})
    # A closed form may be missing if the reason is given.
    nothing = {**cells, "least_squares": {task: [] for task in ("films", "rooms", "pairs")}}
    check_controls(nothing, planned.targets, {"least_squares": "no shared tokens"})
    with pytest.raises(ValueError, match="least_squares missing"):
        check_controls(nothing, planned.targets, {})


def test_a_closed_form_that_cannot_be_has_a_row_that_says_why(
    study: ProjectionStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("the vocabularies share 3 tokens; a map needs 32")

    monkeypatch.setattr("prompt_transfer.projectors.closed_form.LeastSquares.fit", refuse)
    with pytest.warns(UserWarning, match="no least_squares baseline: the vocabularies share 3 tokens"):
        frame = projection(study)
    rows = frame[frame["what"] == "least_squares"]
    assert rows["value"].isna().all()
    assert set(rows["note"]) == {"the vocabularies share 3 tokens; a map needs 32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"random_prompts": 0}, "are required controls: give 1 or more"),
        ({"shuffles": 0}, "are required controls: give 1 or more"),
        ({"closed_forms": []}, "--closed_forms is empty: choose at least one of least_squares"),
        ({"closed_forms": ["magic"]}, "--closed_forms magic"),
    ],
)
def test_controls_cannot_be_switched_off(change: dict[str, Any], message: str, study: ProjectionStudy) -> None:
    with pytest.raises(UserError, match=message):
        replace(study, **change)


def test_what_is_missing_is_told_before_anything_is_computed(study: ProjectionStudy, tmp_path: Path) -> None:
    (tmp_path / "own" / "rooms-0.safetensors").unlink()
    (tmp_path / "own" / "rooms-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"no own \(target\) prompt was trained on rooms"):
        projection(study)
    with pytest.raises(UserError, match="at least two tasks"):
        projection(replace(study, tasks=study.tasks[:1]))
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(study: ProjectionStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "analyze", "projection", *study.projectors, "--sources", study.sources[0], "--own", study.own[0], "--tasks",
        ",".join(study.tasks), "--data.source", "local", "--random_prompts", "1", "--closed_forms", "least_squares",
        "--output", str(tmp_path / "out"), "--accelerator", "cpu",
    ]  # fmt: skip
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "mean cosine between projections of different tasks" in out
    assert out.splitlines()[-1] == str(tmp_path / "out")
