"""Where results come from: command, configuration, versions and seeds, from the files next to them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from prompt_transfer.utils.errors import without_secrets
from prompt_transfer.utils.provenance import read_provenance

# Files of commands or settings, and how many folders above the results they may lie.
COMMANDS, SETTINGS, ABOVE = "commands.txt", ("config.yaml", "sweep.yaml"), 1
VERSIONS = ("prompt_transfer", "torch", "lightning", "transformers", "python")
SEEDS = ("seed", "seeds", "seed_everything")
DATA = "data (SHA-256 of the tokens)"
# What provenance.json should hold.
RECORDED = ("versions", "commit", DATA)
HIDDEN = (*VERSIONS, "started", "machine", "commit")


@dataclass(frozen=True)
class Origin:
    """What is known about a folder's results.

    Attributes:
        commands: commands that reproduce them.
        settings: file name -> its text.
        facts: label -> value: versions, commit, machine, time, data, seeds, and what is not recorded.
    """

    commands: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def origin_of(folder: Path, command: str) -> Origin:
    """Return the origin of results.

    Args:
        folder: folder of the results.
        command: command that writes such results, for folders without `provenance.json`.
    """
    known = read_provenance(folder)
    settings = {name: without_secrets(text) for name in SETTINGS if (text := _text(folder / name))}
    listed = next(filter(None, (_text(place / COMMANDS) for place in (folder, *list(folder.parents)[:ABOVE]))), "")
    config = known.get("config") if isinstance(known.get("config"), dict) else _yaml(settings.get("config.yaml", ""))
    commands = [without_secrets(line) for line in listed.splitlines() if line.strip()]
    if not commands:
        commands = _from_comments(settings.get("sweep.yaml", ""))
    if not commands:
        commands = _command(str(known.get("command") or command), config, folder)
    facts = _facts(known)
    seeds = [*_seeds_of_rows(folder), *_seeds(config), *_seeds(_yaml(settings.get("sweep.yaml", "")))]
    if seeds:
        facts["seeds"] = "; ".join(dict.fromkeys(seeds))
    missing = [name for name in RECORDED if name not in facts]
    if missing:
        facts["not recorded"] = ", ".join(missing) + ("" if known else ": the folder has no provenance.json")
    return Origin(commands, settings, facts)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _from_comments(text: str) -> list[str]:
    """Return the commands in the comments of a study's configuration."""
    lines = [line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")]
    return [line for line in lines if line.startswith("prompt-transfer ")]


def _command(name: str, config: Any, folder: Path) -> list[str]:
    if not isinstance(config, Mapping):
        return []
    if name == "fit":
        return [f"prompt-transfer fit --config {shlex.quote(str(folder / 'config.yaml'))} --output NEW_FOLDER"]
    options = {key: value for key, value in _flat(config) if value is not None and key != "output"}
    words = [f"--{key} {shlex.quote(_word(value))}" for key, value in options.items()]
    return [without_secrets(" ".join(["prompt-transfer", name, *words, "--output NEW_FOLDER"]))]


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        # Names are comma-separated, numbers a YAML list.
        return ",".join(value) if all(isinstance(one, str) for one in value) else json.dumps(value)
    return str(value)


def _seeds(config: Any) -> list[str]:
    """Return the seeds in a configuration, as texts `option value`."""
    if not isinstance(config, Mapping):
        return []
    found = []
    for key, value in _flat(config):
        if key.rpartition(".")[2] in SEEDS and value is not None:
            # A grid lists alternatives; runs with several seeds at once are lists in it.
            values = value if key.startswith("grid.") and isinstance(value, list) else [value]
            found.append(f"{key.removeprefix('fit.').removeprefix('grid.')} {' or '.join(map(_word, values))}")
    return found


def _seeds_of_rows(folder: Path) -> list[str]:
    """Return the seeds of the prompts in a table of results."""
    for path in (folder / "results.parquet", folder / "results.csv"):
        try:
            frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        except (OSError, ValueError):
            continue
        for column, own in (("kind", "trained"), ("what", "this prompt")):
            frame = frame[frame[column] == own] if column in frame else frame
        seeds = sorted({int(seed) for seed in frame["seed"].dropna()}) if "seed" in frame else []
        if seeds:
            return [f"prompts {', '.join(map(str, seeds))}"]
    return []


def _facts(known: Mapping[str, Any]) -> dict[str, str]:
    processes = known.get("processes")
    last = processes[-1] if isinstance(processes, list) and processes and isinstance(processes[-1], dict) else {}
    facts = {"versions": ", ".join(f"{name} {last[name]}" for name in VERSIONS if last.get(name))}
    facts |= {name: str(last[name]) for name in ("commit", "machine", "started") if last.get(name)}
    facts |= {name: str(value) for name, value in last.items() if name not in HIDDEN and value is not None}
    if isinstance(processes, list) and len(processes) > 1:
        facts["processes"] = f"{len(processes)}; the facts above are of the last one"
    data = known.get("data")
    if isinstance(data, dict):
        parts = [
            f"{task} {split} {str(digest)[:12]}"
            for task, splits in data.items()
            if isinstance(splits, dict)
            for split, digest in splits.items()
        ]
        facts[DATA] = ", ".join(parts)
    return {name: value for name, value in facts.items() if value}
