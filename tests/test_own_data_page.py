"""The Python of the page on own data runs, first of all the eight lines of the README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from own_rows import write_reviews

PAGE = Path(__file__).resolve().parent.parent / "docs/pages/guide/own_data.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.filterwarnings("ignore")
def test_a_dataframe_becomes_labels_in_eight_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(write_reviews(tmp_path).read_text().splitlines()) == 201
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 8
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(BLOCKS[0], names)
    shown = capsys.readouterr().out
    labels = re.findall(r"label='(\w+)'", shown)
    # The second and the fourth text are bad.
    assert labels == ["good", "bad", "good", "bad", "good"]
    for block in BLOCKS[1:]:
        exec(block, names)
    assert (tmp_path / "prompt.safetensors").is_file()
