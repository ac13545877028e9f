"""Raw splits from the three sources: hub, local folder, built-in generator."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prompt_transfer.data.table_files import SUFFIXES, RawSplit, one_line, read_table
from prompt_transfer.tasks.columns import all_columns
from prompt_transfer.tasks.task import HubSource, Task
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.network import hub_reachable

SPLITS = ("train", "validation", "test")
ROOT_VARIABLE = "PROMPT_TRANSFER_DATA"
# Other common names of our splits: such a file is most likely meant to be read.
_ALIASES = {"dev": "validation", "val": "validation", "valid": "validation", "eval": "validation"}
# The packages below the hub client; their exceptions share no base class.
_NETWORK_PACKAGES = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "aiohttp")
_OFFLINE_ERRORS = ("OfflineModeIsEnabled", "LocalEntryNotFoundError")


def used_columns(task: Task) -> list[str]:
    """Return the source columns that `task` reads."""
    return all_columns((task.text_a, task.text_b, *task.choices, task.label_column, task.target_column, task.group))


def data_root(root: str | Path | None) -> Path | None:
    """Return `root`, else the folder in the environment variable PROMPT_TRANSFER_DATA, else None."""
    value = root or os.environ.get(ROOT_VARIABLE)
    return Path(value).expanduser() if value else None


def read_local(task: Task, root: str | Path | None) -> dict[str, RawSplit]:
    """Read the files ``<split>.parquet``, ``.jsonl`` or ``.csv`` in ``task.local`` or ``<root>/<task.name>``.

    Raises:
        UserError: no root is set, the folder or train split is missing, a split has two files, or a file is unreadable.
    """
    folder = _local_folder(task, root)
    splits = {}
    for split in SPLITS:
        found = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").is_file()]
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise UserError(f"task {task.name}: {folder} has {names}; keep one file a split")
        if found:
            splits[split] = read_table(found[0], used_columns(task))
    there = sorted(path.name for path in folder.iterdir() if path.is_file())
    if "train" not in splits:
        raise UserError(
            f"task {task.name}: no train.parquet, train.jsonl or train.csv in {folder} "
            f"(files there: {', '.join(there) or 'none'})"
        )
    for name in there:
        meant = _ALIASES.get(Path(name).stem)
        if meant is not None and meant not in splits:
            warnings.warn(
                f"task {task.name}: {folder / name} is not read; name it {meant}{Path(name).suffix}", stacklevel=2
            )
    return splits


def _local_folder(task: Task, root: str | Path | None) -> Path:
    if task.local is not None:
        folder = Path(task.local).expanduser()
        hint = "`local` in the task's YAML file names it"
    else:
        base = data_root(root)
        if base is None:
            raise UserError(
                f"task {task.name}: no folder with data given; set --data.root or the environment variable "
                f"{ROOT_VARIABLE} to the folder that holds {task.name}/train.parquet"
            )
        folder = base / task.name
        hint = f"set --data.root or {ROOT_VARIABLE} to the folder that holds {task.name}/train.parquet"
    if not folder.is_dir():
        raise UserError(f"task {task.name}: there is no folder {folder}; {hint}")
    return folder


def read_builtin(task: Task) -> dict[str, RawSplit]:
    """Generate the splits of a built-in task."""
    import pandas as pd

    from prompt_transfer.data.builtin import builtin_rows

    if not task.builtin:
        raise UserError(f"task {task.name} is not built in; use --data.source hub or --data.source local")
    splits = {}
    for split in SPLITS:
        frame = pd.DataFrame(builtin_rows(task.name, split))
        splits[split] = RawSplit(frame, tuple(frame.columns), f"builtin {split}")
    return splits


def read_hub(task: Task, revision: str | None = None) -> dict[str, RawSplit]:
    """Read the splits from the Hugging Face hub, with columns renamed to the task's names.

    Args:
        revision: commit, tag or branch of the repository; None: the registry's.

    Raises:
        UserError: the task has no hub source, the hub is unreachable, or the repository does not match the task.
    """
    hub = task.hub
    if hub is None:
        other = "builtin" if task.builtin else "local"
        raise UserError(f"task {task.name} is not on the hub; use --data.source {other}")
    hub = hub if revision is None else replace(hub, revision=revision)
    try:
        loaded = _load_from_hub(hub)
    except Exception as error:  # datasets, huggingface_hub and the http clients share no base class
        raise _hub_error(task, hub, error) from error
    renamed = dict(hub.columns)
    splits = {}
    for split, hub_split in hub.splits.items():
        if hub_split not in loaded:
            raise UserError(f"task {task.name}: {hub.id} has no split {hub_split}, only {', '.join(loaded)}")
        data = loaded[hub_split]
        names = [renamed.get(name, name) for name in data.column_names]
        data = data.rename_columns(renamed) if all(name in data.column_names for name in renamed) else data
        frame = data.select_columns([name for name in dict.fromkeys(used_columns(task)) if name in names]).to_pandas()
        splits[split] = RawSplit(frame, tuple(names), f"{hub.id} {hub_split}")
    return splits


def _load_from_hub(hub: HubSource) -> Mapping[str, Any]:
    from datasets import load_dataset

    if not hub_reachable():
        import datasets

        # Read the local cache only; otherwise the client retries for 25 s.
        datasets.config.HF_HUB_OFFLINE = True
    if hub.file is None:
        return load_dataset(hub.id, hub.config, revision=hub.revision)
    base = f"hf://datasets/{hub.id}" + (f"@{hub.revision}" if hub.revision else "")
    files = {name: f"{base}/{hub.file.format(config=hub.config, split=name)}" for name in hub.splits.values()}
    return load_dataset(Path(hub.file).suffix[1:], data_files=files)


def _hub_error(task: Task, hub: HubSource, error: Exception) -> UserError:
    name = "/".join(filter(None, (hub.id, hub.config)))
    if _is_unreachable(error):
        return UserError(
            f"task {task.name}: the hub was not reached for {name} ({one_line(error)}); use --data.source local with "
            f"--data.root DIR, and make DIR where there is a network: "
            f"prompt-transfer data download --tasks {task.name} --output DIR"
        )
    state = "" if hub.verified else "; this row of the registry was never verified on the hub"
    return UserError(
        f"task {task.name}: cannot load {name} from the hub ({one_line(error)}){state}; "
        f"--data.source local reads your own copy"
    )


def _is_unreachable(error: BaseException | None) -> bool:
    """Return whether `error` or one of its causes is a failed connection, not a response of the server."""
    while error is not None:
        kind = type(error)
        if isinstance(error, ConnectionError | TimeoutError | socket.gaierror) or kind.__name__ in _OFFLINE_ERRORS:
            return True
        if kind.__module__.split(".")[0] in _NETWORK_PACKAGES and getattr(error, "response", None) is None:
            return True
        error = error.__cause__ or error.__context__
    return False
