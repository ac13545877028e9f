"""Replacements for the attention and feed-forward modules of Llama-like layers, for frozen bf16 weights on a CPU.

They use the modules' own weights through merged copies (`kernels/merged_linear.py`) and fall back to the modules' own
`forward` for everything else: other devices and dtypes, adapters, hooks, caches, batches that are not packed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from prompt_transfer.backbones.attention import PackedAttention, attend
from prompt_transfer.backbones.family import Family
from prompt_transfer.backbones.kernels import frozen_linear, frozen_norm
from prompt_transfer.backbones.kernels.gated_mlp import swiglu
from prompt_transfer.backbones.kernels.merged_linear import MergedLinear, merged_linear
from prompt_transfer.backbones.kernels.packed_attention import Heads, rotated_projection, split_heads
from prompt_transfer.backbones.last_layer import has_hooks


def _is_supported(x: Tensor) -> bool:
    return frozen_linear.is_supported(x) and x.is_contiguous() and not torch.compiler.is_compiling()


class FusedForward:
    """A replacement for a module's `forward`.

    Args:
        module: the module; its own `forward` is kept for unsupported inputs.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.original = module, module.forward
        self.enabled = True


class FusedAttention(FusedForward):
    """A replacement for the `forward` of a Llama-like attention on packed batches.

    Args:
        module: an attention with rotary positions, without norms of queries and keys.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        width = module.head_dim
        self.heads = Heads(module.q_proj.out_features // width, module.k_proj.out_features // width, width)
        self.inputs = MergedLinear([module.q_proj, module.k_proj, module.v_proj], self.heads.order())
        self.output = MergedLinear([module.o_proj])

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        states, module = kwargs.get("prompt_states"), self.module
        known = isinstance(states, PackedAttention) and position_embeddings is not None and past_key_values is None
        whole = known and position_embeddings[0].shape[-1] == self.heads.width  # type: ignore[index]
        if not (self.enabled and whole and _is_supported(hidden_states) and self._reads_layers()):
            return self.original(
                hidden_states=hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        assert isinstance(states, PackedAttention)
        assert position_embeddings is not None
        states = states.enter()
        rotation = states.rotation(position_embeddings, self.heads, module.scaling)
        rotated, values = rotated_projection(hidden_states, self.inputs, rotation)
        mixed = states.attend_rotated(rotated, values, self.heads)
        if mixed is None:
            # The queries include the factor of the scores.
            query, key, value = split_heads(rotated, values, self.heads)
            mixed = attend(module, query, key, value, attention_mask, prompt_states=states, scaling=1.0)[0]
            mixed = mixed.reshape(*hidden_states.shape[:2], -1)
        return merged_linear(mixed.contiguous(), self.output), None

    def _reads_layers(self) -> bool:
        module = self.module
        return self.inputs.reads(module.q_proj, module.k_proj, module.v_proj) and self.output.reads(module.o_proj)


class FusedMLP(FusedForward):
    """A replacement for the `forward` of a SwiGLU feed-forward module, for packed and other batches.

    Args:
        module: has `gate_proj`, `up_proj`, `down_proj` and the activation `act_fn`.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.inputs = MergedLinear([module.gate_proj, module.up_proj])
        self.output = MergedLinear([module.down_proj])

    def __call__(self, x: Tensor) -> Tensor:
        module = self.module
        supported = self.enabled and _is_supported(x) and self.inputs.reads(module.gate_proj, module.up_proj)
        if not supported or has_hooks([module.act_fn]):
            return self.original(x)
        neurons = swiglu(x, self.inputs)
        # Hooks of the second layer read the neurons.
        plain = self.output.reads(module.down_proj)
        return merged_linear(neurons, self.output) if plain else module.down_proj(neurons)


def substitute(model: PreTrainedModel, family: Family) -> None:
    """Patch the norms, linear layers and fused modules of a model to use the kernels for frozen weights."""
    frozen_norm.substitute(model)
    size = frozen_linear.substitute(model)
    # Two more copies of the weights in the layers: one for the forward, one for the backward pass. The latter replaces
    # that of `frozen_linear`.
    if 2 * size > frozen_linear.MAX_TRANSPOSED_BYTES or not frozen_linear.has_kernel():
        return
    for layer in range(model.config.num_hidden_layers):
        if family.rotary is not None:
            attention = model.get_submodule(family.rotary.format(i=layer))
            if are_linear(attention, "q_proj", "k_proj", "v_proj", "o_proj"):
                attention.forward = FusedAttention(attention)
        if family.swiglu is not None:
            mlp = model.get_submodule(family.swiglu.format(i=layer))
            if are_linear(mlp, "gate_proj", "up_proj", "down_proj") and type(mlp.act_fn) in (nn.SiLU, SiLUActivation):
                mlp.forward = FusedMLP(mlp)


def are_linear(module: nn.Module, *names: str) -> bool:
    """Return whether the submodules are linear layers in bf16 with loaded weights, not quantized ones."""
    layers = [getattr(module, name) for name in names]
    return all(
        type(layer) is nn.Linear and layer.weight.dtype is frozen_linear.DTYPE and not layer.weight.is_meta
        for layer in layers
    )
