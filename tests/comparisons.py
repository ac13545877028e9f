"""Small comparisons of the toy task for tests."""

from __future__ import annotations

from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from prompt_transfer.studies.compare.study import CompareData, CompareStudy

P, H = 4, 32


def options(toy: Path, backbone: Path, output: Path, *more: str) -> list[str]:
    """Return a command of few steps; the last value of an option in `more` replaces earlier ones."""
    values = {"--task": str(toy), "--backbone": str(backbone), "--data.source": "local"}
    values |= {"--seeds": "0,1", "--max_steps": "4", "--val_check_interval": "2", "--prompt_length": str(P)}
    values |= {"--data.batch_size": "8", "--accelerator": "cpu", "--output": str(output)}
    flags = [word for word, value in pairwise([*more, "--"]) if word.startswith("--") and value.startswith("--")]
    values |= {word: value for word, value in pairwise(more) if word.startswith("--") and word not in flags}
    return ["compare", *chain.from_iterable(values.items()), "--same_process", *flags]


def study(toy: Path, backbone: Path, output: Path, **more: Any) -> CompareStudy:
    given = {"methods": "prompt", "seeds": "0", "max_steps": 4, "val_check_interval": 2, "prompt_length": P, **more}
    data = CompareData(source="local", batch_size=8)
    return CompareStudy(str(toy), str(backbone), str(output), data=data, accelerator="cpu", same_process=True, **given)


def cell(output: Path, name: str) -> Path:
    (found,) = (output / "cells").glob(f"{name}*")
    return found
