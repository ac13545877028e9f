"""Recorded prompts and texts shared by many prompts: the same values as one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_families import MODES
from test_frozen import TEXTS, P, random_prompt
from tiny_models import CAUSAL, PLAIN
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone

N = 3


def batch_of(backbone: FrozenBackbone) -> dict[str, Tensor]:
    encoder = backbone.encoder(P)
    rows = encoder.encode(TEXTS, None, 32)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [encoder.pad_token_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def every_text_with_every_prompt(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    texts = len(TEXTS)
    return {
        **batch,
        "text_ids": torch.arange(texts).repeat(N),
        "prompt_ids": torch.arange(N).repeat_interleave(texts),
    }


@pytest.mark.parametrize(("family", "attention"), MODES)
def test_a_bank_scores_as_each_prompt_does(tiny: Callable[[str], Path], family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    prompts = torch.stack([random_prompt(backbone, seed) for seed in range(N)])
    batch, token_ids = batch_of(backbone), torch.tensor([5, 9, 11])
    with torch.no_grad():
        bank = backbone.record(prompts)
        expected = torch.cat([backbone(prompt, batch, token_ids) for prompt in prompts])
        crossed = every_text_with_every_prompt(batch)
        # Twice, since a recording is reusable.
        for _ in range(2):
            torch.testing.assert_close(backbone(bank, crossed, token_ids), expected, atol=1e-5, rtol=0)
    assert len(bank) == N
    # Families that run through the library's own forward record nothing.
    assert (bank.recorded is None) == (family in PLAIN or (attention == "full" and family not in CAUSAL))


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "t5"])
@pytest.mark.parametrize("attention", ["full", "shared"])
def test_a_bank_writes_as_each_prompt_does(tiny: Callable[[str], Path], family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    prompts = torch.stack([random_prompt(backbone, seed) for seed in range(N)])
    batch = batch_of(backbone)
    crossed = every_text_with_every_prompt(batch)
    targets = torch.tensor([[7, 8, 9], [7, -100, -100]])
    with torch.no_grad():
        bank = backbone.record(prompts)
        together = backbone.target_log_probs(bank, crossed | {"target_ids": targets.repeat(N, 1)})
        alone = [backbone.target_log_probs(prompt, batch | {"target_ids": targets}) for prompt in prompts]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
        written = backbone.decode(backbone.generate(bank, crossed, max_new_tokens=4))
        one_by_one = [backbone.decode(backbone.generate(prompt, batch, max_new_tokens=4)) for prompt in prompts]
    assert written == [text for texts in one_by_one for text in texts]


@pytest.mark.parametrize(("family", "attention"), MODES)
def test_a_bank_of_empty_prompts_scores_as_no_prompt(tiny: Callable[[str], Path], family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    empty = torch.zeros(0, backbone.hidden_size)
    batch, token_ids = batch_of(backbone), torch.tensor([5, 9, 11])
    with torch.no_grad():
        expected = backbone(empty, batch, token_ids)
        assert torch.equal(backbone(backbone.record(empty), batch, token_ids), expected)
        bank = backbone.record(empty.expand(N, -1, -1))
        crossed = backbone(bank, every_text_with_every_prompt(batch), token_ids)
    assert len(bank) == N
    torch.testing.assert_close(crossed, expected.repeat(N, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "t5"])
@pytest.mark.parametrize("attention", ["full", "shared"])
def test_a_bank_of_an_empty_prompt_writes_as_no_prompt(
    tiny: Callable[[str], Path], family: str, attention: str
) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    empty = torch.zeros(0, backbone.hidden_size)
    batch = batch_of(backbone)
    targets = batch | {"target_ids": torch.tensor([[7, 8, 9], [7, -100, -100]])}
    with torch.no_grad():
        bank = backbone.record(empty)
        assert torch.equal(backbone.target_log_probs(bank, targets), backbone.target_log_probs(empty, targets))
        written = backbone.generate(bank, batch, max_new_tokens=4)
        assert torch.equal(written, backbone.generate(empty, batch, max_new_tokens=4))


def test_keys_and_values_are_computed_once(tiny_roberta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = FrozenBackbone(str(tiny_roberta), attention="shared")
    batch, token_ids = batch_of(backbone), torch.tensor([5, 9])
    bank = backbone.record(random_prompt(backbone))
    monkeypatch.setattr(backbone._answers.stack, "record", None)
    backbone(bank, batch, token_ids)
    with pytest.raises(TypeError):
        backbone(random_prompt(backbone), batch, token_ids)
