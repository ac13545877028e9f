"""Provenance files, and the mix-ups they prevent."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_cli import error_of, fit

from prompt_transfer.cli import main
from prompt_transfer.data.tokens import TokenTable
from prompt_transfer.utils import paths
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.provenance import check_same_data, commit, read_provenance, write_provenance

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))


def table(tokens: list[int], labels: list[int], task: int = 0) -> TokenTable:
    """Build a table of two rows with two tokens each."""
    ids = np.arange(2) + (task << 32)
    offsets = np.array([0, 2, 4])
    return TokenTable(np.array(tokens, dtype=np.int32), offsets, np.array(labels), np.full(2, task), ids)


def test_the_content_of_a_task_does_not_depend_on_the_others() -> None:
    first, second = table([1, 2, 3, 4], [0, 1]), table([5, 6, 7, 8], [1, 1], task=1)
    both = TokenTable.concatenate([first, second])
    assert [both.content(0), both.content(1)] == [first.content(0), second.content(1)]
    others = [table([1, 2, 3, 5], [0, 1]), table([1, 2, 3, 4], [1, 1]), table([1, 2, 3, 4], [0, 1], task=1)]
    assert len({first.content(0), *(one.content(index) for one, index in zip(others, (0, 0, 1), strict=True))}) == 4


def test_the_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        found = commit()
        assert found is not None
        assert found.removesuffix("-dirty") == head.stdout.strip()
    # As if installed from a wheel.
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "prompt_transfer")
    assert commit() is None


def test_processes_add_up_where_work_goes_on(tmp_path: Path) -> None:
    write_provenance(tmp_path, "fit", {"a": 1}, {"toy": {"train": "x"}}, step=0)
    write_provenance(tmp_path, "fit", {"a": 2}, {"toy": {"train": "x"}}, goes_on=True, step=5)
    found = read_provenance(tmp_path)
    assert (found["command"], found["config"], found["data"]) == ("fit", {"a": 2}, {"toy": {"train": "x"}})
    assert [process["step"] for process in found["processes"]] == [0, 5]
    assert found["processes"][0]["python"] == platform.python_version()
    assert set(found["processes"][0]) >= {"started", "machine", "prompt_transfer", "torch", "lightning", "commit"}
    write_provenance(tmp_path, "fit", {}, {})
    assert len(read_provenance(tmp_path)["processes"]) == 1
    (tmp_path / "provenance.json").write_text("{")
    assert read_provenance(tmp_path) == {}


def test_other_training_rows_are_refused(tmp_path: Path) -> None:
    check_same_data(tmp_path, {"toy": {"train": "x"}})
    write_provenance(tmp_path, "fit", {}, {"toy": {"train": "x", "validation": "y"}})
    check_same_data(tmp_path, {"toy": {"train": "x", "validation": "z"}})
    with pytest.raises(UserError, match="the training rows of toy changed since it started; restore them"):
        check_same_data(tmp_path, {"toy": {"train": "z"}})


def test_a_run_tells_where_it_comes_from_and_goes_on_with_the_same_rows(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert fit(toy, tiny_roberta, output) == 0
    first = json.loads((output / "provenance.json").read_text())
    assert first["config"] == yaml.safe_load((output / "config.yaml").read_text())
    assert {split: len(digest) for split, digest in first["data"]["toy"].items()} == {"train": 64, "validation": 64}
    again = ["fit", "--output", str(output), "--resume", "--trainer.max_steps"]
    assert main([*again, "6"]) == 0
    found = json.loads((output / "provenance.json").read_text())
    assert [(process["step"], process["device"]) for process in found["processes"]] == [(0, "cpu"), (4, "cpu")]
    assert found["data"] == first["data"]
    # Other rows of the same number and length, which positions alone cannot distinguish.
    rows = tmp_path / "data" / "toy" / "train.csv"
    rows.write_text(rows.read_text().replace("good", "fine"))
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert "the training rows of toy changed since it started; restore them" in error_of(capsys, main([*again, "8"]))
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_two_processes_do_not_train_into_one_folder(
    toy: Path, tiny_roberta: Path, tmp_path: Path, occupied: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    with occupied(output):
        for more in ([], ["--resume"], ["--overwrite"]):
            assert "is at work in" in error_of(capsys, fit(toy, tiny_roberta, output, *more))
        assert [path.name for path in output.iterdir()] == [".lock"]
    assert not output.exists()
