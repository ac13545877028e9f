"""Where the numbers in a folder come from: command, configuration, data, versions and code, in one small file."""

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
    """Versions of this package and the libraries that decide the numbers; reads their metadata, imports none."""
    versions = {"prompt_transfer": __version__}
    for name in ("torch", "lightning", "transformers"):
        try:
            versions[name] = installed.version(name)
        except installed.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def commit() -> str | None:
    """Git commit of the checkout that this package runs from, with `-dirty` where it was changed; None elsewhere."""
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
    """What the file of a folder says; empty where there is none that can be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_provenance(
    folder: Path, command: str, config: Mapping[str, Any], data: Digests, goes_on: bool = False, **facts: Any
) -> None:
    """Write `provenance.json`.

    It has `command`, `config` (resolved options), `data` (task -> split -> SHA-256 of the tokens that were read) and
    `processes`, one for each start: time, machine, versions, git commit, and `facts`.

    Args:
        folder: whose other files come from this process.
        command: of `prompt-transfer`.
        config: its options.
        data: digests of what was read.
        goes_on: keep the processes that worked here before; otherwise theirs were other files.
        facts: more to know of this process, as plain values.
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
    """Make sure that a run goes on with the training rows that it began with.

    Raises:
        UserError: they have other content.
    """
    before = read_provenance(folder).get("data", {})
    changed = [
        task
        for task, digests in data.items()
        if "train" in digests and before.get(task, {}).get("train", digests["train"]) != digests["train"]
    ]
    if changed:
        raise UserError(
            f"cannot go on with the run in {folder}: the training rows of {', '.join(changed)} are not those it began "
            "with; restore them, or start anew with --overwrite"
        )
