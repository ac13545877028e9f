"""Property tests for arbitrary task files, texts, batches and files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prompt_transfer.backbones.encoder import TextEncoder
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.data.batches import IGNORED, LengthGroupedBatchSampler, collate
from prompt_transfer.data.tokens import TokenTable
from prompt_transfer.projectors.file import ProjectorFile, Side
from prompt_transfer.projectors.projector import MLP, Linear, Space, TokenMLP, TrainedProjector
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.labels import label_key
from prompt_transfer.tasks.registry import YAML_KEYS, get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError

FEW = settings(max_examples=25)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
WORDS = st.text(st.characters(categories=("L", "N", "P", "Zs", "So")), max_size=30)
FACTS = st.dictionaries(st.text(min_size=1, max_size=12), st.text(max_size=40), max_size=5)


# Task files.

PLAIN = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | WORDS | st.sampled_from(["~nobody/x", "\0"])
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))
GOOD = {"name": "trec", "columns": {"text_a": "text"}, "label_words": ["yes", "no"]}


def _task(text: str) -> Task | None:
    """Parse a task file with this text; return None if it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            return get_task(str(path))
        except UserError:
            return None


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(sorted(YAML_KEYS)), VALUES, max_size=4), st.booleans())
def test_a_task_file_is_a_task_or_refused(values: dict[str, Any], on_top: bool) -> None:
    found = _task(yaml.safe_dump({**GOOD, **values} if on_top else values))
    if found is not None:
        assert found.is_generation == (found.num_classes == 0)
        assert found.metrics[0] == found.metric
        assert found.max_length >= 1


@FEW
@given(
    st.text(max_size=60) | st.sampled_from(["name: 2024-99-99", "[" * 3000, "a: &a [*a]", "? [1]\n: 2", "!!python/x 1"])
)
def test_any_text_is_a_task_file_or_refused(text: str) -> None:
    assert _task(text.replace("\r", "")) is None


@given(st.integers(-(10**9), 10**9))
def test_a_label_is_one_label_however_it_is_written(value: int) -> None:
    assert len({label_key(form) for form in (value, str(value), f"{value}.0", np.int64(value), f" {value} ")}) == 1
    assert label_key(value) != label_key(value + 1)
    assert label_key(value) != label_key(value == 1)


# Templates and truncation.


@pytest.fixture(scope="module")
def encoders(tiny: Callable[[str], Path]) -> dict[str, TextEncoder]:
    return {name: FrozenBackbone(str(tiny(name))).encoder(3) for name in ("roberta", "bert", "gpt2", "t5")}


def _ends(name: str, encoder: TextEncoder, cue: str) -> tuple[list[int], list[int]]:
    """Return the tokens before and after every text."""
    (empty,) = encoder.encode([""], None, 60, cue=cue)
    if name in ("roberta", "bert"):
        return empty[:1], empty[1:]
    return [], empty


@pytest.mark.parametrize("name", ["roberta", "bert", "gpt2", "t5"])
@settings(max_examples=20)
@given(WORDS, st.none() | WORDS, st.integers(12, 40))
def test_any_text_keeps_its_frame_and_its_length(
    encoders: dict[str, TextEncoder], name: str, first: str, second: str | None, room: int
) -> None:
    encoder, cue = encoders[name], "Answer:"
    pairs = None if second is None else [second]
    (short,) = encoder.encode([first], pairs, room, cue=cue)
    (whole,) = encoder.encode([first], pairs, 10_000, cue=cue)
    start, end = _ends(name, encoder, cue)
    assert len(short) <= max(room, len(start) + len(end))
    assert short[: len(start)] == start
    assert short[len(short) - len(end) :] == end
    if len(whole) <= room:
        assert short == whole
    elif second is None:
        # Truncated at its end, filling the room.
        kept = len(short) - len(end)
        assert (len(short), short[:kept]) == (room, whole[:kept])
    # Independent of the other examples.
    assert encoder.encode(["a", first], None if second is None else ["b", second], room, cue=cue)[1] == short


# Batches.

ROWS = st.lists(st.lists(st.integers(0, 9000), max_size=9), min_size=1, max_size=12)


def _flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([token for row in rows for token in row], dtype=np.int32), np.cumsum([0, *map(len, rows)])


@given(ROWS, st.data(), st.integers(1, 5))
def test_a_batch_holds_its_rows_and_padding_alone(rows: list[list[int]], data: st.DataObject, multiple: int) -> None:
    targets = data.draw(st.lists(st.lists(st.integers(0, 50), max_size=4), min_size=len(rows), max_size=len(rows)))
    numbers = np.arange(len(rows))
    table = TokenTable(*_flat(rows), numbers % 3, numbers * 0, numbers + 7, *_flat(targets))
    chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=9)))
    batch = collate(table, chosen, 99_999, multiple)
    assert batch["input_ids"].shape[1] % multiple == 0
    for place, row in enumerate(chosen):
        mask = batch["attention_mask"][place].bool()
        assert batch["input_ids"][place][mask].tolist() == rows[row]
        assert (batch["input_ids"][place][~mask] == 99_999).all()
        assert [token for token in batch["target_ids"][place].tolist() if token != IGNORED] == targets[row]
        assert int(batch["ids"][place]) == row + 7
        assert int(batch["labels"][place]) == row % 3


@FEW
@given(st.lists(st.integers(1, 30), min_size=4, max_size=60).map(np.array), st.integers(1, 9), st.integers(0, 40))
def test_a_sampler_goes_on_from_any_batch(lengths: np.ndarray, size: int, start: int) -> None:
    whole = LengthGroupedBatchSampler(lengths, size, seed=3)
    later = LengthGroupedBatchSampler(lengths, size, seed=3, start_batch=start)
    for offset, batch in enumerate(later):
        assert batch.position == start + offset + 1
        assert batch.rows.tolist() == whole.global_batch(start + offset).tolist()


# Files.


@FEW
@given(
    arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=FLOATS), st.booleans(), FACTS
)  # fmt: skip
def test_a_prompt_comes_back_bit_for_bit(rows: np.ndarray, initial: bool, facts: dict[str, str]) -> None:
    facts = {
        key: value for key, value in facts.items() if key not in ("format_version", "prompt_length", "hidden_size")
    }
    tensor = torch.from_numpy(rows.copy())
    prompt = Prompt(tensor, facts, -tensor if initial else None)
    with tempfile.TemporaryDirectory() as folder:
        path = prompt.save(Path(folder) / "p.safetensors")
        again = Prompt.load(path)
        # Compare bytes: an equality of numbers would miss the sign of zero.
        assert again.embeddings.numpy().tobytes() == rows.tobytes()
        assert (again.initial is not None) == initial
        assert facts.items() <= again.metadata.items()
        assert again.save(Path(folder) / "q.safetensors").read_bytes() == path.read_bytes()


@FEW
@given(
    st.sampled_from([MLP(3), MLP(2, standardize=True), TokenMLP(2), TokenMLP(3, skip=False), Linear()]),
    *(st.integers(1, 5) for _ in range(4)), FACTS,
)  # fmt: skip
def test_a_projector_comes_back_bit_for_bit(
    kind: TrainedProjector, length: int, width: int, its_length: int, its_width: int, facts: dict[str, str]
) -> None:
    projector = type(kind)(**kind.options())
    whole = projector.whole
    sides = [
        Side("a", "f", "roberta", width, length if whole else None),
        Side("b", "g", "t5", its_width, its_length if whole else None),
    ]
    generator = torch.Generator().manual_seed(length)
    spaces = Space(length, width), Space(its_length if whole else length, its_width)
    prompts = torch.randn(3, length, width, generator=generator)
    projector.build(*spaces, generator, prompts)
    facts = {f"own {key}": value for key, value in facts.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = ProjectorFile(projector, *sides, facts).save(Path(folder) / "p.safetensors")
        again = ProjectorFile.load(path)
        assert torch.equal(again.rows(prompts), projector(prompts).detach())
        assert [again.source, again.target] == sides
        assert again.save(Path(folder) / "q.safetensors").read_bytes() == path.read_bytes()


CELLS = st.text(st.characters(categories=("L", "N", "P", "Zs", "Sm")), min_size=1, max_size=12)


@FEW
@given(st.lists(st.tuples(CELLS, CELLS, FLOATS | st.none(), st.integers(0, 9)), min_size=1, max_size=5))
def test_a_table_comes_back_from_both_kinds_of_files(rows: list[tuple[str, str, float | None, int]]) -> None:
    frame = results.table([{"task": t, "extra, one": e, "value": v, "n": n} for t, e, v, n in rows])
    frame["value"] = frame["value"].astype(float)
    with tempfile.TemporaryDirectory() as folder:
        for suffix, read in (("parquet", pd.read_parquet), ("csv", _read_csv)):
            again = read(results.write(frame, Path(folder) / f"results.{suffix}"))
            assert list(again.columns) == list(frame.columns)
            assert again["task"].tolist() == [row[0] for row in rows]
            assert again["extra, one"].tolist() == [row[1] for row in rows]
            assert again["n"].tolist() == [row[3] for row in rows]
            expected = [np.nan if row[2] is None else row[2] for row in rows]
            np.testing.assert_array_equal(again["value"].to_numpy(dtype=float), expected)


def _read_csv(path: Path) -> pd.DataFrame:
    kinds = {"task": str, "extra, one": str}
    frame = pd.read_csv(path, dtype=kinds, keep_default_na=False)
    return frame.assign(value=pd.to_numeric(frame["value"].replace("", None)))
