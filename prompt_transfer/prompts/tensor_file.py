"""Safe reader and deterministic writer of safetensors files with float32 tensors.

Format: 8 bytes of header length (little endian), a JSON header with type, shape and offsets of every tensor, the data.
The reference writer orders metadata at random, which would change files in git without a change of content.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prompt_transfer.utils.errors import SEE_PROMPTS, UserError, no_such_file
from prompt_transfer.utils.files import atomic_path

MAX_PROMPT_LENGTH, MAX_HIDDEN_SIZE, MAX_LAYERS = 10_000, 100_000, 1_000
# The limit of the reference implementation of safetensors.
MAX_HEADER_BYTES = 100_000_000
# Safetensors dtype -> numpy dtype; numpy has no bfloat16, which is the upper half of a float32.
_TYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2"}
_IMPORT = "import prompts of other tools with `prompt-transfer prompts import`"


class Header(NamedTuple):
    """The checked header: tensor name -> entry, the metadata, and the offset of the data in the file."""

    tensors: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    data_start: int


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write float32 CPU tensors and string metadata to `path` atomically.

    Raises:
        UserError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in tensors.items():
        size = 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            # Write tensors one by one without copies: a projector may have gigabytes.
            file.write(np.ascontiguousarray(tensor.numpy(), dtype="<f4").data)


def open_file(path: Path, kind: str = "prompt", hint: str = SEE_PROMPTS) -> BinaryIO:
    """Open `path` for reading.

    Args:
        path: the file.
        kind: kind of file, for messages.
        hint: advice if the file does not exist.

    Raises:
        UserError: the file does not exist or cannot be read.
    """
    try:
        return path.open("rb")
    except FileNotFoundError:
        if path.parent.is_dir() and path.name == "prompt.safetensors":
            raise UserError(
                f"the folder {path.parent} holds no {path.name}, so it is no run: name a file in it"
            ) from None
        raise no_such_file(path, kind, hint) from None
    except OSError as error:
        raise UserError(f"cannot read the {kind} file {path}: {error.strerror}") from error


def read_header(file: BinaryIO, path: Path) -> Header:
    """Read the header and check its sizes against the size of the file.

    Raises:
        UserError: not a safetensors file, truncated, or too long.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or not 2 <= length <= MAX_HEADER_BYTES or file.read(1) != b"{":
        raise UserError(f"{path} is not a safetensors file: its {size} bytes do not start with a header; {_IMPORT}")
    if 8 + length > size:
        raise UserError(f"{path} is truncated: a header of {length} bytes, but only {size} in all; copy it again")
    file.seek(8)
    try:
        entries = json.loads(file.read(length))
        metadata = entries.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata values must be strings")
        end = max((_span(entry)[1] for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a safetensors file: its header cannot be read; {_IMPORT}") from error
    whole = 8 + length + end
    if size < whole:
        raise UserError(f"{path} is truncated: {size} of {whole} bytes; copy it again")
    if size > whole:
        raise UserError(f"{path} is damaged: {size - whole} bytes too many; copy it again")
    return Header(entries, metadata, 8 + length)


def read_tensor(
    file: BinaryIO, header: Header, name: str, path: Path, check: Callable[[str, Sequence[int]], None] | None = None
) -> Tensor:
    """Read the float32 tensor `name`.

    Args:
        check: raises for a wrong shape; None: `check_shape`, for a matrix `[P, H]`.

    Raises:
        UserError: the tensor is not float32, has a wrong shape, is too large, or its sizes disagree.
    """
    entry = header.tensors[name]
    dtype, shape = entry.get("dtype"), entry["shape"]
    if dtype != "F32":
        raise UserError(
            f"{path}: the tensor `{name}` is {dtype!r:.20}, a prompt is float32 (F32); convert it with .float()"
        )
    (check or check_shape)(f"{path}: the tensor `{name}`", shape)
    return read_values(file, header, name, path)


def read_values(file: BinaryIO, header: Header, name: str, path: Path) -> Tensor:
    """Read the float32 tensor `name`, whose shape the caller has checked.

    Raises:
        UserError: the sizes disagree.
    """
    return torch.from_numpy(_read(file, header, name, path, "<f4").astype(np.float32))


def read_as_float32(file: BinaryIO, header: Header, name: str, path: Path) -> Tensor:
    """Read the tensor `name` of any floating-point type, whose shape the caller has checked, as float32.

    Raises:
        UserError: the type is not floating-point, or the sizes disagree.
    """
    kind = str(header.tensors[name].get("dtype"))[:20]
    if kind not in _TYPES:
        raise UserError(f"{path}: the tensor `{name}` is {kind!r}, a prompt is one of {', '.join(_TYPES)}")
    values = _read(file, header, name, path, _TYPES[kind])
    if kind == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    # Values beyond float32's range become infinite, which Prompt refuses.
    with np.errstate(over="ignore"):
        return torch.from_numpy(values.astype(np.float32))


def _read(file: BinaryIO, header: Header, name: str, path: Path, kind: str) -> np.ndarray:
    entry = header.tensors[name]
    shape, (start, end) = entry["shape"], _span(entry)
    if end - start != np.dtype(kind).itemsize * math.prod(shape):
        raise UserError(f"{path} is damaged: `{name}` is {sizes(shape)}, but has {end - start} bytes; copy it again")
    file.seek(header.data_start + start)
    values = np.frombuffer(file.read(end - start), dtype=kind)
    if values.size != math.prod(shape):
        raise UserError(f"{path} is truncated: it changed while it was read; copy it again")
    return values.reshape(shape)


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Raise UserError about the tensor `name` unless `shape` is a valid `[P, H]`."""
    if len(shape) != 2:
        raise UserError(f"{name} has {len(shape)} dimensions ({sizes(shape)}); a prompt is a matrix [P, H]")
    if min(shape) < 1:
        raise UserError(f"{name} is empty ({sizes(shape)}); a prompt has at least one prompt token")
    if shape[0] > MAX_PROMPT_LENGTH or shape[1] > MAX_HIDDEN_SIZE:
        raise UserError(
            f"{name} is {sizes(shape)}; a prompt has at most {MAX_PROMPT_LENGTH} prompt tokens of width "
            f"{MAX_HIDDEN_SIZE}"
        )


def check_keys_values_shape(name: str, shape: Sequence[int]) -> None:
    """Raise UserError about the tensor `name` unless `shape` is a valid `[L, 2, P, kv_heads, head_dim]`."""
    if len(shape) != 5 or shape[1] != 2:
        raise UserError(f"{name} is {sizes(shape)}; a deep prompt is [L, 2, P, kv_heads, head_dim]")
    if min(shape) < 1:
        raise UserError(f"{name} is empty ({sizes(shape)}); a deep prompt has at least one prompt token")
    if shape[2] > MAX_PROMPT_LENGTH or shape[0] > MAX_LAYERS or shape[3] * shape[4] > MAX_HIDDEN_SIZE:
        raise UserError(
            f"{name} is {sizes(shape)}; a deep prompt has at most {MAX_PROMPT_LENGTH} prompt tokens, {MAX_LAYERS} "
            f"layers, and keys of width {MAX_HIDDEN_SIZE}"
        )


def check_vectors_shape(name: str, shape: Sequence[int]) -> None:
    """Raise UserError about the tensor `name` unless `shape` is a valid `[P, W]`, one vector per prompt token."""
    if len(shape) != 2 or min(shape) < 1 or shape[0] > MAX_PROMPT_LENGTH or shape[1] > 2 * MAX_LAYERS * MAX_HIDDEN_SIZE:
        raise UserError(f"{name} is {sizes(shape)}; a deep prompt is [P, layers * 2 * heads * width]")


def sizes(shape: Sequence[int]) -> str:
    """Format a shape for a message: `100 x 768`."""
    return " x ".join(str(size) for size in shape) or "a single number"


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    start, end = entry["data_offsets"]
    numbers = (start, end, *entry["shape"])
    if not all(type(number) is int and number >= 0 for number in numbers) or end < start:
        raise ValueError("invalid sizes")
    return start, end
