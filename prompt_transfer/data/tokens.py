"""Rows to token columns: tokenise once, keep it in a cache file, hand out numpy arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

# Part of every cache key: raise it when what is cached changes its meaning.
FORMAT = 1
ROWS_WITH_BAR = 20_000
ROWS_A_CALL = 1000
# Room for the row id below the task index in `ids`.
ID_BITS = 32


class TextEncoder(Protocol):
    """What the data need to know of a backbone; `FrozenBackbone.encoder(prompt_length)` is one.

    Attributes:
        pad_token_id: fills up `input_ids`.
        extra_positions: positions that prompt and answer slot take, P + 1.
        fingerprint: tells encoders apart that give different ids.
        targets_share_positions: optional, True where a target stands behind its text (causal models); the text is then
            so short that both fit. Without it targets take no positions of the text.
        special_tokens: optional, the tokens that mean something else in a text than their characters.
    """

    @property
    def pad_token_id(self) -> int: ...
    @property
    def extra_positions(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def text_budget(self) -> int:
        """Positions left for text, special tokens counted."""
        ...

    def splitting(self) -> Self:
        """Return an encoder that reads special tokens in texts as ordinary characters."""
        ...

    def encode(
        self,
        text_a: list[str],
        text_b: list[str] | None,
        max_length: int,
        cue: str = "",
        seq2seq_frame: tuple[str, str] | None = None,
    ) -> list[list[int]]:
        """Token ids of each example with special tokens, at most `max_length`; a causal model reads `cue` at the end, a
        seq2seq model the frame before the first text and between the two.
        """
        ...

    def encode_targets(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Token ids of texts to write, each with the end token, which is one of at most `max_length` and never cut."""
        ...


@dataclass(frozen=True)
class TokenTable:
    """Token ids of n rows as flat columns: no Python object a row, and workers share the memory.

    Attributes:
        values: ``[sum of lengths]`` int32, the token ids of all rows, one row after the other.
        offsets: ``[n + 1]`` int64; row i is ``values[offsets[i]:offsets[i + 1]]``.
        labels: ``[n]`` int64 class index; -1 where there is none (texts to predict, generation).
        task_ids: ``[n]`` int64 index of the row's task.
        ids: ``[n]`` int64, ``task index * 2**32 + row number in the source split``: unique over tasks.
        target_values: int32 token ids of the text to write of each row, end token included; None where no row has one.
        target_offsets: ``[n + 1]`` int64, into `target_values`; a row of a classification task has none.
    """

    values: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    task_ids: np.ndarray
    ids: np.ndarray
    target_values: np.ndarray | None = None
    target_offsets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """``[n]`` int64, tokens of each row."""
        return np.diff(self.offsets)

    @property
    def target_lengths(self) -> np.ndarray:
        """``[n]`` int64, tokens of each row's target; 0 where it has none."""
        return np.zeros(len(self), dtype=np.int64) if self.target_offsets is None else np.diff(self.target_offsets)

    @cached_property
    def longest_target(self) -> int:
        """Tokens of the longest target; 0 without targets."""
        return int(self.target_lengths.max(initial=0))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ids and lengths: with seed and batch size all that the order of training depends on."""
        return hashlib.sha256(self.ids.tobytes() + self.lengths.tobytes()).hexdigest()

    def content(self, task_index: int) -> str:
        """SHA-256 of all that is read of one task's rows: ids, tokens, labels and targets; tells data apart."""
        first, end = np.searchsorted(self.task_ids, [task_index, task_index + 1])
        digest = hashlib.sha256()
        for part in (self.ids, self.labels, self.lengths, self.target_lengths):
            digest.update(np.ascontiguousarray(part[first:end]).tobytes())
        digest.update(self.values[self.offsets[first] : self.offsets[end]].tobytes())
        if self.target_values is not None and self.target_offsets is not None:
            digest.update(self.target_values[self.target_offsets[first] : self.target_offsets[end]].tobytes())
        return digest.hexdigest()

    @classmethod
    def concatenate(cls, tables: list[TokenTable]) -> TokenTable:
        """One table with the rows of all, in the order given."""
        if len(tables) == 1:
            return tables[0]
        lengths = np.concatenate([table.lengths for table in tables])
        targets = [table.target_values for table in tables if table.target_values is not None]
        target_lengths = np.concatenate([table.target_lengths for table in tables])
        return cls(
            values=np.concatenate([table.values for table in tables]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            labels=np.concatenate([table.labels for table in tables]),
            task_ids=np.concatenate([table.task_ids for table in tables]),
            ids=np.concatenate([table.ids for table in tables]),
            target_values=np.concatenate(targets) if targets else None,
            target_offsets=np.concatenate([[0], np.cumsum(target_lengths)]) if targets else None,
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
    task_index: int = 0,
    cache_file: Path | None = None,
) -> TokenTable:
    """Token ids of `rows` (columns ``id``, ``text_a``, ``text_b`` and perhaps ``label`` or ``target``).

    Where rows have several targets the first is the one to write.

    Args:
        rows: the rows, of one split of one task.
        encoder: gives the ids.
        max_length: tokens that a row keeps.
        pairs: whether ``text_b`` is read.
        cue: what a causal model reads after the text.
        seq2seq_frame: what a seq2seq model reads before the first text and between the two.
        max_target_length: tokens that a target keeps; None: targets are not read.
        task_index: goes into `task_ids` and `ids`.
        cache_file: an ``.arrow`` file whose name tells all that the tokens depend on (`cache_path`); it is read where
            it exists and written otherwise, whole or not at all. None: no cache.

    Raises:
        UserError: the cache file cannot be written.
    """
    if len(rows) == 0:
        nothing = np.zeros(0, dtype=np.int64)
        empty = (nothing.astype(np.int32), np.zeros(1, dtype=np.int64))
        return TokenTable(*empty, nothing, nothing, nothing, *(() if max_target_length is None else empty))

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        second = batch["text_b"] if pairs else None
        ids = encoder.encode(batch["text_a"], second, max_length, cue=cue, seq2seq_frame=seq2seq_frame)
        columns = {"input_ids": ids, "label": batch.get("label") or [-1] * len(ids), "id": batch["id"]}
        if max_target_length is not None:
            columns["target_ids"] = encoder.encode_targets([texts[0] for texts in batch["target"]], max_target_length)
        return columns

    with_targets = max_target_length is not None
    try:
        tokens = _map(rows, encode, with_targets, cache_file)
        if cache_file is not None and not np.array_equal(_column(tokens, "id"), _column(rows, "id")):
            raise ValueError("other rows")
        # Of an older release: today every row has a token.
        if cache_file is not None and not np.diff(_flat(tokens, "input_ids")[1]).all():
            raise ValueError("rows without tokens")
    except (ValueError, OSError) as raised:
        error = _of_the_disk(raised)
        # pyarrow calls a file cut short (full disk, lost power) invalid, or an OSError that has no number.
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


def _of_the_disk(error: Exception) -> Exception:
    """The error of the disk behind `error`: on a full one, closing the unwritten file fails once more."""
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
    # `map` writes a temporary file beside the cache file and renames it, so two processes may do it at once. Its own
    # key would hash the tokenizer's state, which changes with use; ours is in the file's name.
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
    """Show a progress bar for what takes seconds only."""
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
    """A column of lists as values and offsets, without a Python object a row."""
    lists = rows.data.column(name).combine_chunks()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return lists.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def _column(rows: Dataset, name: str) -> np.ndarray:
    return np.asarray(rows.with_format("numpy")[name][:], dtype=np.int64)


def named_rows(examples: Sequence[int], tasks: Sequence[str], shown: int = 6) -> str:
    """Example ids (`TokenTable.ids`) as numbers of source rows, for messages: `rows 3, 8 and 2 more of sst2`.

    Args:
        tasks: names, in the order of the task indices.
        shown: how many numbers are named of each task.
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
    """The cache file of tokens that depend on `facts` (JSON values), with a `name` for people.

    `folder` None: the variable PROMPT_TRANSFER_CACHE, else ``~/.cache/prompt_transfer``.
    """
    root = cache_folder() if folder is None else Path(folder).expanduser()
    key = hashlib.sha256(json.dumps({"format": FORMAT, **facts}, sort_keys=True).encode()).hexdigest()[:32]
    return root / "tokens" / f"{name}-{key}.arrow"
