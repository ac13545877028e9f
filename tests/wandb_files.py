"""Reading an offline W&B run from its `.wandb` file."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK = struct.Struct("<IHB"), 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Read the records of a file in LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + HEADER.size <= len(data):
        room = BLOCK - place % BLOCK
        if room < HEADER.size:
            place += room
            continue
        _, length, kind = HEADER.unpack_from(data, place)
        place += HEADER.size
        parts = (parts if kind in (MIDDLE, LAST) else b"") + data[place : place + length]
        place += length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


class OfflineRun:
    """The only run below `folder`, read once its service has written everything.

    Attributes:
        run: its record (project, run_group, job_type, display_name, tags).
        config: the configuration that was sent.
        history: one dict per call of `log`.
        summary: last values.
        made, used: name -> record of the artifacts that it made and used.
        path: its folder.
    """

    def __init__(self, folder: Path) -> None:
        (found,) = folder.glob("wandb/offline-run-*/*.wandb")
        self.path = found.parent
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.made: dict[str, Any] = {}
        self.used: dict[str, Any] = {}
        self.exit_code: int | None = None
        for record in self._complete(found):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self._update(self.config, record.run.config.update)
            elif kind == "config":
                self._update(self.config, record.config.update)
            elif kind == "summary":
                self._update(self.summary, record.summary.update)
            elif kind == "history":
                row: dict[str, Any] = {}
                self._update(row, record.history.item)
                self.history.append(row)
            elif kind == "artifact" and record.artifact.type != "run_table":  # W&B keeps each table as one
                (self.used if record.artifact.use_after_commit else self.made)[record.artifact.name] = record.artifact
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    @staticmethod
    def _complete(path: Path) -> list[Any]:
        """Return all records once the file is complete: another process may still write it after the run ends."""
        deadline = time.monotonic() + 30
        while True:
            found = list(records(path)) if path.stat().st_size else []
            if any(record.WhichOneof("record_type") == "exit" for record in found):
                return found
            assert time.monotonic() < deadline, f"{path} has no end"
            time.sleep(0.1)

    @staticmethod
    def _update(values: dict[str, Any], items: Any) -> None:
        for item in items:
            *groups, last = item.nested_key or [item.key]
            place = values
            for group in groups:
                place = place.setdefault(group, {})
            place[last] = json.loads(item.value_json)

    def logged(self, key: str) -> list[Any]:
        """Return all values logged as `key`."""
        return [row[key] for row in self.history if key in row]

    def table(self, key: str) -> dict[str, Any]:
        """Return `columns` and `data` of the table logged as `key`."""
        (entry,) = self.logged(key)
        return json.loads((self.path / "files" / entry["path"]).read_text())
