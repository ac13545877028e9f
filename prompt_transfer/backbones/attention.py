"""One attention function for all backbones: SDPA that can record a prompt's keys and values and put them first.

That is the attention mode `shared`: the prompt sees only itself, so its keys and values are computed once and serve a
whole batch. Registered with transformers under `NAME`, with the mask function of its SDPA: without one a model would
attend to pads silently. In training on a CPU two others do the same faster: `matmul_attention.py` in bf16, and
`shared_prefix_attention.py` where all texts of a batch stand behind one prompt.
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
from prompt_transfer.backbones.kernels.shared_prefix_attention import is_worthwhile, shared_prefix_attention

NAME = "prompt_transfer"


class StopAfterKV(Exception):  # noqa: N818 - no error, as StopIteration
    """Leaves a layer at its attention function, when nothing but its keys and values is wanted (`CachedKV`)."""


class LayerStates(Protocol):
    """What an attention layer gets beside its own keys and values."""

    position_bias: Tensor | None

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that the layer is to attend to, in place of its own."""

    def shared_prompt(self, text_length: int) -> tuple[Tensor, Tensor] | None:
        """In place of `exchange`: keys and values [1, heads, P, D] of a prompt in training that all texts stand behind.

        None where there is no such prompt, or where it does not pay to keep them apart: `exchange` is called then.
        """


def select_prompts(states: Tensor, prompt_ids: Tensor | None, examples: int) -> Tensor:
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

    def shared_prompt(self, text_length: int) -> tuple[Tensor, Tensor] | None:
        """Of the next layer that reads."""
        if not self.reading or not _is_apart(self.layers[self._next][0], text_length):
            return None
        return self.enter().recorded

    def enter(self) -> LayerPromptKV:
        """What the next layer gets: for one call of it, which may be computed anew later."""
        recorded = None
        if self.reading:
            recorded = self.layers[self._next]
            self._next += 1
        return LayerPromptKV(recorded, self.prompt_ids, self.position_bias)

    def leave(self, layer: LayerPromptKV) -> None:
        """Keep what the layer recorded."""
        if layer.kept is not None:
            self.layers.append(layer.kept)


class LayerPromptKV:
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
        first, second = (select_prompts(states, self.prompt_ids, key.shape[0]) for states in self.recorded)
        return torch.cat([first, key], dim=2), torch.cat([second, value], dim=2)

    def shared_prompt(self, text_length: int) -> tuple[Tensor, Tensor] | None:
        """As `PromptStates.shared_prompt`."""
        if self.recorded is None or not _is_apart(self.recorded[0], text_length):
            return None
        return self.recorded


def _is_apart(keys: Tensor, text_length: int) -> bool:
    return keys.shape[0] == 1 and keys.requires_grad and is_worthwhile(keys.shape[2], text_length)


class FixedPositionBias:
    """A position bias [1 or B, heads, T, T] in place of a layer's own, and nothing else."""

    def __init__(self, position_bias: Tensor) -> None:
        self.position_bias: Tensor | None = position_bias

    def exchange(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As they are."""
        return key, value

    def shared_prompt(self, text_length: int) -> None:
        """None: the prompt is a part of the text."""


class CachedKV:
    """Keys and values of one layer at all positions, for a second call of it at a few (see `last_layer.py`).

    The first call leaves the layer with `StopAfterKV`; all later ones get what it kept.

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
            raise StopAfterKV
        return self.kept

    def shared_prompt(self, text_length: int) -> None:
        """None: the few positions of a second call have little to gain."""


@dataclass(frozen=True)
class AbsorbedKV:
    """In place of keys and values the states that they are made of, for one query an example.

    Attributes:
        states: [B, K, H], what the attention layer reads.
        key, value: the linear layers that would make keys and values of them.
    """

    states: Tensor
    key: nn.Linear
    value: nn.Linear

    def attend(self, module: nn.Module, query: Tensor, attention_mask: Tensor | None, scaling: float | None) -> Tensor:
        """What the queries [B, A, 1, D] read: [B, 1, A, D]."""
        made = (self.key.weight, self.value.weight)
        values = attend_absorbed(module, query, self.states, *made, attention_mask, scaling)
        return values if self.value.bias is None else values + self.value.bias.view(values.shape[2:])


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prompt_states: LayerStates | AbsorbedKV | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention of transformers, over the keys and values that `prompt_states` hands out."""
    stop_sharing_rows()
    if isinstance(prompt_states, AbsorbedKV):
        return prompt_states.attend(module, query, attention_mask, kwargs.get("scaling")), None
    trained = torch.is_grad_enabled() and query.device.type == "cpu"
    prompt = None
    if prompt_states is not None:
        if prompt_states.position_bias is not None:
            kwargs["position_bias"] = prompt_states.position_bias
        if trained and not kwargs.get("dropout"):
            prompt = prompt_states.shared_prompt(query.shape[2])
        if prompt is not None:
            options = {name: kwargs.get(name) for name in ("scaling", "position_bias")}
            return shared_prefix_attention(module, query, key, value, prompt, attention_mask, **options)
        key, value = prompt_states.exchange(key, value)
    trained = trained and (query.requires_grad or key.requires_grad or value.requires_grad)
    forward = matmul_attention if trained and query.dtype is torch.bfloat16 else sdpa_attention_forward
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
    """Attention of one query an example without keys and values: the products change places.

    `q (E Wk)' = (q Wk') E'` and `w (E Wv) = (w E) Wv`, where E are the states and w the weights: Wk and Wv meet one row
    an example and head in place of one a state. The bias of the keys adds the same to all scores of a query, which the
    softmax does not see.

    Args:
        module: the attention layer.
        query: [B, A, 1, D].
        states: [B, K, H].
        to_keys, to_values: weights [A D, H] of the layers that make keys and values; the caller adds a bias of values.
        attention_mask: [B or 1, 1, 1, K], or None.
        scaling: of the scores; None: 1 / sqrt(D).

    Returns:
        [B, 1, A, D]
    """
    heads, width = query.shape[1], query.shape[3]
    of_keys, of_values = (weight.view(heads, width, -1) for weight in (to_keys, to_values))
    asked = (query.squeeze(2).transpose(0, 1) @ of_keys).transpose(0, 1)
    scale = softmax_scale(query, scaling)
    # Under autocast the states of a norm are float32 beside queries in bf16.
    all_read = states.unsqueeze(1).to(asked.dtype)
    # The heads stand where queries stand: all of them read the same states.
    read, _ = attend(module, asked.unsqueeze(1), all_read, all_read, attention_mask, scaling=scale, is_causal=False)
    values = read.squeeze(2).transpose(0, 1) @ of_values.transpose(1, 2)
    return values.transpose(0, 1).unsqueeze(1)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
