"""The kinds of studies that a report knows: one row each. A new study adds a row to `KINDS`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from prompt_transfer.studies.report import (
    analysis,
    compare,
    masking,
    neurons,
    projections,
    recommend,
    runs,
    scores,
    transfer,
)
from prompt_transfer.studies.report.content import Section
from prompt_transfer.utils.errors import UserError

# Folders inside a run or study that hold no results of their own, and the runs of a sweep, which its section covers.
SKIPPED = {"answers", "checkpoints", "configs", "state", "wandb", "lightning_logs"}

INNER = ("runs", "logs", "cells")


@dataclass(frozen=True)
class Kind:
    """A row of the registry.

    Attributes:
        name: name in messages.
        columns: columns that identify the kind's main table.
        section: makes the section from the path of that table.
        names: possible names of the table without suffix; empty: any name.
        inner: whether the folder's `runs`, `logs` and `cells` get no sections of their own.
    """

    name: str
    columns: frozenset[str]
    section: Callable[[Path], Section]
    names: tuple[str, ...] = ()
    inner: bool = False


def _kind(
    name: str, columns: str, section: Callable[[Path], Section], names: tuple[str, ...] = (), inner: bool = False
) -> Kind:
    return Kind(name, frozenset(columns.split()), section, names, inner)


# In the order of the page. The first row whose columns a table has decides.
KINDS: tuple[Kind, ...] = (
    _kind("transfer", "task source kind value relative chance_corrected backbone split", transfer.section),
    _kind("transfer matrix", "target", transfer.matrix_section, ("matrix",)),
    _kind("indicators", "indicator statistic value low high p_value tasks pairs", analysis.indicators),
    _kind("neurons", "task", neurons.overlap, ("overlap",)),
    _kind("masks", "task prompt mask ratio method drop unmasked", masking.masking),
    _kind("convergence", "task source measure unit n value result", analysis.convergence),
    _kind("projection", "task projector what value ahead backbone", projections.projections),
    _kind("recommend", "target prompt source source_type path", recommend.recommendation, ("recommendation",)),
    _kind("recommend", "ranking statistic mean low high targets", recommend.recommendation, ("quality",)),
    _kind(
        "compare",
        "task backbone split metric n method seeds value low high",
        compare.comparison,
        ("summary",),
        inner=True,
    ),
    _kind("sweep", "run status attempts seconds error", runs.sweep, ("sweep",), inner=True),
    _kind("fit", "epoch step", runs.fit, ("metrics",)),
    _kind("fit", "task prompt seed split metric value best_step", runs.fit_results, ("results",)),
    _kind("quickstart", "task use", recommend.quickstart, ("quickstart",)),
    _kind("test", "task prompt what value low high n split", scores.scores),
)


def header(path: Path) -> set[str]:
    """Return the column names of a table; empty if it cannot be read."""
    try:
        if path.suffix == ".parquet":
            return set(pq.read_schema(path).names)
        return set(pd.read_csv(path, nrows=0).columns.astype(str))
    except (OSError, ValueError, ArrowInvalid):
        return set()


def kind_of(path: Path) -> Kind | None:
    """Return the kind that a table belongs to; None if none."""
    columns = header(path)
    fits = (kind for kind in KINDS if kind.columns <= columns and (not kind.names or path.stem in kind.names))
    return next(fits, None)


def sections(root: Path) -> list[Section]:
    """Return the sections of everything below a folder, in the order of `KINDS`, then by path.

    Raises:
        UserError: the folder does not exist, has nothing that a report knows, or a table is damaged.
    """
    if not root.is_dir():
        raise UserError(f"no such folder: {root}; give the output folder of a command, or a folder of such folders")
    found: list[tuple[int, str, Callable[[], Section]]] = []
    for folder in _folders(root):
        for kind, path in _tables(folder).items():
            found.append((KINDS.index(kind), str(folder), lambda kind=kind, path=path: _read(kind, path)))  # type: ignore[misc]
    for folder in _neuron_folders(root):
        place = [kind.name for kind in KINDS].index("neurons")
        found.append((place, str(folder), lambda folder=folder: neurons.captured(folder)))  # type: ignore[misc]
    if not found:
        names = ", ".join(dict.fromkeys(kind.name for kind in KINDS))
        raise UserError(
            f"{root} has no results that a report knows ({names}); give the output folder of one of these commands"
        )
    return [make() for _, _, make in sorted(found, key=lambda entry: entry[:2])]


def left_out(root: Path) -> list[Path]:
    """Return the tables that no section shows: those of folders without a section, and second tables of one kind."""
    found = []
    for folder in _folders(root):
        shown = _tables(folder)
        paths = sorted(path for path in folder.iterdir() if path.suffix in (".csv", ".parquet"))
        if shown:
            # Kinds with any file name: two tables are two experiments.
            stems = {kind: path.stem for kind, path in shown.items() if not kind.names}
            found += [path for path in paths if stems.get(kind_of(path), path.stem) != path.stem]  # type: ignore[arg-type]
        elif not (folder / "logs" / "metrics.csv").is_file():
            found += paths
    return found


def _read(kind: Kind, path: Path) -> Section:
    try:
        return kind.section(path)
    except (ValueError, LookupError, OSError, TypeError, AttributeError, StopIteration) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        raise UserError(f"cannot read {path} as results of {kind.name} ({reason}); run the command again") from error


def _folders(root: Path) -> Iterator[Path]:
    """Yield a folder and those below it; the runs of a study only if the study's own table is missing."""
    yield root
    covered = any(kind.inner for kind in _tables(root))
    for child in sorted(path for path in root.iterdir() if path.is_dir()):
        if child.name in SKIPPED or child.name.startswith(".") or (covered and child.name in INNER):
            continue
        yield from _folders(child)


def _tables(folder: Path) -> dict[Kind, Path]:
    """Return the main table of each kind in a folder, Parquet before CSV, and full results before summaries."""
    found: dict[Kind, Path] = {}
    for suffix in ("parquet", "csv"):
        for path in sorted(folder.glob(f"*.{suffix}")):
            kind = kind_of(path)
            if kind is not None:
                found.setdefault(kind, path)
    names = {kind.name: kind for kind in found}
    # The section of a log has the results, too, and those of other studies may have the same columns.
    if len(found) > 1 or (folder / "logs" / "metrics.csv").is_file():
        found = {kind: path for kind, path in found.items() if kind.section is not runs.fit_results}
    # One section has all tables of a recommendation.
    for kind in [kind for kind in found if kind.section is recommend.recommendation][1:]:
        del found[kind]
    # The matrix repeats the table of results.
    if "transfer" in names and "transfer matrix" in names:
        del found[names["transfer matrix"]]
    return found


def _neuron_folders(root: Path) -> list[Path]:
    """Return the folders with captured neurons: the common folder of the files of each backbone."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.safetensors")):
        if not SKIPPED & set(path.relative_to(root).parts):
            backbone = neurons.backbone_of(path)
            if backbone is not None:
                groups.setdefault(backbone, []).append(path.parent)
    return sorted({Path(os.path.commonpath(folders)) for folders in groups.values()})
