"""Fuzz the readers of users' tables: they must return the right cells, or a one-line error naming file and row.

    python benchmarks/fuzz_tasks.py --output results/benchmarks/fuzz_tasks.json      # 10,000 files
    python benchmarks/fuzz_tasks.py --output one.json --only 4711 --keep DIR         # one of them again, kept in DIR

The files are CSV, JSON lines and Parquet, as `load_task` and `predict --input` read them. File i depends only on the
seed and i. A file is changed in one of three ways:

- `same`: an equivalent notation; the original rows must be read.
- `fault`: one error, usually in one row; the file must be refused in one line that names it and the row.
- `damage`: randomly changed bytes or lines; the result must equal that of an independent reader (CSV: an RFC 4180
  parser in `task_files.py`; JSON lines: line by line).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

from common import facts, write
from fuzz_importers import CPU_SECONDS, Stuck, alarms, count, damaged, read_all
from task_files import FOREIGN, KINDS, MAKERS, REFERENCES, Made, damaged_lines, sheet

from prompt_transfer.data.sources import load_task
from prompt_transfer.data.texts import load_texts
from prompt_transfer.utils.errors import UserError

OUTCOMES = ("accepted", "refused", "shifted", "misread", "unnamed", "crash", "hang")


def of_task(made: Made, path: Path) -> list[tuple[str, ...]]:
    """Return the rows as training reads them."""
    splits = load_task(made.task, "local", path.parent.parent).splits.values()
    rows = [(row["id"], row["text_a"], row["text_b"], row["label"]) for part in splits for row in part.to_list()]
    return [row[1:] for row in sorted(rows)]


def of_texts(made: Made, path: Path) -> list[tuple[str, ...]]:
    """Return the rows as `predict --input` reads them."""
    found = load_texts(path, made.task)
    return list(zip(found["text_a"][:], found["text_b"][:], strict=True))


class Fuzz:
    """Generator and reader of mutated task files, with the interface of `fuzz_importers.Fuzz`.

    Args:
        folder: folder for the current file, best in memory (/dev/shm).
        seed: seed of all files.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder / "toy", seed
        self.folder.mkdir()

    def made(self, number: int) -> Made:
        """Return file `number` and its expected content."""
        draw = random.Random(f"{self.seed} {number}")
        kind, way = KINDS[number % len(KINDS)], draw.choice(("same", "same", "fault", "fault", "damage"))
        table, made = sheet(draw, kind)
        made.data = MAKERS[kind](draw, table, made, way == "fault")
        if way == "damage":
            made.way = "damage"
            if kind == "parquet" or draw.random() < 0.5:
                made.data = damaged(made.data, draw.randbytes(64), draw)
            else:
                made.data = damaged_lines(made.data, draw)
        return made

    def make(self, number: int) -> tuple[str, bytes]:
        """Return the kind and bytes of file `number`."""
        made = self.made(number)
        return made.kind, made.data

    def read(self, number: int) -> tuple[str, str]:
        """Read file `number`; return its kind with the way of the change, and the outcome."""
        made = self.made(number)
        path = self.folder / f"train.{made.kind}"
        path.write_bytes(made.data)
        try:
            found = [self._outcome(made, path, reader, place) for reader, place in self._readers(made)]
        finally:
            path.unlink()
        worst = max(found, key=lambda outcome: OUTCOMES.index(outcome.partition(":")[0]))
        return f"{made.kind}_{made.way.partition(' ')[0]}", worst

    def _readers(self, made: Made) -> list[tuple[Any, str | None]]:
        return [(of_task, made.place), (of_texts, made.texts_place)]

    def _outcome(self, made: Made, path: Path, reader: Any, place: str | None) -> str:
        """Return `accepted`, `refused`, or a description of the failure."""
        try:
            # Dataset fingerprints take half of the time and are not needed here.
            unnamed = mock.patch("datasets.arrow_dataset.generate_fingerprint", return_value="0")
            with alarms(), unnamed, warnings.catch_warnings(action="ignore"):
                rows = reader(made, path)
        except UserError as error:
            return self._refused(made, str(error), path, place)
        except Stuck:
            return "hang"
        except BaseException as error:
            return f"crash: {type(error).__name__}: {str(error)[:120]}"
        return self._accepted(made, rows, reader, place)

    def _refused(self, made: Made, message: str, path: Path, place: str | None) -> str:
        if "\n" in message or not message.startswith((f"cannot read {path}: ", "task toy: ", f"{path} ")):
            return f"unnamed: {message[:300]}"
        if made.way == "damage" or "can be read in two ways" in message:
            return "refused"
        if place is None:
            return f"misread: {made.way} is refused: {message[:300]}"
        named = str(path) in message and place in message + " "
        return "refused" if named else f"unnamed: {made.way} at {place!r}: {message[:300]}"

    def _accepted(self, made: Made, rows: list[tuple[str, ...]], reader: Any, place: str | None) -> str:
        if place is not None and made.way != "damage":
            return f"misread: {made.way} at {place!r} is read"
        columns = ["text"] if made.task.text_b is None else ["text", "second"]
        expected: list[list[Any] | None]
        if made.way == "damage":
            expected = [REFERENCES[made.kind](made.data, column) for column in columns]
            expected = [None if cells is None else [cell or "" for cell in cells] for cells in expected]
        else:
            expected = [[row[number] for row in made.rows] for number in range(len(columns))]
            if reader is of_task and [row[2] for row in rows] != [row[2] for row in made.rows]:
                return f"misread: labels {[row[2] for row in rows]}"
        for number, column in enumerate(columns):
            cells = [row[number] for row in rows]
            if cells != expected[number]:
                foreign = any(map(FOREIGN[column].search, cells))
                return f"{'shifted' if foreign else 'misread'}: {made.way}: {str(cells)[:200]}"
        return "accepted"


# The run -------------------------------------------------------------------------------------------------------------


def fuzzed(files: int, seed: int = 0, keep: Path | None = None, chunk: int | None = 1000) -> dict[str, Any]:
    """Fuzz `files` files and return the report; `chunk` None reads all of them in this process."""
    report = read_all(Fuzz, OUTCOMES, range(files), chunk, seed, keep)
    return {**report, "limits": {"cpu_seconds": CPU_SECONDS}}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default="results/fuzz_tasks.json")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="read only this file, in this process")
    parser.add_argument("--keep", type=Path, help="folder for files that fail")
    options = parser.parse_args()
    report = facts("mutated task files, read by all readers of users' tables", ("pandas", "pyarrow", "datasets"))
    if options.only is not None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            report |= count(Fuzz(Path(folder), options.seed), range(options.only, options.only + 1), options.keep)
    else:
        report |= fuzzed(options.files, options.seed, options.keep)
    write(options.output, report)
    print(json.dumps({key: value for key, value in report.items() if key not in ("machine", "versions")}, indent=2))
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
