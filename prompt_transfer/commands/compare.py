"""`compare`: prompts, LoRA, fine-tuning and a linear probe on one task."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prompt_transfer.commands.arguments import find_configs
from prompt_transfer.commands.messages import quiet, show_warning
from prompt_transfer.commands.parsing import call
from prompt_transfer.studies.compare.settings import CompareStudy
from prompt_transfer.studies.compare.study import compare as run_study
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def prepare() -> None:
    """Silence libraries and shorten warnings; runs in every process of a study."""
    quiet()
    warnings.showwarning = show_warning


def show(summary: pd.DataFrame) -> None:
    """Print one row per method."""
    from prompt_transfer.studies.compare.methods import TITLES

    reference = TITLES[summary["reference"].iloc[0]]
    rows = []
    for row in summary.to_dict("records"):
        known = {str(key): None if value != value else value for key, value in row.items()}
        rows.append(
            {
                "method": TITLES[row["method"]],
                "seeds": row["seeds"],
                row["metric"]: row["value"],
                "95 %": results.interval(row["low"], row["high"], 3),
                f"- {reference}": known["paired_difference"],
                "95 % ": results.interval(_number(row["paired_low"]), _number(row["paired_high"]), 3),
                "parameters": int(row["trained_parameters"]) or None,
                "kB": f"{row['stored_bytes'] / 1000:.1f}" if known["stored_bytes"] else None,
                "s to best": _rounded(known.get("seconds_to_best")),
                "s": _rounded(known.get("seconds")),
                "MiB": _rounded(known.get("peak_memory_mib")),
            }
        )
    first = summary.iloc[0]
    title = f"{first['task']} on {first['backbone']}, {first['split']}, n = {first['n']}"
    everything: list[dict[str, Any]] = summary.to_dict("records")  # type: ignore[assignment]
    columns = [column for column in rows[0] if any(row[column] is not None for row in rows)]
    results.show(rows, title, columns, everything, spare=("seeds", "MiB", "kB", "s to best", "s"))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def expand_config(arguments: list[str]) -> list[str]:
    """Replace `--config FILE` by the options in the file, which later arguments override.

    Raises:
        UserError: the file is missing, or no mapping of options.
    """
    kept, given = list[str](), list[str]()
    rest = iter(find_configs(arguments))
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-c"):
            kept.append(argument)
            continue
        path = Path(value if equals else next(rest))
        try:
            options = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())[:150]}") from error
        if not isinstance(options, dict):
            raise UserError(f"{path} holds no options: write one `name: value` a line")
        given += [f"--{option}={value}" for option, value in _flat(options).items()]
    return [*given, *kept]


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in options.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def compare(study: CompareStudy) -> None:
    """compare prompts with LoRA, fine-tuning and a linear probe on one task"""
    from prompt_transfer.commands.lightning import as_user_error

    with as_user_error("compare"):
        summary = run_study(study, prepare)
    show(summary)
    print(study.output)


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer compare`."""
    prepare()
    call(compare, command, expand_config(arguments))
