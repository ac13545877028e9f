"""One attention function for all backbones: SDPA with the key/value cache of a prompt.

In the attention mode `shared` the prompt sees only itself, so its keys and values are computed once and prepended for a
whole batch. The function is registered with transformers under `NAME`, together with the mask function of its SDPA:
without one, a model would silently attend to padding. For training on a CPU there are two faster kernels for the same
function: `matmul_attention.py` in bf16, and `shared_prefix_attention.py` if all texts of a batch share one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prompt_transfer.backbones.kernels.frozen_linear import stop_sharing_rows
from prompt_transfer.backbones.kernels.matmul_attention import matmul_attention, softmax_scale
from prompt_transfer.backbones.kernels.packed_attention import Heads, Rotation
from prompt_transfer.backbones.kernels.shared_prefix_attention import is_worthwhile, shared_prefix_attention

NAME = "prompt_transfer"


class StopAfterKV(Exception):  # noqa: N818 - a signal, like StopIteration
    """A signal raised in the attention function to leave a layer once its keys and values exist (`CachedKV`).

    Only `last_layer.py` catches it: transformers has no argument to compute only keys and values.
    """


class LayerStates(Protocol):
    """Replacements for an attention layer's own keys and values, passed to the layer as `prompt_states`."""

    position_bias: Tensor | None

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values to attend to, given the layer's own."""

    def shared_prompt(self, text_length: int) -> tuple[Tensor, Tensor] | None:
        """Return keys and values [1, heads, P, D] of the prompt shared by all texts, for `shared_prefix_attention`.

        None if no shared prompt is being trained or the kernel is not worthwhile; the caller then uses `exchange`.
        """


def select_prompts(states: Tensor, prompt_ids: Tensor | None, examples: int) -> Tensor:
    """Select each example's prompt from states [N, ...]: [B, ...]. Without ids every example uses the only prompt."""
    if prompt_ids is not None:
        return states.index_select(0, prompt_ids)
    return states.expand(examples, *states.shape[1:])


class PromptStates:
    """The key/value cache of N prompts: [N, heads, P, D] for each call of an attention layer, in call order.

    Entries are per call and not per layer, since a model may call one layer several times (ALBERT).
    """

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.reading = False
        self.prompt_ids: Tensor | None = None
        self.position_bias: Tensor | None = None
        self._next = self._taken = 0

    @property
    def length(self) -> int:
        """P."""
        return self.layers[0][0].shape[2]

    def read(self, prompt_ids: Tensor | None, position_bias: Tensor | None = None) -> PromptStates:
        """Start reading at the first layer.

        Args:
            prompt_ids: [B], prompt of each example; None if there is only one prompt.
            position_bias: [1 or B, heads, T, P + T], from the text to prompt and text; None if the model has none.
        """
        self.reading, self.prompt_ids, self.position_bias, self._next = True, prompt_ids, position_bias, 0
        return self

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Record the layer's keys and values, or while reading prepend the recorded ones."""
        layer = self.enter()
        exchanged = layer.exchange(key, value)
        self.leave(layer)
        return exchanged

    def shared_prompt(self, text_length: int) -> tuple[Tensor, Tensor] | None:
        """Return the next layer's keys and values if `shared_prefix_attention` can use them (see `LayerStates`)."""
        if not self.reading or not _can_share(self.layers[self._next][0], text_length):
            return None
        return self.enter().recorded

    def enter(self) -> LayerPromptKV:
        """Return the cache of the next layer call, separate from `self` because checkpointing may repeat the call."""
        recorded = None
        if self.reading:
            recorded = self.layers[self._next]
            self._next += 1
        return LayerPromptKV(recorded, self.prompt_ids, self.position_bias)

    def leave(self, layer: LayerPromptKV) -> None:
        """Append the keys and values that the layer recorded, if any."""
        if layer.kept is not None:
            self.layers.append(layer.kept)

    def take_new(self) -> list[Tensor]:
        """Return the keys and values recorded since the last call; none while reading."""
        if self.reading:
            return []
        new = self.layers[self._taken :]
        self._taken = len(self.layers)
        return [tensor for pair in new for tensor in pair]


class LayerPromptKV:
    """One layer's part of `PromptStates`: recorded keys and values to prepend, or a place to record its own."""

    def __init__(
        self, recorded: tuple[Tensor, Tensor] | None, prompt_ids: Tensor | None, position_bias: Tensor | None
    ) -> None:
        self.recorded, self.prompt_ids, self.position_bias = recorded, prompt_ids, position_bias
        self.kept: tuple[Tensor, Tensor] | None = None

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Record the layer's keys and values, or prepend the recorded ones."""
        if self.recorded is None:
            if self.kept is None:
                self.kept = (key, value)
            return key, value
        prompt_key, prompt_value = (
            # Under autocast a deep prompt is float32 while the layer's own keys or values are bf16.
            select_prompts(states, self.prompt_ids, key.shape[0]).to(own.dtype)
            for states, own in zip(self.recorded, (key, value), strict=True)
        )
        return torch.cat([prompt_key, key], dim=2), torch.cat([prompt_value, value], dim=2)

    def shared_prompt(self, text_length: int) -> tuple[Tensor, Tensor] | None:
        """Return the recorded keys and values if `shared_prefix_attention` can use them (see `LayerStates`)."""
        if self.recorded is None or not _can_share(self.recorded[0], text_length):
            return None
        return self.recorded


def _can_share(keys: Tensor, text_length: int) -> bool:
    return keys.shape[0] == 1 and keys.requires_grad and is_worthwhile(keys.shape[2], text_length)


class FixedPositionBias:
    """A position bias [1 or B, heads, T, T] that replaces the layer's own; keys and values stay as they are."""

    def __init__(self, position_bias: Tensor) -> None:
        self.position_bias: Tensor | None = position_bias

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer's own keys and values."""
        return key, value

    def shared_prompt(self, text_length: int) -> None:
        """Return None: the prompt is part of the text."""


class CachedKV:
    """One layer's keys and values at all positions, for a second call at a few positions (`last_layer.py`).

    The first call leaves the layer with `StopAfterKV`; later calls get the cached keys and values.

    Args:
        states: prepends prompts to the layer's keys and values, or records them; None for neither.
    """

    position_bias: Tensor | None = None

    def __init__(self, states: LayerStates | None) -> None:
        self.states = states
        self.kept: tuple[Tensor, Tensor] | None = None

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Cache the keys and values of the first call, with prompts prepended; return the cached ones later."""
        if self.kept is None:
            self.kept = (key, value) if self.states is None else self.states.exchange(key, value)
            raise StopAfterKV
        return self.kept

    def shared_prompt(self, text_length: int) -> None:
        """Return None: sharing saves little for the few positions of the second call."""


class PackedAttention:
    """The attention of a packed batch (`packing.py`), instead of keys and values given to the layer."""

    def enter(self) -> PackedAttention:
        """Return the attention of the next layer call; that of a layer returns itself."""
        raise NotImplementedError

    def enter_last(self) -> PackedAttention:
        """Return the attention of the last layer, which is called twice.

        The first call leaves the layer with `StopAfterKV`; the second has the queries of the scored positions only.
        """
        raise NotImplementedError

    def rotation(self, position_embeddings: tuple[Tensor, Tensor], heads: Heads, scale: float) -> Rotation:
        """Return the tables of rotary positions, computed once for all layers."""
        raise NotImplementedError

    def attend_rotated(self, rotated: Tensor, values: Tensor, heads: Heads) -> Tensor | None:
        """Compute the attention [1, R, A D] of the results of `rotated_projection`; None if `attend` must be used."""
        raise NotImplementedError

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        """Compute the attention of packed queries, keys and values [1, heads, R, D]: [1, R, heads, D]."""
        raise NotImplementedError


@dataclass(frozen=True)
class AbsorbedKV:
    """The attention's input and its key and value projections, instead of keys and values; for one query per example.

    Attributes:
        states: [B, K, H], input of the projections.
        key, value: the linear layers of keys and values.
    """

    states: Tensor
    key: nn.Linear
    value: nn.Linear

    def attend(self, module: nn.Module, query: Tensor, attention_mask: Tensor | None, scaling: float | None) -> Tensor:
        """Compute the attention of queries [B, A, 1, D]: [B, 1, A, D]."""
        weights = (self.key.weight, self.value.weight)
        values = attend_absorbed(module, query, self.states, *weights, attention_mask, scaling)
        return values if self.value.bias is None else values + self.value.bias.view(values.shape[2:])


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prompt_states: LayerStates | AbsorbedKV | PackedAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute scaled dot-product attention over the keys and values given by `prompt_states`.

    The arguments are those of an attention function of transformers. Without `prompt_states` the layer attends to its
    own keys and values.
    """
    stop_sharing_rows()
    if prompt_states is None:
        return attend_own(module, query, key, value, attention_mask, **kwargs)
    if isinstance(prompt_states, AbsorbedKV):
        return prompt_states.attend(module, query, attention_mask, kwargs.get("scaling")), None
    if isinstance(prompt_states, PackedAttention):
        return prompt_states.attend(module, query, key, value, **kwargs), None
    return attend_to_prompt(module, query, key, value, attention_mask, prompt_states, **kwargs)


def attend_to_prompt(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prompt_states: LayerStates,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention over the keys and values given by `prompt_states`, arguments as in `attend`."""
    if prompt_states.position_bias is not None:
        kwargs["position_bias"] = prompt_states.position_bias
    can_share = torch.is_grad_enabled() and query.device.type == "cpu" and not kwargs.get("dropout")
    prompt = prompt_states.shared_prompt(query.shape[2]) if can_share else None
    if prompt is not None:
        options = {name: kwargs.get(name) for name in ("scaling", "position_bias")}
        return shared_prefix_attention(module, query, key, value, prompt, attention_mask, **options)
    key, value = prompt_states.exchange(key, value)
    return attend_own(module, query, key, value, attention_mask, **kwargs)


def attend_own(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Compute attention with transformers' SDPA, or with the faster kernel for training in bf16 on a CPU."""
    trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    faster = trains and query.device.type == "cpu" and query.dtype is torch.bfloat16
    forward = matmul_attention if faster else sdpa_attention_forward
    return forward(module, query, key, value, attention_mask, **kwargs)


def attend_absorbed(
    module: nn.Module,
    query: Tensor,
    states: Tensor,
    to_keys: Tensor,
    to_values: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
) -> Tensor:
    """Compute the attention of one query per example without keys and values, by reordering the products.

    `q (E Wk)' = (q Wk') E'` and `w (E Wv) = (w E) Wv` for states E and attention weights w: Wk and Wv are multiplied
    with one vector per example and head instead of one per state. A key bias shifts all scores of a query equally, so
    the softmax cancels it.

    Args:
        module: the attention layer.
        query: [B, A, 1, D].
        states: [B, K, H].
        to_keys, to_values: weights [A D, H] of the key and value projections; the caller adds the value bias.
        attention_mask: [B or 1, 1, 1, K], or None.
        scaling: factor of the scores; None for 1 / sqrt(D).

    Returns:
        [B, 1, A, D]
    """
    heads, width = query.shape[1], query.shape[3]
    key_weights, value_weights = (weight.view(heads, width, -1) for weight in (to_keys, to_values))
    absorbed = (query.squeeze(2).transpose(0, 1) @ key_weights).transpose(0, 1)
    scale = softmax_scale(query, scaling)
    # Under autocast a norm's output is float32 while queries are bf16.
    shared = states.unsqueeze(1).to(absorbed.dtype)
    # All heads attend to the same states, so the heads become the queries of one head.
    mixed, _ = attend(module, absorbed.unsqueeze(1), shared, shared, attention_mask, scaling=scale, is_causal=False)
    values = mixed.squeeze(2).transpose(0, 1) @ value_weights.transpose(1, 2)
    return values.transpose(0, 1).unsqueeze(1)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
