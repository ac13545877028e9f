"""``data download``: tasks from the hub, written in the ``local`` format for machines without a network."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_transfer.data.readers import read_hub, used_columns
from prompt_transfer.data.table_files import RawSplit
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir, prove_writable_dir

if TYPE_CHECKING:
    import pandas as pd


def download_tasks(
    tasks: str | Sequence[str], output: str | Path, *, overwrite: bool = False, revision: str | None = None
) -> list[dict[str, object]]:
    """Write ``<output>/<task>/<split>.parquet`` for every task, for ``--data.source local --data.root``.

    A task's folder appears once it is complete. A repeated call resumes with the missing tasks.

    Args:
        tasks: names of tasks with a hub source, as a list or separated by commas.
        output: folder for the task folders.
        overwrite: download tasks whose folder exists again.
        revision: revision of the tasks' repository; None: the registry's.

    Returns:
        One dict per task: task, folder, status (``written`` or ``kept``), rows (split -> number).

    Raises:
        UserError: a task without a hub source, no network, or a folder that cannot be written.
    """
    names = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else tasks
    rows = [get_task(name) for name in names]
    for task in rows:
        if task.hub is None:
            raise UserError(f"task {task.name} is not on the hub, so there is nothing to download")
    folder = Path(output)
    prove_writable_dir(folder)
    return [_download(task, folder / task.name, overwrite, revision) for task in rows]


def _download(task: Task, target: Path, overwrite: bool, revision: str | None) -> dict[str, object]:
    if target.exists() and not overwrite:
        return {"task": task.name, "folder": str(target), "status": "kept", "rows": {}}
    raw = read_hub(task, revision)
    check_writable_dir(target.parent)
    partial = Path(tempfile.mkdtemp(prefix=f".{task.name}-", dir=target.parent))
    try:
        partial.chmod(0o755)
        for split, part in raw.items():
            _local_frame(task, part).to_parquet(partial / f"{split}.parquet", index=False)
        (partial / "SOURCE.md").write_text(_note(task, raw, revision), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    counts = {split: len(part.frame) for split, part in raw.items()}
    return {"task": task.name, "folder": str(target), "status": "written", "rows": counts}


def _local_frame(task: Task, raw: RawSplit) -> pd.DataFrame:
    frame = raw.frame[[name for name in used_columns(task) if name in raw.frame.columns]]
    if task.hub is None or task.hub.labels is None or task.label_column not in frame.columns:
        return frame
    # The hub has label words here, the local format the registry's numbers.
    numbers = (task.paper.labels if task.paper else None) or task.labels or ()
    table = dict(zip(task.hub.labels, numbers, strict=False))
    column = str(task.label_column)
    return frame.assign(**{column: [table.get(value, -1) for value in frame[column]]})


def _note(task: Task, raw: dict[str, RawSplit], revision: str | None) -> str:
    hub = task.hub
    assert hub is not None
    counts = ", ".join(f"{split} {len(part.frame)}" for split, part in raw.items())
    return (
        f"# {task.name}\nFrom the Hugging Face hub: {hub.id}, config {hub.config}, "
        f"revision {revision or hub.revision}.\n"
        f"Rows: {counts}. Downloaded {datetime.now(UTC):%Y-%m-%d} by `prompt-transfer data download`.\n"
        f"The licence is that of the source.\n{hub.note}\n"
    )
