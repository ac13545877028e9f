"""Provenance of a folder's results: command, configuration, data, versions and code, in `provenance.json`."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata as installed
from pathlib import Path
from typing import Any

from prompt_transfer.utils import paths
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic
from prompt_transfer.version import __version__

FILE = "provenance.json"
# Task -> split -> digest.
Digests = Mapping[str, Mapping[str, str]]


def library_versions() -> dict[str, str]:
    """Return the versions of this package and the libraries that affect results, read from metadata without imports."""
    versions = {"prompt_transfer": __version__}
    for name in ("torch", "lightning", "transformers"):
        try:
            versions[name] = installed.version(name)
        except installed.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def commit() -> str | None:
    """Return the git commit of the checkout, with `-dirty` if it has changes; None outside a checkout."""
    root = paths.PACKAGE.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's `provenance.json`; empty if it is missing or unreadable."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_provenance(
    folder: Path, command: str, config: Mapping[str, Any], data: Digests, goes_on: bool = False, **facts: Any
) -> None:
    """Write `provenance.json`.

    It holds `command`, `config` (resolved options), `data` (task -> split -> SHA-256 of the tokens) and `processes`,
    one entry per start: time, machine, versions, git commit, and `facts`.

    Args:
        folder: output folder of this process.
        command: the `prompt-transfer` command.
        config: its resolved options.
        data: digests of the data that were read.
        goes_on: True if the run is resumed: keep the entries of earlier processes.
        facts: further plain values for this process's entry.
    """
    before = read_provenance(folder).get("processes", []) if goes_on else []
    process = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.node(),
        "python": platform.python_version(),
        **library_versions(),
        "commit": commit(),
        **facts,
    }
    content = {"command": command, "config": config, "data": data, "processes": [*before, process]}
    write_text_atomic(folder / FILE, json.dumps(content, indent=2, default=str) + "\n")


def check_same_data(folder: Path, data: Digests) -> None:
    """Check that a resumed run reads the training rows it started with.

    Raises:
        UserError: the training rows changed.
    """
    before = read_provenance(folder).get("data", {})
    changed = [
        task
        for task, digests in data.items()
        if "train" in digests and before.get(task, {}).get("train", digests["train"]) != digests["train"]
    ]
    if changed:
        raise UserError(
            f"cannot resume the run in {folder}: the training rows of {', '.join(changed)} changed since it started; "
            "restore them, or start over with --overwrite"
        )
