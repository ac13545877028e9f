"""`report`: the page, LaTeX tables and what is found below a folder. The page in a browser: test_report_browser.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from prompt_transfer.analysis.matrix import from_results
from prompt_transfer.cli import main
from prompt_transfer.studies.report import kinds, page
from prompt_transfer.studies.report.charts import COLOURS, groups
from prompt_transfer.studies.report.content import Column, Table, number
from prompt_transfer.studies.report.latex import to_latex
from prompt_transfer.studies.report.origin import origin_of
from prompt_transfer.studies.report.transfer import _heatmap, cells, section
from prompt_transfer.utils.errors import UserError

RESULTS = Path(__file__).resolve().parent.parent / "results"


def _titles(folder: Path) -> list[str]:
    return [section.title for section in kinds.sections(folder)]


def test_cells_are_means_over_seeds_with_their_baselines() -> None:
    facts = {"n": 100, "learned": True, "task_type": "nli", "source_type": "nli", "metric": "accuracy"}
    rows = [
        {"task": "rte", "source": "rte", "kind": "trained", "value": value, "low": value - 0.1, "high": value + 0.1,
         "relative": value / 0.75, "chance_corrected": (value - 0.5) / 0.25, **facts}
        for value in (0.7, 0.8)
    ]  # fmt: skip
    rows.append({**rows[0], "source": "majority", "kind": "majority", "value": 0.5, "low": 0.4, "high": 0.6})
    rows.append({**rows[0], "source": "random_uniform", "kind": "random", "value": 0.45, "low": 0.4, "high": 0.5})
    own = cells(pd.DataFrame(rows)).iloc[0]
    assert own["value"] == pytest.approx(0.75)
    assert (own["low"], own["high"], own["prompts"]) == (pytest.approx(0.65), pytest.approx(0.85), 2)
    assert (own["majority"], own["random"], own["own"]) == (0.5, 0.45, pytest.approx(0.75))
    assert own["seeds"] == "0.700, 0.800"


def test_cells_that_were_not_scored_are_empty() -> None:
    frame = pd.read_parquet(RESULTS / "nano" / "cross_task" / "results.parquet")
    matrix = from_results(frame)
    chart = _heatmap(matrix, cells(frame[~((frame["task"] == "mrpc") & (frame["source"] == "imdb"))]))
    rows = chart.spec["data"]["values"]
    assert len(rows) == 13 * 15
    (empty,) = [row for row in rows if row["value"] is None]
    assert (empty["target"], empty["source"], empty["score_text"]) == ("MRPC *", "IMDB", "\N{EN DASH}")
    # Targets that were not learned have neither a colour nor an influence on the range.
    assert {row["target"] for row in rows if row["plain"]} == {row["target"] for row in rows if "*" in row["target"]}
    assert chart.spec["params"][1]["value"]["relative"] == (pytest.approx(0.5753, abs=1e-4), 1)
    # A barely learned target has chance-corrected scores down to -14.7.
    assert chart.spec["params"][1]["value"]["chance_corrected"] == (-1, pytest.approx(1))
    # Cells without a value keep a grey cell: only coloured cells are filtered.
    grey, coloured = chart.spec["layer"][:2]
    assert (grey["mark"]["fill"], "transform" in grey) == ("#9994", False)
    assert coloured["transform"] == [{"filter": "isValid(datum.shown) && !datum.plain"}]


def test_chance_corrected_means_leave_out_what_was_not_learned() -> None:
    found = section(RESULTS / "nano" / "cross_task" / "results.parquet")
    for name in ("means", "contrasts"):
        (table,) = [table for table in found.tables if table.name == name]
        shown = {(row["measure"], row["targets"]) for row in table.rows}
        assert ("chance-corrected", "learned") in shown
        assert ("relative", "all") in shown
        assert ("chance-corrected", "all") not in shown
    (means,) = [chart for chart in found.charts if chart.name == "means"]
    assert set(means.controls[0].options) == {"relative", "relative, learned", "chance_corrected, learned"}


def test_lower_bounds_of_speedups_are_open() -> None:
    (section,) = kinds.sections(RESULTS / "nano" / "transfer_init")
    spec = section.charts[0].spec
    (row,) = [row for row in spec["data"]["values"] if row["bound"]]
    assert (row["name"], row["high"]) == ("SNLI \u2192 MNLI", None)
    assert row["text"].startswith("at least 9.38")
    assert spec["layer"][-1]["encoding"]["fillOpacity"]["condition"] == {"test": "datum.bound", "value": 0}
    assert [figure.name for figure in section.figures] == ["speedups"]


def test_every_kind_in_the_stored_results_has_a_section() -> None:
    found = _titles(RESULTS)
    tables = {
        "Transfer between tasks": "cross_task/matrix.csv",
        "Indicators of transfer": "neurons/correlations.csv",
        "Overlap of activated neurons": "neurons/overlap.csv",
        "Masked neurons": "neurons/masking.csv",
    }
    for title, table in tables.items():
        assert found.count(title) == len(list(RESULTS.glob(f"*/{table}"))) > 0, title
    assert "Transfer between backbones" in found
    assert "Convergence" in found
    assert "Scores" in found
    assert any(title.startswith("Training: SST-2") for title in found)
    # In the order of the registry.
    assert found[0] == "Transfer between tasks"
    assert found[-1] == "Scores"
    assert found.count("Recommended sources") == found.count("Quick start") == 1


def test_a_sweep_covers_its_runs(tmp_path: Path) -> None:
    pd.DataFrame(
        [{"run": "a", "data.task": "sst2", "status": "done", "attempts": 1, "seconds": 60.0, "error": None},
         {"run": "b", "data.task": "rte", "status": "failed", "attempts": 2, "seconds": 3.0, "error": "no data"}]
    ).to_csv(tmp_path / "sweep.csv", index=False)  # fmt: skip
    run = tmp_path / "runs" / "a"
    (run / "logs").mkdir(parents=True)
    (run / "logs" / "metrics.csv").write_text("epoch,step,train/loss,validation/score\n0,9,0.5,\n0,9,,0.6\n")
    pd.DataFrame([{"task": "sst2", "value": 0.6, "metric": "accuracy"}]).to_csv(run / "results.csv", index=False)
    pd.DataFrame(
        {"prompt": "prompt", "step": [0, 10], "samples": [0, 320], "seconds": [0, 1], "metric": "accuracy",
         "value": [0.5, 0.6], "majority": 0.52}
    ).to_csv(run / "convergence.csv", index=False)  # fmt: skip
    (section,) = kinds.sections(tmp_path)
    assert (section.title, section.lead) == ("Sweep", "2 runs of fit, 1 done.")
    assert [tile.value for tile in section.tiles] == ["1 of 2", "1.1 min"]
    values = section.charts[0].spec["data"]["values"]
    found = [(row["x"], row["y"], row["name"], row["start"]) for row in values]
    assert found == [(0, 0.5, "SST-2", "a"), (10, 0.6, "SST-2", "a")]
    assert section.notes == ["1 run failed: b."]
    # The run alone has its own section.
    assert _titles(run) == ["Training: SST-2"]
    log = pd.read_csv(run / "convergence.csv")
    pd.concat([log.assign(prompt=f"prompt-seed{seed}") for seed in (0, 1)]).to_csv(run / "convergence.csv", index=False)
    (section,) = kinds.sections(run)
    starts = [row["start"] for row in section.charts[0].spec["data"]["values"]]
    assert starts == ["prompt-seed0", "prompt-seed0", "prompt-seed1", "prompt-seed1"]


def test_a_comparison_shows_methods_and_paired_differences(tmp_path: Path) -> None:
    facts = {"task": "sst2", "backbone": "roberta-nano", "split": "test (official)", "metric": "accuracy", "n": 1821}
    own = {**facts, "seeds": 3, "value": 0.7, "low": 0.68, "high": 0.72, "trained_parameters": 5120}
    pd.DataFrame([{**own, "method": "prompt"}, {**own, "method": "lora", "value": 0.75}]).to_csv(
        tmp_path / "summary.csv", index=False
    )
    pair = {**facts, "method": "lora", "reference": "prompt", "seeds": 3, "difference": 0.05, "low": 0.03, "high": 0.07}
    pd.DataFrame([pair]).to_csv(tmp_path / "differences.csv", index=False)
    (section,) = kinds.sections(tmp_path)
    scores, differences = section.tables
    assert [[column.text(row) for column in scores.columns[:4]] for row in scores.rows] == [
        ["prompt", "0.700 [0.680, 0.720]", "3", "5,120"],
        ["LoRA", "0.750 [0.680, 0.720]", "3", "5,120"],
    ]
    assert [column.text(differences.rows[0]) for column in differences.columns] == [
        "LoRA",
        "0.050 [0.030, 0.070]",
        "prompt",
    ]


def test_captured_neurons_are_counted_by_layer(tmp_path: Path) -> None:
    activations = np.array([[1.0, -1.0, 2.0, 0.0], [1.0, 1.0, 1.0, -1.0]], dtype=np.float32)
    (tmp_path / "sst2").mkdir()
    save_file({"activations": activations}, tmp_path / "sst2" / "prompt.safetensors", {"task": "sst2"})
    (section,) = kinds.sections(tmp_path)
    assert [row["share"] for row in section.tables[0].rows] == [0.5, 0.75]
    assert section.lead == "Activated neurons of 1 prompt: 2 layers of 4 neurons."


def test_an_unknown_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no results that a report knows (transfer," in error
    assert main(["report", str(tmp_path / "absent"), "--output", str(tmp_path / "page.html")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    columns = "indicator,statistic,value,low,high,p_value,tasks,pairs"
    (tmp_path / "correlations.csv").write_text(columns + "\n")
    with pytest.raises(UserError, match=r"cannot read .*correlations\.csv as results of indicators"):
        kinds.sections(tmp_path)


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
    assert main(["report", str(RESULTS / "nano" / "cross_task"), "--output", "page.html"]) == 2
    assert capsys.readouterr().err.strip().endswith("pip install 'prompt_transfer[report]'")


def test_an_output_that_is_no_page_is_refused(tmp_path: Path) -> None:
    assert main(["report", str(RESULTS / "sst2"), "--output", str(tmp_path / "page.pdf")]) == 2


def test_numbers_and_dashes() -> None:
    assert number(-0.0004, 3) == "0.000"
    assert number(-1.5, 1) == "\N{MINUS SIGN}1.5"
    assert number(float("nan"), 2) == "\N{EN DASH}"
    column = Column("value", "score", "number", ends=("low", "high"), missing="no prompt")
    assert column.text({"value": 0.5, "low": 0.25, "high": 0.75}) == "0.500 [0.250, 0.750]"
    assert column.text({"value": 0.5, "low": float("nan"), "high": float("nan")}) == "0.500"
    assert column.text({"value": float("nan")}) == "\N{EN DASH}"
    assert Column("task", "task", "task").text({"task": "laptop+sst2"}) == "laptop + SST-2"


def test_latex_is_escaped_with_rules_and_intervals() -> None:
    columns = [Column("name", "name"), Column("value", "score", "number", 2, ("low", "high"))]
    rows = [{"name": "a_b & 50 %", "value": -0.5, "low": -0.75, "high": 0.25}, {"name": "none", "value": None}]
    text = to_latex(Table("t", "Means_of", columns, rows, "100 % of #1."), "means")
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"a\_b \& 50 \%", "$-$0.50 [$-$0.75, 0.25]", r"{lr}"):
        assert part in text
    assert r"\caption{Means\_of. 100 \% of \#1.}" in text
    assert r"\label{tab:means}" in text
    assert re.search(r"none & -- \\\\", text)
    long = to_latex(Table("t", "T", columns, [rows[0]] * 41), "t")
    assert r"\begin{longtable}" in long
    assert "booktabs, longtable" in long


def test_groups_are_distinct_beyond_the_palette() -> None:
    names = [f"g{number}" for number in range(12)]
    encoding = groups("g", names)
    marks = zip(encoding["color"]["scale"]["range"], encoding["shape"]["scale"]["range"], strict=True)
    assert len(set(marks)) == 12 > len(COLOURS)


def test_origin_names_versions_seeds_and_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    config = {"backbone": "roberta-nano", "tasks": ["sst2", "rte"], "seed": 3, "data": {"root": None, "limit_eval": 5},
              "output": "x", "prompts": "hf_secret_value"}  # fmt: skip
    process = {"torch": "2.13.0", "prompt_transfer": "0.1.0", "machine": "node1", "commit": "abc", "device": "cpu"}
    data = {"sst2": {"test": "0123456789abcdef"}}
    content = {"command": "transfer", "config": config, "data": data, "processes": [process, process]}
    (tmp_path / "provenance.json").write_text(json.dumps(content))
    origin = origin_of(tmp_path, "transfer")
    assert origin.commands == [
        "prompt-transfer transfer --backbone roberta-nano --tasks sst2,rte --seed 3 --data.limit_eval 5 "
        "--prompts <HF_TOKEN> --output NEW_FOLDER"
    ]
    assert origin.facts["versions"] == "prompt_transfer 0.1.0, torch 2.13.0"
    assert (origin.facts["seeds"], origin.facts["device"]) == ("seed 3", "cpu")
    assert origin.facts["data (SHA-256 of the tokens)"] == "sst2 test 0123456789ab"
    assert origin.facts["processes"].startswith("2;")
    assert "not recorded" not in origin.facts
    empty = origin_of(tmp_path / "empty", "fit").facts
    assert empty == {
        "not recorded": "versions, commit, data (SHA-256 of the tokens): the folder has no provenance.json"
    }


def test_page_tables_and_figures_of_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vl_convert")
    output = tmp_path / "page.html"
    arguments = ["--output", str(output), "--latex", str(tmp_path / "tex"), "--pdf", str(tmp_path / "pdf")]
    assert main(["report", str(RESULTS / "nano" / "cross_task"), *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(output)
    text = output.read_text()
    assert output.stat().st_size < 1_500_000
    # Nothing is loaded from elsewhere.
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:)", markup)
    assert "prompt-transfer sweep --config study/cross_task.yaml" in text
    assert "Ethics_deontology" not in text
    assert ">deontology<" in text
    assert not re.search(r">\s*(?:nan|NaN|None)\s*<", markup)
    assert "0.740 [0.712, 0.766]" in text
    assert {path.name for path in (tmp_path / "pdf").glob("*.pdf")} == {
        "transfer-matrix.pdf", "transfer-matrix-clustered.pdf", "transfer-summary.pdf",
    }  # fmt: skip
    assert (tmp_path / "pdf" / "transfer-matrix.txt").read_text().startswith("Transfer matrix")
    table = (tmp_path / "tex" / "transfer-means.tex").read_text()
    assert "0.869 [0.795, 0.944]" in table


def test_several_prompts_keep_their_names(tmp_path: Path) -> None:
    common = {"task": "sst2", "split": "test", "metric": "accuracy", "low": 0.4, "high": 0.8, "n": 10}
    given = (("this prompt", "runs/a", 0.7), ("this prompt", "runs/b", 0.6), ("mean of 2 prompts", None, 0.65))
    pd.DataFrame([{**common, "what": what, "prompt": prompt, "value": value} for what, prompt, value in given]).to_csv(
        tmp_path / "results.csv", index=False
    )
    (section,) = kinds.sections(tmp_path)
    assert section.lead.startswith("2 prompts on SST-2 next to their baselines")
    assert [row["what"] for row in section.tables[0].rows] == ["a", "b", "mean of 2 prompts"]
    assert [section.tables[0].columns[-1].text(row) for row in section.tables[0].rows[:2]] == ["runs/a", "runs/b"]
    assert [(tile.value, tile.note) for tile in section.tiles] == [("0.700", "a"), ("0.600", "b")]


def test_a_run_without_a_log_shows_its_results(tmp_path: Path) -> None:
    row = {"task": "sst2", "backbone": "b", "prompt": "p", "seed": 0, "split": "validation (official)",
           "metric": "accuracy", "value": 0.7, "n": 10, "majority": 0.5, "best_step": 3}  # fmt: skip
    pd.DataFrame([row]).to_csv(tmp_path / "results.csv", index=False)
    (section,) = kinds.sections(tmp_path)
    assert (section.title, section.tables[0].rows[0]["value"]) == ("Training: SST-2", 0.7)
    # The section of a log has that table, too.
    (tmp_path / "logs").mkdir()
    pd.DataFrame([{"epoch": 0, "step": 2, "validation/score": 0.7}]).to_csv(
        tmp_path / "logs" / "metrics.csv", index=False
    )
    (section,) = kinds.sections(tmp_path)
    assert "learning curves" not in section.lead
