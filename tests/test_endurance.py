"""Fuzzing and soak scripts: they detect planted faults and find none in the project."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fuzz_importers")


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("soak")


def test_what_goes_wrong_is_seen(fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fuzz.Fuzz(tmp_path, 0)
    # Undamaged files are accepted, so refusals are due to the damage.
    for kind in ("prompt", "projector", "neurons"):
        assert [made.outcome(kind, data) for data in made.whole[kind]] == ["accepted"] * len(made.whole[kind])
    for kind in ("zip", "legacy"):
        assert made.outcome(kind, made.whole[kind][0]) == made.outcome(kind, made.whole[kind][2]) == "accepted"
    assert made.make(7) == made.make(7)

    def outcome(does: Any) -> str:
        monkeypatch.setitem(fuzz.READERS, "prompt", does)
        return made.outcome("prompt", b"x")

    def wait(path: Path) -> None:
        while True:
            pass

    assert outcome(lambda path: {}["a"]) == "crash: KeyError: 'a'"
    assert outcome(lambda path: os.mkdir(tmp_path / "executed")).startswith("executed: os.mkdir")  # noqa: PTH102
    assert outcome(lambda path: (tmp_path / "executed").touch()) == "executed: the marker exists"
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 0.1)
    assert outcome(wait) == "hang"


def test_a_process_that_dies_is_told(fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fuzz.Fuzz(tmp_path, 0)
    monkeypatch.setattr(made, "read", lambda number: os._exit(3))
    found = fuzz.in_process(made, range(5, 9), None)
    assert found["wrong"] == ["the process that read files 5 to 8 ended with 3"]


@pytest.mark.slow
def test_two_thousand_mutated_files(fuzz: ModuleType, tmp_path: Path) -> None:
    report = fuzz.fuzzed(2000, seed=1, keep=tmp_path / "kept", chunk=1000)
    assert report["wrong"] == []
    assert report["accepted"] + report["refused"] == 2000
    assert report["accepted"] > 20


def test_growth_and_leaks_by_hand(soak: ModuleType) -> None:
    row = {"files": 9, "hooks": 0, "children": 1, "threads": 2, "tensors": 50}
    # Forty samples: the first quarter is warm-up, then the first four are compared with the last four.
    rows = [{**row, "rss_mib": 100.0 + min(number, 10)} for number in range(40)]
    assert soak.verdict(rows)["growth"] == 0
    assert soak.verdict(rows)["well"]
    grown = [{**one, "rss_mib": one["rss_mib"] + (3.3 if number > 30 else 0)} for number, one in enumerate(rows)]
    assert soak.verdict(grown)["growth"] == pytest.approx(0.03)
    assert not soak.verdict(grown)["well"]
    once = [*rows[:-1], {**rows[-1], "tensors": 51}]
    assert soak.verdict(once)["well"]
    leaking = [{**one, "hooks": 2 if number > 30 else 0} for number, one in enumerate(rows)]
    assert soak.verdict(leaking)["leaked"]["hooks"] == 2
    assert not soak.verdict(leaking)["well"]


@pytest.mark.slow
def test_a_short_soak(soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    options = argparse.Namespace(
        backbone="roberta-nano", task="builtin_movies", steps=16, interval=4, every=1, num_workers=0, limit_eval=8
    )
    report = soak.soak(options, tmp_path)
    assert (report["steps"], report["evaluations"], len(report["samples"])) == (16, 4, 16)
    assert report["leaked"]["hooks"] == report["leaked"]["children"] == 0
    assert report["after_the_run"]["hooks"] == report["before_the_run"]["hooks"]
