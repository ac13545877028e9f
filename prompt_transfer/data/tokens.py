"""Token columns of rows as numpy arrays, tokenized once and cached in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_transfer.backbones.templates import Template
from prompt_transfer.data.choices import OptionTable
from prompt_transfer.data.text_encoder import TextEncoder
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

# Part of every cache key: increase it when the cached content changes its meaning.
FORMAT = 1
ROWS_WITH_BAR = 20_000
ROWS_A_CALL = 1000
# Bits of the row id, below the task index, in `ids`.
ID_BITS = 32


@dataclass(frozen=True)
class TokenTable:
    """Token ids of n rows as flat columns: no Python object per row, and memory that workers share.

    Attributes:
        values: ``[sum of lengths]`` int32, the token ids of all rows, one row after the other.
        offsets: ``[n + 1]`` int64; row i is ``values[offsets[i]:offsets[i + 1]]``.
        labels: ``[n]`` int64 class index; -1 if there is none (texts to predict, generation).
        task_ids: ``[n]`` int64 index of the row's task.
        ids: ``[n]`` int64, ``task index * 2**32 + row number in the source split``: unique over tasks.
        target_values: int32 token ids of the rows' targets, end token included; None if no row has one.
        target_offsets: ``[n + 1]`` int64, into `target_values`; rows of classification tasks have empty targets.
        options: the options of multiple-choice rows, else None.
        groups: ``[n]`` int64, number of each row's group in its task's split; None without groups.
    """

    values: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    task_ids: np.ndarray
    ids: np.ndarray
    target_values: np.ndarray | None = None
    target_offsets: np.ndarray | None = None
    options: OptionTable | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """``[n]`` int64, tokens of each row."""
        return np.diff(self.offsets)

    @property
    def target_lengths(self) -> np.ndarray:
        """``[n]`` int64, tokens of each row's target; 0 without a target."""
        return np.zeros(len(self), dtype=np.int64) if self.target_offsets is None else np.diff(self.target_offsets)

    @cached_property
    def longest_target(self) -> int:
        """Tokens of the longest target or option; 0 without them."""
        return max(int(self.target_lengths.max(initial=0)), 0 if self.options is None else self.options.longest)

    @property
    def copies(self) -> np.ndarray:
        """``[n]`` int64, sequences that each row takes in a forward pass: one, or one per option."""
        return np.ones(len(self), dtype=np.int64) if self.options is None else self.options.counts

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ids and lengths, which with seed and batch size determine the order of training."""
        return hashlib.sha256(self.ids.tobytes() + self.lengths.tobytes()).hexdigest()

    def content(self, task_index: int) -> str:
        """Return the SHA-256 of one task's rows: ids, tokens, labels and targets."""
        first, end = np.searchsorted(self.task_ids, [task_index, task_index + 1])
        digest = hashlib.sha256()
        for part in (self.ids, self.labels, self.lengths, self.target_lengths):
            digest.update(np.ascontiguousarray(part[first:end]).tobytes())
        digest.update(self.values[self.offsets[first] : self.offsets[end]].tobytes())
        if self.target_values is not None and self.target_offsets is not None:
            digest.update(self.target_values[self.target_offsets[first] : self.target_offsets[end]].tobytes())
        if self.options is not None:
            options = self.options
            low, high = options.rows[first], options.rows[end]
            digest.update(options.values[options.offsets[low] : options.offsets[high]].tobytes())
            digest.update(options.counts[first:end].tobytes() + options.right[low:high].tobytes())
        return digest.hexdigest()

    @classmethod
    def concatenate(cls, tables: list[TokenTable]) -> TokenTable:
        """Concatenate the rows of several tables."""
        if len(tables) == 1:
            return tables[0]
        lengths = np.concatenate([table.lengths for table in tables])
        targets = [table.target_values for table in tables if table.target_values is not None]
        target_lengths = np.concatenate([table.target_lengths for table in tables])
        options = [table.options for table in tables if table.options is not None]
        grouped = any(table.groups is not None for table in tables)
        groups = [np.zeros(len(table), np.int64) if table.groups is None else table.groups for table in tables]
        return cls(
            values=np.concatenate([table.values for table in tables]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            labels=np.concatenate([table.labels for table in tables]),
            task_ids=np.concatenate([table.task_ids for table in tables]),
            ids=np.concatenate([table.ids for table in tables]),
            target_values=np.concatenate(targets) if targets else None,
            target_offsets=np.concatenate([[0], np.cumsum(target_lengths)]) if targets else None,
            # Other tasks in one run have options too, or none has.
            options=OptionTable.concatenate(options) if len(options) == len(tables) else None,
            groups=np.concatenate(groups) if grouped else None,
        )


def tokenise(
    rows: Dataset,
    encoder: TextEncoder,
    max_length: int,
    *,
    pairs: bool,
    cue: str = "",
    seq2seq_frame: tuple[str, str] | None = None,
    max_target_length: int | None = None,
    template: Template | None = None,
    task_index: int = 0,
    cache_file: Path | None = None,
) -> TokenTable:
    """Tokenize `rows` (columns ``id``, ``text_a``, ``text_b`` and optionally ``label`` or ``target``).

    If rows have several targets, the first is used.

    Args:
        rows: rows of one split of one task.
        encoder: the tokenizer.
        max_length: longest text in tokens.
        pairs: whether ``text_b`` is read.
        cue: text that causal models read after the example.
        seq2seq_frame: texts that seq2seq models read before the first text and between the two.
        max_target_length: longest target in tokens; None: targets are not read.
        template: words around the texts, in place of cue and frame.
        task_index: index of the task, for `task_ids` and `ids`.
        cache_file: an ``.arrow`` file whose name is a key of everything the tokens depend on (`cache_path`); read if
            it exists, else written atomically. None: no cache.

    Raises:
        UserError: the cache file cannot be written.
    """
    if len(rows) == 0:
        nothing = np.zeros(0, dtype=np.int64)
        empty = (nothing.astype(np.int32), np.zeros(1, dtype=np.int64))
        return TokenTable(*empty, nothing, nothing, nothing, *(() if max_target_length is None else empty))

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        second = batch["text_b"] if pairs else None
        ids = encoder.encode(batch["text_a"], second, max_length, cue=cue, seq2seq_frame=seq2seq_frame, **words)
        columns = {"input_ids": ids, "label": batch.get("label") or [-1] * len(ids), "id": batch["id"]}
        if max_target_length is not None:
            texts = [texts[0] for texts in batch["target"]]
            columns["target_ids"] = encoder.encode_targets(texts, max_target_length, **words)
        return columns

    words = {} if template is None else {"template": template}
    with_targets = max_target_length is not None
    try:
        tokens = _map(rows, encode, with_targets, cache_file)
        if cache_file is not None and not np.array_equal(_column(tokens, "id"), _column(rows, "id")):
            raise ValueError("other rows")
        # Written by an older release: now every row has a token.
        if cache_file is not None and not np.diff(_flat(tokens, "input_ids")[1]).all():
            raise ValueError("rows without tokens")
    except (ValueError, OSError) as raised:
        error = _disk_error(raised)
        # For a truncated file (full disk, power loss) pyarrow raises ValueError, or OSError without errno.
        damaged = getattr(error, "errno", None) is None
        if cache_file is None or (damaged and not cache_file.exists()):
            raise
        if not damaged:
            raise UserError(
                f"cannot use the token cache {cache_file.parent}: {getattr(error, 'strerror', None) or error}; "
                "choose another folder with --data.cache_dir or the variable PROMPT_TRANSFER_CACHE"
            ) from error
        cache_file.unlink(missing_ok=True)
        tokens = _map(rows, encode, with_targets, cache_file)
    values, offsets = _flat(tokens, "input_ids")
    ids = _column(tokens, "id")
    return TokenTable(
        values,
        offsets,
        _column(tokens, "label"),
        np.full(len(ids), task_index, dtype=np.int64),
        ids + (task_index << ID_BITS),
        *(_flat(tokens, "target_ids") if with_targets else ()),
    )


def _disk_error(error: Exception) -> Exception:
    """Return the OSError that caused `error`: on a full disk, closing the unwritten file raises again."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause
        cause = cause.__context__
    return error


def _map(
    rows: Dataset,
    encode: Callable[[dict[str, list[Any]]], dict[str, list[Any]]],
    with_targets: bool,
    cache_file: Path | None,
) -> Dataset:
    from datasets import Features, List, Value

    features = {"input_ids": List(Value("int32")), "label": Value("int64"), "id": Value("int64")}
    if with_targets:
        features["target_ids"] = List(Value("int32"))
    if cache_file is not None:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
    # `map` writes a temporary file and renames it, so two processes may run at once. Its own cache key would hash the
    # tokenizer's state, which changes with use.
    with _bars(len(rows) >= ROWS_WITH_BAR):
        return rows.map(
            encode,
            batched=True,
            batch_size=ROWS_A_CALL,
            remove_columns=rows.column_names,
            features=Features(features),
            cache_file_name=None if cache_file is None else str(cache_file),
            keep_in_memory=cache_file is None,
            load_from_cache_file=cache_file is not None,
            new_fingerprint="tokens" if cache_file is None else cache_file.stem[-32:],
            desc="tokenise",
        )


@contextmanager
def _bars(wanted: bool) -> Iterator[None]:
    """Disable the progress bars of `datasets` unless `wanted`."""
    import datasets

    off_already = datasets.are_progress_bars_disabled()
    if not wanted:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not wanted and not off_already:
            datasets.enable_progress_bars()


def _flat(rows: Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a column of lists as values and offsets, without a Python object per row."""
    lists = rows.data.column(name).combine_chunks()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return lists.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def _column(rows: Dataset, name: str) -> np.ndarray:
    return np.asarray(rows.with_format("numpy")[name][:], dtype=np.int64)


def named_rows(examples: Sequence[int], tasks: Sequence[str], shown: int = 6) -> str:
    """Format example ids (`TokenTable.ids`) as source rows for a message, e.g. `rows 3, 8 and 2 more of sst2`.

    Args:
        tasks: task names, in the order of the task indices.
        shown: most row numbers to list per task.
    """
    of_task: dict[int, list[int]] = {}
    for example in examples:
        index, row = divmod(int(example), 1 << ID_BITS)
        of_task.setdefault(index, []).append(row)
    parts = []
    for index, rows in sorted(of_task.items()):
        more = f" and {len(rows) - shown} more" if len(rows) > shown else ""
        numbers = ", ".join(str(row) for row in sorted(rows)[:shown])
        parts.append(f"{'row' if len(rows) == 1 else 'rows'} {numbers}{more} of {tasks[index]}")
    return ", ".join(parts)


def cache_path(folder: str | Path | None, name: str, facts: dict[str, Any]) -> Path:
    """Return the path of the cache file of tokens that depend on `facts` (JSON values), with a readable `name`.

    `folder` None: the variable PROMPT_TRANSFER_CACHE, else ``~/.cache/prompt_transfer``.
    """
    root = cache_folder() if folder is None else Path(folder).expanduser()
    key = hashlib.sha256(json.dumps({"format": FORMAT, **facts}, sort_keys=True).encode()).hexdigest()[:32]
    return root / "tokens" / f"{name}-{key}.arrow"
