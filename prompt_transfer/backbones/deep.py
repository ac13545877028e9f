"""Keys and values of deep prompts: their shape on a backbone, and how a backbone computes them from embeddings.

Shape letters: P prompt tokens, H hidden, L layers, K key/value heads, D width of a head, N prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prompt_transfer.backbones.attention import PromptStates
from prompt_transfer.backbones.layer_files import FILES
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.backbones.frozen import FrozenBackbone

# Dimensions of a deep prompt [L, 2, P, K, D]; a prompt [P, H] has two.
DEEP_DIMENSIONS = 5


def is_deep(prompts: Tensor) -> bool:
    """Return whether a tensor holds one deep prompt [L, 2, P, K, D] or several [N, L, 2, P, K, D]."""
    return prompts.ndim >= DEEP_DIMENSIONS


def prompt_length(prompt: Tensor) -> int:
    """Return P of one prompt [P, H] or deep prompt [L, 2, P, K, D]."""
    return prompt.shape[2] if is_deep(prompt) else prompt.shape[0]


def to_vectors(keys_values: Tensor) -> Tensor:
    """Return a deep prompt [L, 2, P, K, D] as one vector per prompt token, [P, L * 2 * K * D], as PEFT stores it."""
    return keys_values.permute(2, 0, 1, 3, 4).flatten(1)


def from_vectors(vectors: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return vectors [P, L * 2 * K * D] as a deep prompt of `shape` (L, 2, P, K, D)."""
    layers, two, length, heads, width = shape
    return vectors.view(length, layers, two, heads, width).permute(1, 2, 0, 3, 4)


def several(backbone: FrozenBackbone, prompts: Tensor) -> Tensor:
    """Return one prompt or several, deep or not, as [N, ...] in the backbone's dtype.

    Raises:
        UserError: deep prompts for another shape of keys and values.
    """
    one = DEEP_DIMENSIONS if is_deep(prompts) else 2
    rows = (prompts.unsqueeze(0) if prompts.ndim == one else prompts).to(backbone.model.dtype)
    if is_deep(rows) and (own := backbone.keys_values_shape(rows.shape[3])) != tuple(rows.shape[1:]):
        raise UserError(f"a deep prompt of the shape {tuple(rows.shape[1:])}, but {backbone.id} needs {own}")
    return rows


def as_states(keys_values: Tensor) -> PromptStates:
    """Return deep prompts [N, L, 2, P, K, D] as the recorded keys and values of N prompts."""
    states = PromptStates()
    by_head = keys_values.transpose(3, 4)
    states.layers = [(by_head[:, layer, 0], by_head[:, layer, 1]) for layer in range(keys_values.shape[1])]
    return states


def require_recorded_path(backbone: FrozenBackbone) -> None:
    """Raise UserError if the backbone cannot attend to keys and values that were not computed from its input."""
    if backbone.family.plain:
        raise UserError(
            f"{backbone.id} ({backbone.family.name}) runs prompt and text only together, so no keys and values can be "
            "put before its layers: use --model.method prompt, or a backbone of another family"
        )


def shape(backbone: FrozenBackbone) -> tuple[int, int, int]:
    """Return (L, K, D) of the backbone's keys and values.

    Raises:
        UserError: the backbone has no recorded path, or its layers differ in the shape of keys and values.
    """
    if not hasattr(backbone.model, FILES):
        found = compute(backbone, torch.zeros(1, backbone.hidden_size))
        return found.shape[0], found.shape[3], found.shape[4]
    # The layers are not loaded yet.
    require_recorded_path(backbone)
    config = backbone.config
    if not backbone.family.position_ids:  # T5
        return config.num_layers, config.num_heads, config.d_kv
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, width


@torch.no_grad()
def compute(backbone: FrozenBackbone, embeddings: Tensor) -> Tensor:
    """Return the keys and values that a backbone computes for a prompt [P, H] that sees only itself.

    Returns:
        float32 [L, 2, P, K, D] on the backbone's device: L attention calls, keys as they enter attention, that is after
        norms and rotary positions.

    Raises:
        UserError: the backbone has no recorded path, or its layers differ in the shape of keys and values.
    """
    require_recorded_path(backbone)
    training = backbone.model.training
    backbone.model.eval()
    try:
        given = embeddings.to(backbone.device, backbone.model.dtype)
        _, states = backbone._answers.stack.record(backbone._answers.prompt_part(given[None]))
    finally:
        backbone.model.train(training)
    shapes = {tuple(each.shape[1:]) for pair in states.layers for each in pair}
    if len(shapes) != 1:
        raise UserError(
            f"the layers of {backbone.id} have keys and values of different shapes: use --model.method prompt, or "
            "another backbone"
        )
    # [L, 2, K, P, D]
    by_head = torch.stack([torch.stack([key[0], value[0]]) for key, value in states.layers])
    return by_head.transpose(2, 3).float().contiguous()
