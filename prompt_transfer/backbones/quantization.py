"""Linear layers with 8-bit or 4-bit weights, for frozen backbones larger than memory allows in 16 bits.

The weights are expanded for one product at a time, in the forward and again in the backward pass, and never kept:
autograd of torchao's own linear layers would keep every expanded weight until the backward pass, which is the memory of
the original model. Only the input of a layer gets a gradient.

| method | source | bits per weight | weights share a scale |
|---|---|---|---|
| `int8` | torchao | 8 | in a row, symmetric |
| `int4` | torchao | 4 + 32/32 | in groups of 32 of a row, with an offset |
| `nf4` | bitsandbytes (Dettmers et al. 2023, QLoRA) | 4 + 32/64 | in blocks of 64 |

Embeddings, norms, biases and the LM head keep the dtype of the backbone.
"""

from __future__ import annotations

import importlib
import logging
import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from prompt_transfer.backbones.family import Family
from prompt_transfer.utils.allocation import returning_memory
from prompt_transfer.utils.errors import UserError, install_command

INT4_GROUP, NF4_BLOCK = 32, 64
# Weights that a CPU expands at once. Their float32 copies fit in a core's cache; those of a whole matrix add 100 MB and
# more to the peak memory of a model with a few billion weights.
EXPANDED_AT_ONCE = 1 << 18


def _library(name: str, method: str) -> Any:
    """Import an optional library without its messages about GPU extensions.

    Raises:
        UserError: it is not installed, or cannot be imported.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UserError(
            f"--model.quantization {method} needs {package} ({error}): {install_command('quantization')}"
        ) from error
    finally:
        logging.disable(disabled)


class _Scratch(threading.local):
    """Memory for the expanded weight of one product at a time, per thread and dtype.

    A new block for every product, of another size than those of the states, would fragment the heap.
    """

    def __init__(self) -> None:
        self.blocks: dict[torch.dtype, Tensor] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor on the CPU that is valid until the next call in this thread."""
        size = math.prod(shape)
        if dtype not in self.blocks or self.blocks[dtype].numel() < size:
            self.blocks.pop(dtype, None)
            # A tensor made in inference mode could not be written to outside it.
            with torch.inference_mode(False):
                self.blocks[dtype] = torch.empty(size, dtype=dtype)
        return self.blocks[dtype][:size].view(shape)


_scratch = _Scratch()


class QuantizedWeight(nn.Module):
    """A weight matrix [out, in] in few bits; subclasses define the format."""

    method: str

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            # Parameters, because DDP broadcasts buffers in every step.
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    @classmethod
    def check(cls, inputs: int) -> str | None:
        """Return why a layer with `inputs` columns cannot be quantized; None if it can."""
        return None

    @classmethod
    def from_weight(cls, weight: Tensor) -> QuantizedWeight:
        """Quantize a weight matrix [out, in]."""
        raise NotImplementedError

    def dequantize(self, dtype: torch.dtype, reuse: bool = False) -> Tensor:
        """Return the matrix [out, in] as a new tensor, or with `reuse` as one that is valid until the next call."""
        raise NotImplementedError

    def _expand(
        self, shape: tuple[int, int], dtype: torch.dtype, reuse: bool, expanded: Callable[[slice], Tensor]
    ) -> Tensor:
        """Return the matrix of a shape from a function that returns some of its rows."""
        (rows, columns), device = shape, next(self.parameters()).device
        # A GPU has memory for the copies, and takes one kernel per operation.
        at_once = max(1, EXPANDED_AT_ONCE // columns) if device.type == "cpu" else rows
        reuse = reuse and device.type == "cpu"
        output = _scratch.empty(shape, dtype) if reuse else torch.empty(shape, dtype=dtype, device=device)
        for start in range(0, rows, at_once):
            part = slice(start, start + at_once)
            output[part] = expanded(part)
        return output


class Int8Weight(QuantizedWeight):
    """torchao's symmetric int8 with a scale per row."""

    method = "int8"
    values: Tensor
    scale: Tensor

    @classmethod
    def from_weight(cls, weight: Tensor) -> Int8Weight:
        quantization = _library("torchao.quantization", cls.method)
        found = quantization.Int8Tensor.from_hp(weight.float(), granularity=quantization.PerRow())
        return cls(values=found.qdata, scale=found.scale.float())

    def dequantize(self, dtype: torch.dtype, reuse: bool = False) -> Tensor:
        rows, columns = self.values.shape

        def expanded(part: slice) -> Tensor:
            return self.values[part].float().mul_(self.scale[part])

        return self._expand((rows, columns), dtype, reuse, expanded)


class Int4Weight(QuantizedWeight):
    """torchao's 4-bit integers in groups of a row, with a scale and an offset that need not be a multiple of the scale.

    This is the format of GGUF's Q4_1, so that weights from such a file lose next to nothing. Two integers are packed in
    a byte: column 2i in the low bits, 2i + 1 in the high bits.
    """

    method = "int4"
    values: Tensor
    scale: Tensor
    offset: Tensor

    @classmethod
    def check(cls, inputs: int) -> str | None:
        return f"its {inputs} inputs are not divisible by {INT4_GROUP}" if inputs % INT4_GROUP else None

    @classmethod
    def from_weight(cls, weight: Tensor) -> Int4Weight:
        primitives = _library("torchao.quantization.quant_primitives", cls.method)
        weight, block, levels = weight.float(), (1, INT4_GROUP), (torch.uint8, 0, 15)
        scale, offset = primitives._choose_qparams_affine_tinygemm(
            weight, primitives.MappingType.ASYMMETRIC, block, *levels,
            eps=torch.finfo(torch.float16).tiny, scale_dtype=torch.float16, zero_point_dtype=torch.float16,
        )  # fmt: skip
        values = primitives._quantize_affine_tinygemm(weight, block, scale.float(), offset.float(), *levels)
        groups = (len(weight), -1, 1)
        return cls(values=values[:, ::2] | values[:, 1::2] << 4, scale=scale.view(groups), offset=offset.view(groups))

    def dequantize(self, dtype: torch.dtype, reuse: bool = False) -> Tensor:
        rows, columns = self.values.shape

        def expanded(part: slice) -> Tensor:
            packed = self.values[part]
            values = torch.stack([packed & 15, packed >> 4], dim=-1).view(len(packed), -1, INT4_GROUP)
            return torch.addcmul(self.offset[part].float(), values - 8.0, self.scale[part].float()).flatten(1)

        return self._expand((rows, 2 * columns), dtype, reuse, expanded)


class NF4Weight(QuantizedWeight):
    """4-bit NormalFloat of bitsandbytes, without double quantization."""

    method = "nf4"
    values: Tensor
    absmax: Tensor
    code: Tensor

    def __init__(self, shape: torch.Size, **tensors: Tensor) -> None:
        super().__init__(**tensors)
        self.shape = shape

    @classmethod
    def from_weight(cls, weight: Tensor) -> NF4Weight:
        library = _library("bitsandbytes.functional", cls.method)
        values, state = library.quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
        return cls(weight.shape, values=values, absmax=state.absmax.float(), code=state.code)

    def dequantize(self, dtype: torch.dtype, reuse: bool = False) -> Tensor:
        library = _library("bitsandbytes.functional", self.method)
        state = library.QuantState(
            self.absmax, shape=self.shape, code=self.code, blocksize=NF4_BLOCK, quant_type="nf4", dtype=dtype
        )
        output: Tensor = library.dequantize_4bit(self.values, state)
        return output


METHODS: dict[str, type[QuantizedWeight]] = {method.method: method for method in (Int8Weight, Int4Weight, NF4Weight)}


class _QuantizedProduct(torch.autograd.Function):
    """`x W' + b` with a gradient for x only; keeps the quantized weight, not the expanded one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return functional.linear(x, weight.dequantize(x.dtype, reuse=True), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.weight.dequantize(gradient.dtype, reuse=True), None, None


class QuantizedLinear(nn.Module):
    """A linear layer with a quantized weight.

    Args:
        weight: the weight [out, in].
        bias: [out] or None.
        in_features, out_features: sizes of the layer.
    """

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, in_features: int, out_features: int) -> None:
        super().__init__()
        self.quantized, self.in_features, self.out_features = weight, in_features, out_features
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """A tensor without values, of the weight's shape: some models (T5) ask for its dtype, here int8."""
        return torch.empty(self.out_features, self.in_features, dtype=torch.int8, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = _QuantizedProduct.apply(x, self.quantized, self.bias)
        return output


@torch.no_grad()
def quantize(name: str, model: nn.Module, family: Family, method: str) -> None:
    """Replace the linear layers of a model, except those of its LM head, one after the other.

    Layers without weights, which are read later (`layer_files.py`), are only checked: see `quantize_part`.

    Args:
        name: the backbone, for messages.
        model: a model with its LM head.
        family: its family.
        method: a key of `METHODS`.

    Raises:
        UserError: a layer cannot be quantized, the model has no linear layers, or the library is missing.
    """
    kind = METHODS[method]
    output = model.get_output_embeddings()  # type: ignore[operator]
    head = tuple(f"{path}." for path in family.head)
    layers = {
        path: layer for path, layer in _linear(model).items() if layer is not output and not f"{path}.".startswith(head)
    }
    if not layers:
        raise UserError(f"{name} has no linear layers to quantize: remove --model.quantization")
    for path, layer in layers.items():
        problem = kind.check(_matrix(layer).shape[1])
        if problem is not None:
            raise UserError(f"--model.quantization {method} does not fit the layer {path} of {name}: {problem}")
    # Loaded tensors are views of their files; a file is unmapped once none of its tensors is left.
    replaced = {id(layer.weight) for layer in layers.values()}
    for parameter in model.parameters():
        if id(parameter) not in replaced and not parameter.is_meta:
            parameter.data = parameter.data.clone()
    _replace(model, {path: layer for path, layer in layers.items() if not layer.weight.is_meta}, kind)


@torch.no_grad()
def quantize_part(part: nn.Module, method: str) -> None:
    """Replace all linear layers of a part of a model that `quantize` has checked."""
    _replace(part, _linear(part), METHODS[method])


def _linear(model: nn.Module) -> dict[str, Any]:
    return {path: layer for path, layer in model.named_modules() if type(layer) in (nn.Linear, Conv1D)}


def _replace(model: nn.Module, layers: dict[str, Any], kind: type[QuantizedWeight]) -> None:
    for path, layer in layers.items():
        weight = _matrix(layer)
        with returning_memory():
            quantized = QuantizedLinear(kind.from_weight(weight), layer.bias, weight.shape[1], weight.shape[0])
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, quantized)
        # The only reference to the original weight, which would otherwise stay until the loop ends.
        layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        del weight


def _matrix(layer: nn.Module) -> Tensor:
    """Return the weight [out, in] of a linear layer or of GPT-2's `Conv1D`."""
    weight: Any = layer.weight
    return weight.t() if isinstance(layer, Conv1D) else weight
