"""Batches of a task's examples with prompts, for studies that read activations or gradients rather than scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prompt_transfer.backbones.deep import prompt_length
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.prompt_inputs import PromptBank
from prompt_transfer.data.batches import batch_bounds, collate, cross_prompts
from prompt_transfer.studies.scoring import MAX_TEXTS, MAX_TOKENS
from prompt_transfer.studies.targets import Target


def row_batches(
    backbone: FrozenBackbone, target: Target, prompt_length: int, count: int = 1, max_tokens: int | None = None
) -> list[NDArray[np.int64]]:
    """Return example numbers of batches of similar length.

    Args:
        count: prompts that are combined with each example.
        max_tokens: maximum positions of a batch, prompts included; None: a default for the device. A batch has at
            least one example.
    """
    budget = max_tokens or MAX_TOKENS[backbone.device.type]
    positions = target.table.lengths + backbone.encoder(prompt_length).extra_positions
    order = np.argsort(-target.table.lengths, kind="stable")
    return [order[start:end] for start, end in pairwise(batch_bounds(positions[order] * count, MAX_TEXTS, budget))]


def tensors_of(backbone: FrozenBackbone, target: Target, rows: NDArray[np.int64]) -> dict[str, Tensor]:
    """Collate some examples of a task into a batch on the backbone's device."""
    device = backbone.device
    return {name: value.to(device) for name, value in collate(target.table, rows, pad_token_of(backbone)).items()}


def pad_token_of(backbone: FrozenBackbone) -> int:
    """Return the padding token id."""
    return backbone.encoder(1).pad_token_id


def batches_with_prompts(
    backbone: FrozenBackbone,
    prompts: Sequence[Tensor],
    target: Target,
    max_tokens: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[PromptBank, dict[str, Tensor]]]:
    """Yield batches that combine every example of a task with each of N prompts of one length.

    `prompt_ids` [B] in a batch are the numbers of the prompts.

    Args:
        rank, world: yield every `world`-th batch, starting at `rank`.
    """
    bank = backbone.record(torch.stack(list(prompts)).to(backbone.device))
    numbers = torch.arange(len(prompts), device=bank.rows.device)
    longest = int(target.table.lengths.max()) + backbone.encoder(prompt_length(prompts[0])).extra_positions
    budget = max_tokens or MAX_TOKENS[bank.rows.device.type]
    together = max(1, budget // longest)
    batches = row_batches(backbone, target, prompt_length(prompts[0]), min(together, len(prompts)), budget)
    for rows in batches[rank::world]:
        texts = tensors_of(backbone, target, rows)
        for some in numbers.split(together):
            yield bank, cross_prompts(texts, some)
