"""Gradient checkpointing and compilation of layers.

Both require layers without side effects. `PromptStates` counts calls, so each layer gets its own slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from prompt_transfer.backbones import sharding
from prompt_transfer.backbones.attention import PackedAttention, PromptStates
from prompt_transfer.backbones.fused_layers import FusedForward
from prompt_transfer.backbones.kernels.frozen_linear import LinearForward
from prompt_transfer.backbones.kernels.frozen_norm import NormForward
from prompt_transfer.backbones.stack import Stack
from prompt_transfer.utils.errors import UserError


class LayerCall:
    """A replacement for a layer's `forward`.

    Args:
        forward: the layer's own `forward`.
        run: wrapper, called as `run(forward, *args, **kwargs)`.
    """

    def __init__(self, forward: Callable[..., Any], run: Callable[..., Any]) -> None:
        self.forward, self.run = forward, run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        states = kwargs.get("prompt_states")
        if isinstance(states, PackedAttention):
            return self.run(self.forward, *args, **{**kwargs, "prompt_states": states.enter()})
        if not isinstance(states, PromptStates):
            return self.run(self.forward, *args, **kwargs)
        own = states.enter()
        output = self.run(self.forward, *args, **{**kwargs, "prompt_states": own})
        states.leave(own)
        return output


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _plain(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return forward(*args, **kwargs)


def layers_of(stack: Stack, name: str) -> list[nn.Module]:
    """Return the layers of a body, except a last layer that is computed at the scored positions only.

    Raises:
        UserError: the model has no separate layers (ALBERT reuses one).
    """
    found = [module for module in stack.body.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise UserError(
            f"the layers of {name} ({stack.family.name}) cannot be compiled or recomputed: "
            "remove --model.compile and --model.gradient_checkpointing"
        )
    return [layer for layer in found if stack.last is None or layer is not stack.last.layer]


def recompute(stack: Stack, name: str) -> None:
    """Enable gradient checkpointing: less memory, about a third more time."""
    for layer in layers_of(stack, name):
        layer.forward = LayerCall(layer.forward, _recomputed)


def compile_layers(stack: Stack, name: str) -> None:
    """Compile the layers with `torch.compile` and dynamic shapes: one graph for all layers and lengths.

    Raises:
        UserError: the layers are to be sharded, or the model has none.
    """
    sharding.refuse_compiled(sharding.is_deferred())
    for layer in layers_of(stack, name):
        for module in layer.modules():
            # They are unused in compiled code, but one object per module: each layer would get its own graphs.
            if isinstance(module.__dict__.get("forward"), NormForward | LinearForward | FusedForward):
                del module.forward
        layer.forward = LayerCall(torch.compile(layer.forward, dynamic=True), _plain)
    stack.compiled = True
