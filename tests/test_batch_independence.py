"""Batch independence: an example's scores and texts do not depend on the rest of its batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_families import MODES, by_hand, collated, greedy_by_hand
from tiny_models import CAUSAL, SEQ2SEQ
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone

Tiny = Callable[[str], Path]
STEPS = 4
# The tiny models' windows have 4 and 6 positions: cover shorter and longer prompts and texts.
PROMPT_LENGTHS = (0, 1, 11)
TEXT_LENGTHS = (2, 17, 1, 9)
COMPANIES = ((3,), (1, 0), (0, 3), (2, 3, 1, 1, 0))
# For a causal model both attention modes run the same code.
WRITING = [
    *((family, "full") for family in CAUSAL),
    *((family, mode) for family in SEQ2SEQ for mode in ("full", "shared")),
]


def rows_and_prompts(backbone: FrozenBackbone, length: int) -> tuple[list[list[int]], Tensor]:
    """Return texts of ordinary tokens, and two prompts [2, P, H]."""
    seeded = torch.Generator().manual_seed(length)
    size = len(backbone.tokenizer)
    rows = [torch.randint(20, size, (count,), generator=seeded).tolist() for count in TEXT_LENGTHS]
    return rows, torch.randn(2, length, backbone.hidden_size, generator=seeded) * 0.5


def in_company(backbone: FrozenBackbone, rows: list[list[int]], company: tuple[int, ...]) -> dict[str, Tensor]:
    """Collate some of the rows; even and odd rows get different prompts."""
    chosen = {"prompt_ids": torch.tensor([index % 2 for index in company])}
    return {**collated(backbone, [rows[index] for index in company]), **chosen}


@pytest.mark.parametrize(("family", "attention"), MODES)
def test_scores_are_those_of_a_row_alone(tiny: Tiny, family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    token_ids = torch.arange(20, 60)
    for length in PROMPT_LENGTHS:
        rows, prompts = rows_and_prompts(backbone, length)
        with torch.no_grad():
            expected = torch.stack([
                by_hand(tiny(family), backbone.family.kind, prompts[index % 2], row, attention == "shared")[token_ids]
                for index, row in enumerate(rows)
            ])  # fmt: skip
            for company in COMPANIES:
                found = backbone(prompts, in_company(backbone, rows, company), token_ids)
                torch.testing.assert_close(found, expected[list(company)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "attention"), WRITING)
def test_greedy_texts_are_those_of_a_row_alone(tiny: Tiny, family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    end, pad, kind = backbone.tokenizer.eos_token_id, backbone.encoder(1).pad_token_id, backbone.family.kind
    for length in PROMPT_LENGTHS:
        rows, prompts = rows_and_prompts(backbone, length)
        expected = [
            greedy_by_hand(tiny(family), kind, prompts[index % 2], row, STEPS, end, attention == "shared")
            for index, row in enumerate(rows)
        ]
        for company in COMPANIES:
            found = backbone.generate(prompts, in_company(backbone, rows, company), max_new_tokens=STEPS).tolist()
            for index, ids in zip(company, found, strict=True):
                wanted = expected[index]
                assert ids == wanted + [pad] * (len(ids) - len(wanted)), (length, company, index)


@pytest.mark.parametrize("family", [*CAUSAL, *SEQ2SEQ])
def test_texts_of_beams_are_those_of_a_row_alone(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention="shared")
    pad = backbone.encoder(1).pad_token_id
    for length in (0, 11):
        rows, prompts = rows_and_prompts(backbone, length)
        alone = [
            backbone.generate(prompts, in_company(backbone, rows, (index,)), STEPS, num_beams=3)[0].tolist()
            for index in range(len(rows))
        ]
        for company in COMPANIES[1:]:
            found = backbone.generate(prompts, in_company(backbone, rows, company), STEPS, num_beams=3).tolist()
            for index, ids in zip(company, found, strict=True):
                wanted = alone[index]
                assert ids == wanted + [pad] * (len(ids) - len(wanted)), (length, company, index)


@pytest.mark.parametrize(("family", "attention"), WRITING)
def test_likelihoods_of_targets_are_those_of_a_row_alone(tiny: Tiny, family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    targets = [[30, 31], [40], [50, 51, 52, 53, 54, 55, 56, 57], [60, 61, 62]]

    def likelihoods(prompts: Tensor, rows: list[list[int]], company: tuple[int, ...]) -> Tensor:
        padded = [targets[index] + [-100] * (8 - len(targets[index])) for index in company]
        width = max(len(targets[index]) for index in company)
        batch = {**in_company(backbone, rows, company), "target_ids": torch.tensor(padded)[:, :width]}
        found = backbone.target_log_probs(prompts, batch)
        return torch.nn.functional.pad(found, (0, 8 - width))

    for length in PROMPT_LENGTHS:
        rows, prompts = rows_and_prompts(backbone, length)
        with torch.no_grad():
            alone = torch.cat([likelihoods(prompts, rows, (index,)) for index in range(len(rows))])
            for company in COMPANIES[1:]:
                found = likelihoods(prompts, rows, company)
                torch.testing.assert_close(found, alone[list(company)], atol=1e-5, rtol=1e-5)
