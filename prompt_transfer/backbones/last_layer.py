"""The last layer of a body, computed at the scored positions only.

The layer's keys and values are needed at all positions; its queries, output projection, FFN and the norms after it only
at the positions that are scored. A forward pre-hook calls the layer twice, without copying any model code:

1. with all positions, stopped in the registered attention function once the keys and values exist (`StopAfterKV`),
2. with the scored positions, for which the attention function uses those keys and values (`CachedKV`).

Only the queries of the first call are wasted. For an encoder in `full` mode with one scored position, outside training,
one call suffices, without keys and values (`AbsorbedKV`); this needs an attention that reads the layer's input. Outputs
and gradients equal those of the whole layer up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prompt_transfer.backbones.attention import AbsorbedKV, CachedKV, PackedAttention, StopAfterKV
from prompt_transfer.backbones.family import Family
from prompt_transfer.backbones.kernels.frozen_linear import stop_sharing_rows

# A slice for all examples, or the positions of each example [B, S].
Positions = slice | Tensor

# Per-position layer arguments -> position dimension.
_DIMENSIONS = {"hidden_states": 1, "position_embeddings": 1, "position_ids": 1, "attention_mask": 2}


def gather_positions(values: Tensor, at: Positions, dim: int) -> Tensor:
    """Select positions of dimension `dim` of `values` [B or 1, ..., T, ...]: [B, ..., S, ...]."""
    if isinstance(at, slice):
        # Contiguous: a linear layer would otherwise compute one product per example.
        return values[(slice(None),) * dim + (at,)].contiguous()
    shape = [len(at), *values.shape[1:]]
    index = at.view(len(at), *[1] * (dim - 1), at.shape[1], *[1] * (values.ndim - dim - 1))
    wanted = [*shape[:dim], at.shape[1], *shape[dim + 1 :]]
    return values.expand(shape).gather(dim, index.expand(wanted))


def has_hooks(modules: Iterable[nn.Module]) -> bool:
    """Return whether any of the modules has forward or backward hooks."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )


class LastLayer:
    """The last layer of a model, restricted to some positions inside `only(...)`.

    If a module inside the layer has hooks (to read neurons, say), all positions are computed.

    Args:
        model: a model with its LM head.
        family: its family; `family.layer` is not None.
    """

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        assert family.layer is not None
        self.layer = model.get_submodule(family.layer.format(i=model.config.num_hidden_layers - 1))
        self.causal = family.kind == "causal_lm"
        self.names = tuple(inspect.signature(self.layer.forward).parameters)
        self.at: Positions | None = None
        self.length: int | None = None
        self.reads_states = family.reads_states or ()
        self.reshaped = None if family.reshaped is None else model.get_submodule(family.reshaped)

    @contextmanager
    def only(self, at: Positions) -> Iterator[None]:
        """Restrict the layer to the positions `at`; `result` takes their states from the body's output."""
        hooked = has_hooks(module for module in self.layer.modules() if module is not self.layer)
        self.at, self.length = at, None
        handles = []
        try:
            if not hooked:
                handles.append(self.layer.register_forward_pre_hook(self._before, with_kwargs=True))
                if self.reshaped is not None:
                    handles.append(self.reshaped.register_forward_hook(self._pad))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.at = self.length = None

    def result(self, states: Tensor) -> Tensor:
        """Return the states [B, S, H] of the positions from the body's output."""
        assert self.at is not None
        if self.length is None:
            return gather_positions(states, self.at, 1)
        return states[:, : self._count(self.at)]

    @staticmethod
    def _count(at: Positions) -> int:
        return at.stop - at.start if isinstance(at, slice) else at.shape[1]

    def _before(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        at = self.at
        if at is None:
            return None
        given: dict[str, Any] = {**dict(zip(self.names, args, strict=False)), **kwargs}
        states = given["hidden_states"]
        length = states.shape[1]
        if self._count(at) >= length:
            return None
        if any(isinstance(value, Tensor) and name not in _DIMENSIONS for name, value in given.items()):
            # An unknown argument may have one value per position, so compute the whole layer.
            return None
        self.length = length
        projections: list[Any] = [layer.get_submodule(path) for path in self.reads_states]
        # Replacements such as adapters must be called, so only plain linear layers are absorbed.
        plain = bool(projections) and all(type(projection) is nn.Linear for projection in projections)
        if plain and self._count(at) == 1 and given.get("prompt_states") is None and not layer.training:
            given["prompt_states"] = AbsorbedKV(states, *projections)
            # In a one-layer model no attention has ended row sharing yet; end it, since the scored position is not in
            # the prompt.
            stop_sharing_rows()
        else:
            own = given.get("prompt_states")
            given["prompt_states"] = own.enter_last() if isinstance(own, PackedAttention) else CachedKV(own)
            with suppress(StopAfterKV):
                layer.forward(**given)
        for name, dim in _DIMENSIONS.items():
            value = given.get(name)
            if isinstance(value, tuple):
                given[name] = tuple(gather_positions(part, at, dim) for part in value)
            elif value is not None and value.shape[dim] > 1:
                given[name] = gather_positions(value, at, dim)
        if self.causal and given["attention_mask"] is None:
            given["attention_mask"] = self._causal_mask(at, length, states.device)
        return (), given

    @staticmethod
    def _causal_mask(at: Positions, length: int, device: torch.device) -> Tensor:
        """Return the causal mask of the positions, bool [B or 1, 1, S, T], which the kernel can no longer infer."""
        keys = torch.arange(length, device=device)
        queries = keys[at][None] if isinstance(at, slice) else at
        return keys <= queries[:, None, :, None]

    def _pad(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Pad the states to the length of the input, as the body expects; `result` takes the first ones."""
        if self.length is None:
            return None
        if output.shape[1] == 1:
            return output.expand(-1, self.length, -1)
        return nn.functional.pad(output, (0, 0, 0, self.length - output.shape[1]))
