"""Where results come from: command, configuration, versions and seeds, from the files next to them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prompt_transfer.utils.errors import without_secrets
from prompt_transfer.utils.provenance import read_provenance

# Files of commands or settings, and how many folders above the results they may lie.
COMMANDS, SETTINGS, ABOVE = "commands.txt", ("config.yaml", "sweep.yaml"), 1
VERSIONS = ("prompt_transfer", "torch", "lightning", "transformers", "python")
HIDDEN = (*VERSIONS, "started", "machine", "commit")


@dataclass(frozen=True)
class Origin:
    """What is known about a folder's results.

    Attributes:
        commands: commands that reproduce them.
        settings: file name -> its text.
        facts: label -> value: versions, commit, machine, time, data.
    """

    commands: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.commands or self.settings or self.facts)


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
    return Origin(commands, settings, _facts(known, config))


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


def _facts(known: Mapping[str, Any], config: Any) -> dict[str, str]:
    processes = known.get("processes")
    last = processes[-1] if isinstance(processes, list) and processes and isinstance(processes[-1], dict) else {}
    facts = {"versions": ", ".join(f"{name} {last[name]}" for name in VERSIONS if last.get(name))}
    facts |= {name: str(last[name]) for name in ("commit", "machine", "started") if last.get(name)}
    facts |= {name: str(value) for name, value in last.items() if name not in HIDDEN and value is not None}
    if isinstance(processes, list) and len(processes) > 1:
        facts["processes"] = f"{len(processes)}; the facts above are of the last one"
    if isinstance(config, Mapping):
        seeds = {
            key: value for key, value in _flat(config) if key.rpartition(".")[2] in ("seed", "seeds", "seed_everything")
        }
        facts["seeds"] = ", ".join(f"{key} {_word(value)}" for key, value in seeds.items() if value is not None)
    data = known.get("data")
    if isinstance(data, dict):
        parts = [
            f"{task} {split} {str(digest)[:12]}"
            for task, splits in data.items()
            if isinstance(splits, dict)
            for split, digest in splits.items()
        ]
        facts["data (SHA-256 of the tokens)"] = ", ".join(parts)
    return {name: value for name, value in facts.items() if value}
