"""Sections of `report`: settings of scores, figures for print, origin, folders without a section, readable names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from prompt_transfer.cli import main
from prompt_transfer.studies.report import kinds, scores
from prompt_transfer.studies.report.content import Section
from prompt_transfer.studies.report.convergence_curves import read_curves
from prompt_transfer.studies.report.origin import origin_of
from prompt_transfer.studies.report.study import report

RESULTS = Path(__file__).resolve().parent.parent / "results"


def _section(folder: Path, title: str) -> Section:
    (found,) = [section for section in kinds.sections(folder) if section.title == title]
    return found


def _texts(section: Section, place: int = 0) -> list[list[str]]:
    table = section.tables[place]
    return [[column.text(row) for column in table.columns] for row in table.rows]


def test_experiments_that_differ_in_a_setting_keep_their_names() -> None:
    section = _section(RESULTS / "quantization", "Scores")
    dtypes = ["bfloat16", "bfloat16+int8", "bfloat16+int4", "bfloat16+nf4"]
    assert section.lead.startswith("One prompt on SST-2 next to its baselines")
    assert section.lead.endswith("4 settings that differ in dtype.")
    assert [tile.note for tile in section.tiles] == dtypes
    assert [column.title for column in section.tables[0].columns][:4] == ["task", "prompt", "dtype", "metric"]
    rows = _texts(section)
    assert len({tuple(row) for row in rows}) == len(rows) == 8
    # A line of the chart per setting, with one point of each kind.
    points = section.charts[0].spec["data"]["values"]
    assert len({(point["name"], point["what"]) for point in points}) == len(points) == 8
    assert points[2]["name"] == "SST-2, accuracy, bfloat16+int8"


def _score(**facts: Any) -> dict[str, Any]:
    common = {"task": "sst2", "split": "test", "metric": "accuracy", "low": 0.4, "high": 0.8, "n": 10, "value": 0.5}
    return {**common, "what": "this prompt", "prompt": "runs/a.safetensors", "seed": 0, **facts}


def test_backbones_seeds_and_files_tell_prompts_apart(tmp_path: Path) -> None:
    rows = [_score(backbone=name, seed=seed) for name in ("bert-nano", "gpt2-nano") for seed in (0, 1)]
    rows.insert(2, _score(what="majority class", prompt=None, seed=None))
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    section = _section(tmp_path, "Scores")
    assert [row[1:3] for row in _texts(section)] == [
        ["this prompt, seed 0", "bert-nano"],
        ["this prompt, seed 1", "bert-nano"],
        # A baseline without a backbone follows its prompts.
        ["majority class", "bert-nano"],
        ["this prompt, seed 0", "gpt2-nano"],
        ["this prompt, seed 1", "gpt2-nano"],
    ]
    assert section.tiles[0].note == "bert-nano, this prompt, seed 0"
    names = scores._short(["runs/x/start/prompt.safetensors", "runs/x/nostart/prompt.safetensors"])
    assert list(names.values()) == ["start", "nostart"]


def test_tiles_say_how_they_were_chosen(tmp_path: Path) -> None:
    pd.DataFrame([_score(prompt=f"p{number}") for number in range(6)]).to_csv(tmp_path / "results.csv", index=False)
    section = _section(tmp_path, "Scores")
    assert len(section.tiles) == 4
    assert section.tile_note == "The first 4 of 6 scores of prompts; the table has all."
    section = _section(RESULTS / "nano" / "neurons", "Indicators of transfer")
    assert section.tile_note.startswith("The three best of 22 indicators by this statistic")


def test_statistics_have_readable_names() -> None:
    section = _section(RESULTS / "nano" / "neurons", "Indicators of transfer")
    statistics = {row["statistic"] for row in section.tables[0].rows}
    assert "Spearman, mean per target, own prompts included" in statistics
    assert not any("spearman" in name or "kendall" in name for name in statistics)


def test_a_start_from_the_same_task_is_named_so() -> None:
    section = _section(RESULTS / "nano" / "projection" / "init", "Convergence")
    assert section.lead == (
        "Speed-up of training that starts from a prompt of the same task, against the same run from scratch."
    )
    names = {row["name"] for row in section.charts[0].spec["data"]["values"]}
    assert "the same task → SST-2" in names
    assert _texts(section)[0][1] == "the same task"
    section = _section(RESULTS / "nano" / "transfer_init", "Convergence")
    assert "starts from another task's prompt" in section.lead


def test_pdf_has_the_figures_of_every_study(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    folder = tmp_path / "all"
    for place in ("compare/sst2_minilm_mlm", "nano/transfer_init", "quantization", "nano/recommend", "quickstart"):
        shutil.copytree(RESULTS / place, folder / place)
    _sweep(folder / "sweep")
    written = report(folder, tmp_path / "page.html", pdf=tmp_path / "pdf")
    assert [path.name for path in written.figures] == [
        "nano-transfer-init-analyze-convergence-speedups.pdf",
        "nano-recommend-prompts-recommend-quality.pdf",
        "compare-sst2-minilm-mlm-compare-compare.pdf",
        "compare-sst2-minilm-mlm-compare-curves.pdf",
        "sweep-sweep-curves.pdf",
        "quickstart-quickstart-quickstart.pdf",
        "quantization-test-scores.pdf",
    ]
    for path in written.figures:
        assert path.stat().st_size > 3000
        assert path.with_suffix(".txt").read_text().strip()


def _sweep(folder: Path) -> None:
    run = folder / "runs" / "a"
    run.mkdir(parents=True)
    facts = {"run": "a", "status": "done", "attempts": 1, "seconds": 1.0, "error": None}
    pd.DataFrame([facts]).to_csv(folder / "sweep.csv", index=False)
    pd.DataFrame([{"task": "sst2", "value": 0.6, "metric": "accuracy"}]).to_csv(run / "results.csv", index=False)
    log = {"prompt": "prompt", "step": [0, 10], "value": [0.5, 0.6], "majority": 0.52}
    pd.DataFrame(log).to_csv(run / "convergence.csv", index=False)


def test_curves_are_drawn_again_from_their_table(tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "nano" / "transfer_init", tmp_path / "init")
    rows = [
        {"task": "sst2", "source": source, "seed": 0, "metric": "accuracy", "step": step, "samples": step,
         "seconds": 1.0, "value": value, "majority": 0.5, "run": f"run-{source}"}
        for source, values in ((None, (0.5, 0.6, 0.7)), ("imdb", (0.68, 0.69, 0.7)))
        for step, value in enumerate(values)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "init" / "curves.csv", index=False)
    vanilla, other = read_curves(tmp_path / "init" / "curves.csv")
    assert (vanilla.source, other.source, vanilla.converged(), other.converged(0.02)) == (None, "imdb", 2, 0)
    runs = [curve.facts(0.02) for curve in (vanilla, other)]
    pd.DataFrame(runs).to_csv(tmp_path / "init" / "runs.csv", index=False)
    section = _section(tmp_path / "init", "Convergence")
    assert [figure.name for figure in section.figures] == ["curves", "speedups"]
    # The run converged two points below its best: with another tolerance than the default.
    assert "within 2 points" in section.figures[0].caption


def test_no_figures_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vl_convert")
    row = {"task": "sst2", "prompt": "p", "seed": 0, "split": "validation", "metric": "accuracy", "value": 0.7, "n": 1}
    (tmp_path / "run").mkdir()
    pd.DataFrame([{**row, "best_step": 3}]).to_csv(tmp_path / "run" / "results.csv", index=False)
    out = ["--output", str(tmp_path / "page.html"), "--pdf", str(tmp_path / "pdf")]
    assert main(["report", str(tmp_path / "run"), *out]) == 0
    assert "no figures: these sections have none" in capsys.readouterr().out


def test_seeds_come_from_results_and_the_sweep() -> None:
    facts = origin_of(RESULTS / "nano" / "cross_task", "transfer").facts
    assert facts["seeds"] == "prompts 0, 1, 2; data.seed 0; model.seeds [0, 1, 2]"
    assert facts["not recorded"] == (
        "versions, commit, data (SHA-256 of the tokens): the folder has no provenance.json"
    )


def test_seeds_of_a_grid_are_alternatives(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"grid": {"seed_everything": [1, 2]}, "fit": {"data.seed": 3}}))
    content = {"command": "sweep", "processes": [{"torch": "2.13.0", "commit": None}]}
    (tmp_path / "provenance.json").write_text(json.dumps(content))
    facts = origin_of(tmp_path, "sweep").facts
    assert set(facts["seeds"].split("; ")) == {"seed_everything 1 or 2", "data.seed 3"}
    assert facts["not recorded"] == "commit, data (SHA-256 of the tokens)"


def test_a_recommendation_has_a_section(tmp_path: Path) -> None:
    section = _section(RESULTS / "nano" / "recommend", "Recommended sources")
    assert section.lead == "18 rankings of sources, judged by a transfer matrix of 13 targets."
    assert section.tiles[0].label == "sample score"
    assert "of 19 rankings by nDCG, a random order among them" in section.tile_note
    assert [table.name for table in section.tables] == ["quality", "costs"]
    table = "target,prompt,source,source_type,path,sample_score\nsst2,imdb/prompt,imdb,sentiment,/x,0.75\n"
    (tmp_path / "recommendation.csv").write_text(table)
    section = _section(tmp_path, "Recommended sources")
    assert section.lead == "1 prompt as starts for SST-2."
    assert _texts(section) == [["SST-2", "IMDB", "0.750", "sentiment", "imdb/prompt"]]


def test_a_quick_start_has_a_section() -> None:
    section = _section(RESULTS / "quickstart", "Quick start")
    assert [tile.value for tile in section.tiles] == ["0.805", "0.728"]
    assert section.tiles[0].note == "random prompt 0.644, majority 0.500"


def test_tables_without_a_section_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vl_convert")
    shutil.copytree(RESULTS / "sst2_smollm2", tmp_path / "all" / "sst2_smollm2")
    shutil.copytree(RESULTS / "quickstart", tmp_path / "all" / "quickstart")
    (tmp_path / "all" / "other").mkdir()
    (tmp_path / "all" / "other" / "notes.csv").write_text("a,b\n1,2\n")
    _sweep(tmp_path / "all" / "sweep")
    found = [str(path.relative_to(tmp_path / "all")) for path in kinds.left_out(tmp_path / "all")]
    # The runs of a sweep are in its section.
    assert found == ["other/notes.csv", "sst2_smollm2/results_experiment.csv"]
    assert main(["report", str(tmp_path / "all"), "--output", str(tmp_path / "page.html")]) == 0
    assert "no section for 2 tables, listed on the page, in: other, sst2_smollm2\n" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "<dt>sst2_smollm2</dt><dd>results_experiment.csv</dd>" in page
