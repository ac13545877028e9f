"""Text encoding: truncation keeps special tokens and shortens the longer text first; empty texts are valid."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from start_models import save_llama, sentencepiece_tokenizer
from tiny_models import CAUSAL, MASKED, SEQ2SEQ

from prompt_transfer.backbones.encoder import MIN_TEXT_TOKENS, TextEncoder, shorten
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.data.tables import Tables
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

P = 5


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 300))
def test_shorten_fills_the_room_and_cuts_the_longer_first(a: int, b: int, room: int) -> None:
    kept_a, kept_b = shorten(a, b, room)
    assert kept_a + kept_b == min(a + b, room)
    assert 0 <= kept_a <= a
    assert 0 <= kept_b <= b
    if kept_a < a and kept_b < b:
        assert abs(kept_a - kept_b) <= 1
    elif kept_a < a:
        assert kept_a >= kept_b - 1


@pytest.fixture
def backbone(tiny_roberta: Path) -> FrozenBackbone:
    return FrozenBackbone(str(tiny_roberta))


def test_single_and_pair_templates(backbone: FrozenBackbone) -> None:
    start, end = backbone.tokenizer.cls_token_id, backbone.tokenizer.sep_token_id
    great, bad = (backbone.tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in ("great", "bad"))
    encoder = backbone.encoder(5)
    assert encoder.encode([" great"], None, 16) == [[start, great, end]]
    # One separator between the texts; RoBERTa's own template has two (release 1.0).
    assert encoder.encode([" great"], [" bad"], 16) == [[start, great, end, bad, end]]


def test_what_is_too_long_is_cut_inside(backbone: FrozenBackbone) -> None:
    start, end = backbone.tokenizer.cls_token_id, backbone.tokenizer.sep_token_id
    row = backbone.encoder(5).encode(["great " * 50], None, 10)[0]
    assert (len(row), row[0], row[-1]) == (10, start, end)
    row = backbone.encoder(5).encode(["great " * 50], [" bad bad"], 10)[0]
    assert len(row) == 10
    assert row.count(end) == 2
    assert row[-3:-1] == backbone.tokenizer.encode(" bad bad", add_special_tokens=False)


# Empty text, blanks, control and direction marks, characters unknown to the tiny tokenizers, and words.
TEXTS = st.text(max_size=4) | st.sampled_from(
    ["", " ", "\n\t", "\u200b", "\x00", "\x1b", "🎬", "\u202e", "\ufeff", "the"]
)


@functools.cache
def loaded(folder: Path) -> FrozenBackbone:
    return FrozenBackbone(str(folder))


@pytest.mark.parametrize("family", [*MASKED, *CAUSAL, *SEQ2SEQ, "llama2"])
@settings(max_examples=12)
@example(first=[""], second=None, cue="", length=0)
@example(first=["", "the film"], second=None, cue="", length=P)
@example(first=["the", "the"], second=["", "the"], cue="", length=P)
@given(
    first=st.lists(TEXTS, min_size=1, max_size=3), second=st.none() | st.lists(TEXTS, min_size=3, max_size=3),
    cue=st.sampled_from(["", "it was"]), length=st.sampled_from([0, P]),
)  # fmt: skip
def test_any_text_is_answered_and_the_same_in_any_batch(
    tiny: Callable[[str], Path], llama2: Path, family: str, first: list[str], second: list[str] | None, cue: str,
    length: int,
) -> None:  # fmt: skip
    backbone = loaded(llama2 if family == "llama2" else tiny(family))
    encoder, words = backbone.encoder(length), torch.tensor([5, 6])
    prompt = torch.randn(length, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    encoded = encoder.encode(first, None if second is None else second[: len(first)], 12, cue=cue)
    assert all(0 < len(row) <= 12 for row in encoded)
    together = backbone(prompt, collated(encoded, encoder.pad_token_id), words)
    assert together.isfinite().all()
    for row, expected in zip(encoded, together, strict=True):
        alone = backbone(prompt, collated([row], encoder.pad_token_id), words)[0]
        torch.testing.assert_close(alone, expected, rtol=0, atol=1e-4)


def collated(rows: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }


@pytest.fixture(scope="session")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(sentencepiece_tokenizer("prepend"), tmp_path_factory.mktemp("llama2"))


@pytest.mark.parametrize("family", CAUSAL)
def test_where_nothing_is_left_a_causal_model_answers_behind_its_end_token(
    tiny: Callable[[str], Path], family: str
) -> None:
    encoder = loaded(tiny(family)).encoder(P)
    (end,) = encoder.without_text()
    assert encoder.encode(["", "the"], None, 12) == [[end], encoder.tokenizer("the")["input_ids"]]
    # With a cue, or between two texts, the input is not empty.
    assert end not in encoder.encode([""], None, 12, cue="it was")[0]
    assert end not in encoder.encode([""], [""], 12)[0]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_texts_are_written_behind_nothing(tiny: Callable[[str], Path], family: str) -> None:
    backbone = loaded(tiny(family))
    encoder, prompt = backbone.encoder(P), torch.zeros(P, backbone.hidden_size)
    batch = collated(encoder.encode(["", "the film"], None, 12), encoder.pad_token_id)
    written = backbone.generate(prompt, batch, max_new_tokens=3)
    alone = backbone.generate(prompt, {key: value[:1, :1] for key, value in batch.items()}, max_new_tokens=3)
    assert torch.equal(written[0, : alone.shape[1]], alone[0])
    targets = torch.tensor([row + [-100] * (3 - len(row)) for row in encoder.encode_targets(["", "the film"], 3)])
    assert backbone.target_log_probs(prompt, {**batch, "target_ids": targets}).isfinite().all()


# Cues and frames without room for text.


def kept_words(row: list[int], encoder: TextEncoder) -> int:
    return row.count(encoder.tokenizer.encode(" great", add_special_tokens=False)[0])


@pytest.mark.parametrize("second", [None, [" bad"]])
def test_a_cue_that_leaves_no_room_for_text_is_refused(tiny: Callable[[str], Path], second: list[str] | None) -> None:
    encoder = loaded(tiny("gpt2")).encoder(P)
    texts = [" great" * 30]
    # 10 tokens of cue, and a newline between the texts of a pair.
    taken = 10 if second is None else 11
    (row,) = encoder.encode(texts, second and texts, taken + MIN_TEXT_TOKENS, cue="great " * 10)
    assert len(row) == taken + MIN_TEXT_TOKENS
    assert kept_words(row, encoder) == 10 + MIN_TEXT_TOKENS
    for length in (taken + MIN_TEXT_TOKENS - 1, taken, 8, 0):
        with pytest.raises(UserError, match=r"the cue \(10\) .* at least 2 are needed") as caught:
            encoder.encode(texts, second, length, cue="great " * 10)
        left = max(length - taken, 0)
        assert f"leave {left} of a max_length of {length} tokens for text" in str(caught.value)
        assert f"use --data.max_length {taken + 2} or more or a shorter cue" in str(caught.value)
        assert "\n" not in str(caught.value)
    # No length would help.
    with pytest.raises(UserError, match=r"needed; use a shorter cue$"):
        encoder.encode(texts, second, 59, cue="great " * 70)


def test_a_frame_that_leaves_no_room_for_text_is_refused(tiny: Callable[[str], Path]) -> None:
    encoder = loaded(tiny("t5")).encoder(P)
    frame = ("great " * 9, " great")
    with pytest.raises(UserError, match=r"the frame and special tokens \(1\d\) leave 0 .* or a shorter frame"):
        encoder.encode(["great"], ["bad"], 10, seq2seq_frame=frame)
    # Kinds that do not read it are not limited by a cue.
    assert encoder.encode(["great"], None, 10, cue="great " * 70) == encoder.encode(["great"], None, 10)


@pytest.mark.parametrize(("name", "taken"), [("roberta", 2), ("bert", 2), ("gpt2", 0), ("t5", 1)])
def test_special_tokens_leave_room_for_text(tiny: Callable[[str], Path], name: str, taken: int) -> None:
    encoder = loaded(tiny(name)).encoder(P)
    assert encoder.text_room(20, False) == 20 - taken
    with pytest.raises(UserError, match=rf"special tokens \({taken}\) leave 1 .* use --data.max_length {taken + 2} or"):
        encoder.encode(["great"], None, taken + 1)


def test_a_task_whose_cue_leaves_no_room_is_refused_before_its_rows_are_read(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    encoder = loaded(tiny("gpt2")).encoder(P)
    task = Task(name="toy", type="topic", text_a="text", label_words=("no", "yes"), cue="great " * 10)
    selection = SimpleNamespace(tasks=[task])
    for length in (8, 11):
        with pytest.raises(UserError, match=r"^task toy: the cue \(10\) .*--data.max_length 12 or more or a shorter"):
            Tables(selection, encoder, length)
    assert Tables(selection, encoder, 12).lengths == [12]
