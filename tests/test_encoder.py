"""Text encoding: truncation keeps special tokens and shortens the longer text first; empty texts are valid."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from start_models import save_llama, sentencepiece_tokenizer
from tiny_models import CAUSAL, MASKED, SEQ2SEQ

from prompt_transfer.backbones.encoder import shorten
from prompt_transfer.backbones.frozen import FrozenBackbone

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
