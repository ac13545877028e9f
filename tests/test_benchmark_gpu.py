"""`make bench-gpu`: its commands fit the scripts, and it needs a GPU."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def test_without_a_gpu_it_stops_with_one_line(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        gpu.run(str(tmp_path / "reports"))
    assert str(stopped.value).startswith("error: no GPU found")
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "reports").exists()


def test_it_makes_every_table_of_bench(gpu: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bench = re.search(r"^bench: .*?\n\n", (ROOT / "Makefile").read_text(), re.M | re.S)
    assert bench is not None
    reports = set(re.findall(r"--output \$\(BENCH\)/(\w+)\.json", bench[0]))
    # Tables of real models are those of `make bench-real`.
    tables = {name for name in gpu.table.PARTS if not name.endswith("_smollm2")}
    assert reports == set(gpu.COMMANDS) == tables
    gpu.run("reports", str(tmp_path), dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(reports)
    assert all("--device cuda" in line for line in lines)


@pytest.mark.parametrize("real", [True, False])
def test_every_script_takes_its_options(gpu: Any, tmp_path: Path, real: bool) -> None:
    if real:
        (tmp_path / "sst2").mkdir()
    for name, command in gpu.commands(tmp_path, str(tmp_path), "cuda").items():
        options = inspect.signature(importlib.import_module(name).run).parameters
        given = [part.removeprefix("--") for part in command if part.startswith("--")]
        assert {*given} <= {*options}, name
        assert "device" in given


def test_a_report_is_printed_and_a_late_one_is_named(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = {"gpu": "a GPU", "cpu": "a CPU", "cores": 2}
    row = {"attention": "full", "prompts": 8, "at_once_s": 1.5, "one_after_the_other_s": 6.0, "speed": 4.0}
    report = {"what": "8 prompts", "steps": 50, "machine": machine, "versions": {"torch": "2"}}
    text = json.dumps({**report, "rows": [{**row, "cost_over_one_run": 2.0}]})
    (tmp_path / "many_prompts.json").write_text(text)
    (tmp_path / "cost.json").write_text("of an earlier run")
    python = [sys.executable, "-S", "-c"]
    wanted = {
        "many_prompts": [*python, "pass"],
        "start_up": [*python, "raise SystemExit(3)"],
        "cost": [*python, "import time; time.sleep(60)"],
    }
    monkeypatch.setattr(gpu, "commands", lambda *_: wanted)
    with pytest.raises(SystemExit, match=r"error: no table of start_up \(exit status 3\), cost \(out of time\)"):
        gpu.run(str(tmp_path), minutes=3 / 60, device="cpu")
    assert "8 prompts, 50 steps (a GPU; torch 2)" in capsys.readouterr().out


def test_prompts_are_trained_on_the_device(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("many_prompts")
    asked: list[str] = []

    class Stand:
        def __init__(self, **options: Any) -> None:
            asked.append(options["accelerator"])

        def fit(self, *_: Any, **__: Any) -> None:
            pass

    monkeypatch.setattr(script.L, "Trainer", Stand)
    assert script.train(None, None, 2, 0) >= 0
    script.train(None, None, 2, 0, "cuda")
    assert asked == ["cpu", "gpu"]
