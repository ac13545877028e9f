"""The last layer of a body at a few positions alone: nobody reads its other states.

Its keys and values are needed at all positions, its queries, its output projection, its FFN and the norms behind it
only where something is scored. No model code is copied for that. A hook before the layer calls it twice: with all
positions, left at the registered attention function as soon as keys and values are there, and with the scored
positions, for which the attention function takes those keys and values. What is wasted are the first call's queries.
Where an encoder in `full` mode is asked at one position, out of training, and its attention reads what enters the
layer, one call is enough, and keys and values are not made at all (`attention.AbsorbedKV`). The result is the same
function to rounding, so is its gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prompt_transfer.backbones.attention import AbsorbedKV, CachedKV, StopAfterKV
from prompt_transfer.backbones.family import Family
from prompt_transfer.backbones.kernels.frozen_linear import stop_sharing_rows

# The same positions for all examples, or those of each [B, S].
Positions = slice | Tensor

# Arguments of a layer that have a value a position, and the dimension that counts positions.
_DIMENSIONS = {"hidden_states": 1, "position_embeddings": 1, "position_ids": 1, "attention_mask": 2}


def gather_positions(values: Tensor, at: Positions, dim: int) -> Tensor:
    """Of `values` [B or 1, ..., T, ...] those at some positions of dimension `dim`: [B, ..., S, ...]."""
    if isinstance(at, slice):
        # In one piece: a linear layer would take a product an example for states that are not.
        return values[(slice(None),) * dim + (at,)].contiguous()
    shape = [len(at), *values.shape[1:]]
    index = at.view(len(at), *[1] * (dim - 1), at.shape[1], *[1] * (values.ndim - dim - 1))
    wanted = [*shape[:dim], at.shape[1], *shape[dim + 1 :]]
    return values.expand(shape).gather(dim, index.expand(wanted))


def has_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody sees or changes what passes through one of them."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )


class LastLayer:
    """The last layer of a model, which inside `only(...)` computes the states of some positions.

    Whoever hooks a module inside the layer (to read neurons, say) sees all positions: then all are computed.

    Args:
        model: with its LM head.
        family: its row; `family.layer` is not None.
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
        """Let the body give states of the positions `at`; take them with `result`."""
        watched = self._is_watched()
        self.at, self.length = at, None
        handles = []
        try:
            if not watched:
                handles.append(self.layer.register_forward_pre_hook(self._before, with_kwargs=True))
                if self.reshaped is not None:
                    handles.append(self.reshaped.register_forward_hook(self._widen))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.at = self.length = None

    def result(self, states: Tensor) -> Tensor:
        """The states [B, S, H] among those that the body gave."""
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
            # A value for each position that this does not know: the whole layer is always right.
            return None
        self.length = length
        makers: list[Any] = [layer.get_submodule(path) for path in self.reads_states]
        # Whoever put something else in their place (an adapter, say) wants it to be called.
        plain = bool(makers) and all(type(maker) is nn.Linear for maker in makers)
        if plain and self._count(at) == 1 and given.get("prompt_states") is None and not layer.training:
            given["prompt_states"] = AbsorbedKV(states, *makers)
            # Of a model with one layer: the position that is asked for is no row of the prompt.
            stop_sharing_rows()
        else:
            given["prompt_states"] = CachedKV(given.get("prompt_states"))
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
        """Who sees whom where no mask said so because the kernel knows, bool [B or 1, 1, S, T]."""
        keys = torch.arange(length, device=device)
        places = keys[at][None] if isinstance(at, slice) else at
        return keys <= places[:, None, :, None]

    def _is_watched(self) -> bool:
        return has_hooks(module for module in self.layer.modules() if module is not self.layer)

    def _widen(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """As many states as the input had, of which `result` takes the first."""
        if self.length is None:
            return None
        if output.shape[1] == 1:
            return output.expand(-1, self.length, -1)
        return nn.functional.pad(output, (0, 0, 0, self.length - output.shape[1]))
