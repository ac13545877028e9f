"""Small comparisons of the toy task for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prompt_transfer.studies.compare.study import CompareData, CompareStudy

P, H = 4, 32


def options(toy: Path, backbone: Path, output: Path, *more: str) -> list[str]:
    """Return a command of few steps; later options win."""
    base = ["compare", "--task", str(toy), "--backbone", str(backbone), "--data.source", "local"]
    base += ["--seeds", "0,1", "--max_steps", "4", "--val_check_interval", "2", "--prompt_length", str(P)]
    base += ["--data.batch_size", "8", "--accelerator", "cpu", "--same_process", "--output", str(output)]
    return [*base, *more]


def study(toy: Path, backbone: Path, output: Path, **more: Any) -> CompareStudy:
    given = {"methods": "prompt", "seeds": "0", "max_steps": 4, "val_check_interval": 2, "prompt_length": P, **more}
    data = CompareData(source="local", batch_size=8)
    return CompareStudy(str(toy), str(backbone), str(output), data=data, accelerator="cpu", same_process=True, **given)


def cell(output: Path, name: str) -> Path:
    (found,) = (output / "cells").glob(f"{name}*")
    return found
