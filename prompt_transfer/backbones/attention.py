"""One attention function for all backbones: SDPA that can record a prompt's keys and values and put them first.

That is the attention mode `shared`: the prompt sees only itself, so its keys and values are computed once and serve a
whole batch. Registered with transformers under `NAME`, with the mask function of its SDPA: without one a model would
attend to pads silently. In training on a CPU in bf16 matrix products do the same faster (`attention_by_products.py`).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prompt_transfer.backbones.attention_by_products import by_products

NAME = "prompt_transfer"


class KeysKnownError(Exception):
    """Leaves a layer at its attention function, when nothing but its keys and values is wanted (`OneLayer`)."""


class LayerStates(Protocol):
    """What an attention layer gets beside its own keys and values."""

    position_bias: Tensor | None

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that the layer is to attend to, in place of its own."""


def rows_of(states: Tensor, prompt_ids: Tensor | None, examples: int) -> Tensor:
    """Of [N, ...] the row of each example [B, ...]: the one of its prompt, or the only one."""
    if prompt_ids is not None:
        return states.index_select(0, prompt_ids)
    return states.expand(examples, *states.shape[1:])


class PromptStates:
    """Keys and values of N prompts, [N, heads, P, H / heads] each, in the order in which attention layers run.

    The order, not the layer's number, tells them apart: a model may use one layer several times (ALBERT).
    """

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.reading = False
        self.prompt_ids: Tensor | None = None
        self.position_bias: Tensor | None = None
        self._next = 0

    def read(self, prompt_ids: Tensor | None, position_bias: Tensor | None = None) -> PromptStates:
        """Hand out from the first layer on: the only prompt to all, or to example b the prompt `prompt_ids[b]`.

        Args:
            prompt_ids: [B] or None.
            position_bias: [1 or B, heads, T, P + T], for models that have one: of the text over prompt and text.
        """
        self.reading, self.prompt_ids, self.position_bias, self._next = True, prompt_ids, position_bias, 0
        return self

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """While recording keep them and give them back; while reading put the recorded ones before them."""
        layer = self.enter()
        found = layer.exchange(key, value)
        self.leave(layer)
        return found

    def enter(self) -> OneCall:
        """What the next layer gets: for one call of it, which may be computed anew later."""
        recorded = None
        if self.reading:
            recorded = self.layers[self._next]
            self._next += 1
        return OneCall(recorded, self.prompt_ids, self.position_bias)

    def leave(self, layer: OneCall) -> None:
        """Keep what the layer recorded."""
        if layer.kept is not None:
            self.layers.append(layer.kept)


class OneCall:
    """Of `PromptStates` what one layer needs: recorded keys and values to put first, or room to keep its own."""

    def __init__(
        self, recorded: tuple[Tensor, Tensor] | None, prompt_ids: Tensor | None, position_bias: Tensor | None
    ) -> None:
        self.recorded, self.prompt_ids, self.position_bias = recorded, prompt_ids, position_bias
        self.kept: tuple[Tensor, Tensor] | None = None

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `PromptStates.exchange`."""
        if self.recorded is None:
            if self.kept is None:
                self.kept = (key, value)
            return key, value
        first, second = (rows_of(states, self.prompt_ids, key.shape[0]) for states in self.recorded)
        return torch.cat([first, key], dim=2), torch.cat([second, value], dim=2)


class OnlyBias:
    """A position bias [1 or B, heads, T, T] in place of a layer's own, and nothing else."""

    def __init__(self, position_bias: Tensor) -> None:
        self.position_bias: Tensor | None = position_bias

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As they are."""
        return key, value


class OneLayer:
    """Keys and values of one layer at all positions, for a second call of it at a few (see `last_layer.py`).

    The first call leaves the layer with `KeysKnownError`; all later ones get what it kept.

    Args:
        states: of prompts that stand before the layer's own keys and values, or that record them.
    """

    position_bias: Tensor | None = None

    def __init__(self, states: LayerStates | None) -> None:
        self.states = states
        self.kept: tuple[Tensor, Tensor] | None = None

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Of the first call keep them, prompts before them; to a later one hand out what was kept."""
        if self.kept is None:
            self.kept = (key, value) if self.states is None else self.states.exchange(key, value)
            raise KeysKnownError
        return self.kept


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prompt_states: LayerStates | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention of transformers, over the keys and values that `prompt_states` hands out."""
    if prompt_states is not None:
        key, value = prompt_states.exchange(key, value)
        if prompt_states.position_bias is not None:
            kwargs["position_bias"] = prompt_states.position_bias
    trained = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    in_bf16 = query.dtype is torch.bfloat16 and query.device.type == "cpu"
    forward = by_products if trained and in_bf16 else sdpa_attention_forward
    return forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
