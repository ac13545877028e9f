"""Backbones whose layers are sharded over processes: PyTorch's FSDP2 (`fully_shard`) on frozen weights.

Each process holds a share of the rows of every weight in the layers. A layer's weights are gathered for its forward and
again for its backward pass, and dropped after each. Embeddings, norms after the last layer and the LM head are
replicated: prompts and label words read their rows directly.

FSDP gathers a layer for the backward pass when the gradient of its output arrives. The keys and values of a recorded
prompt are outputs of a layer too, but reach the texts through `PromptStates`; `_gather_for_prompt` gathers for those.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from prompt_transfer.backbones.attention import CachedKV, PromptStates
from prompt_transfer.backbones.fused_layers import FusedForward
from prompt_transfer.backbones.kernels.frozen_linear import LinearForward
from prompt_transfer.backbones.layer_files import FILES, LayerFiles, TensorFiles, check_layers, is_shardable, layers_of
from prompt_transfer.backbones.quantization import quantize_part
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.backbones.frozen import FrozenBackbone

_deferred: ContextVar[bool] = ContextVar("deferred", default=False)


@contextmanager
def deferred() -> Iterator[None]:
    """Load backbones without their layers' weights, until `shard` reads this process's share."""
    token = _deferred.set(True)
    try:
        yield
    finally:
        _deferred.reset(token)


def is_deferred() -> bool:
    """Return whether backbones are loaded without their layers' weights."""
    return _deferred.get()


def warn_whole(name: str, reason: str) -> None:
    """Warn once per machine that every process holds the whole model while loading."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        warnings.warn(
            f"every process loads the whole of {name} before it is sharded, since {reason}: this needs the memory of "
            "the whole model for each process of a machine",
            stacklevel=3,
        )


def local_bytes(model: nn.Module) -> tuple[int, int]:
    """Return the bytes of this process's share of the sharded weights, and those of the replicated weights."""
    sharded = replicated = 0
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            sharded += parameter.to_local().nbytes
        else:
            replicated += parameter.nbytes
    return sharded, replicated


def refuse_compiled(compiled: bool) -> None:
    """Raise UserError if layers to be sharded are compiled."""
    if compiled:
        raise UserError("sharded layers cannot be compiled: remove --model.compile, or use --trainer.strategy ddp")


class Shardable(nn.Module):
    """A module with a `model` that `shard` can shard.

    Attributes:
        is_sharded: whether its layers are sharded.
    """

    model: Any
    is_sharded = False

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or cast the weights, except of a sharded model, which stays on its device, or one not loaded yet."""
        if self.is_sharded or hasattr(self.model, FILES):
            return self
        return super()._apply(fn, recurse)


def shard(backbone: FrozenBackbone, device: torch.device) -> None:
    """Shard a backbone's layers over the processes of `torch.distributed`; no change if they are sharded.

    Each process reads its share of the weights that were not loaded (`deferred`). Quantized layers are read whole,
    quantized and sharded one after the other.

    Args:
        backbone: the backbone.
        device: of this process.

    Raises:
        UserError: the model has no separate layers, or they are compiled.
    """
    if backbone.is_sharded:
        return
    model: Any = backbone.model
    stack = backbone._answers.stack
    check_layers(model, backbone.id)
    refuse_compiled(stack.compiled)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, LinearForward):
            # It would keep a second copy of the gathered weights.
            forward.transposed.enabled = False
        elif isinstance(forward, FusedForward):
            forward.enabled = False
    files: LayerFiles | None = getattr(model, FILES, None)
    with nullcontext() if files is None else files.tensors.opened():
        for layer in layers_of(model):
            places = [] if files is None else files.places_in(layer)
            if places and backbone.quantization is not None:
                assert files is not None
                for module, name, key in places:
                    weight = files.tensors.read(key, module._parameters[name].dtype)  # type: ignore[union-attr]
                    module._parameters[name] = nn.Parameter(weight, requires_grad=False)
                quantize_part(layer, backbone.quantization)
                places = []
            _shard_layer(layer, mesh)
            for module, name, key in places:
                assert files is not None
                _read_share(files.tensors, module, name, key, device)
            layer.register_forward_hook(_gather_for_prompt, with_kwargs=True)
    if files is not None:
        delattr(model, FILES)
    # No output of a layer is changed in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    for root in [stack.body, *([model.get_decoder()] if backbone.family.kind == "seq2seq_lm" else [])]:
        # A root has no weights of its own; it lets FSDP gather the next layer early.
        kept = {parameter for parameter in root.parameters() if not isinstance(parameter, DTensor)}
        fully_shard(root, mesh=mesh, ignored_params=kept)
    # `generate` then runs the same number of steps in all processes.
    model._is_fsdp_managed_module = True
    model.to(device)
    backbone.is_sharded = True


def _shard_layer(layer: nn.Module, mesh: DeviceMesh) -> None:
    kept = set()
    for module in layer.modules():
        for parameter in module.parameters(recurse=False):
            if not is_shardable(module, parameter):
                kept.add(parameter)
            elif not parameter.is_contiguous():
                # A quantized weight of GPT-2's `Conv1D` is a transposed matrix.
                parameter.data = parameter.data.contiguous()
    fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=kept)


def _read_share(tensors: TensorFiles, module: nn.Module, name: str, key: str, device: torch.device) -> None:
    """Replace a sharded parameter on the meta device by this process's rows of the tensor `key`."""
    empty: Any = module._parameters[name]
    part = -(-empty.shape[0] // empty.device_mesh.size())
    start = min(part * empty.device_mesh.get_local_rank(), empty.shape[0])
    rows = tensors.read(key, empty.dtype, start, min(start + part, empty.shape[0])).to(device)
    whole = DTensor.from_local(
        rows, empty.device_mesh, empty.placements, run_check=False, shape=empty.shape, stride=empty.stride()
    )
    module._parameters[name] = nn.Parameter(whole, requires_grad=False)


def _gather_for_prompt(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Gather the layer again when the gradient of keys and values arrives that it recorded for a prompt."""
    states = kwargs.get("prompt_states")
    if isinstance(states, CachedKV):
        states = states.states
    if not isinstance(states, PromptStates):
        return
    assert isinstance(layer, FSDPModule)
    for tensor in states.take_new():
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: layer.unshard())
