"""Loading of a model without the weights of its layers, which are read later, share by share (`sharding.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import LoadStateDictConfig, _get_resolved_checkpoint_files
from transformers.utils.loading_report import LoadStateDictInfo

from prompt_transfer.utils.errors import UserError

# Attribute of a loaded model: its `LayerFiles`.
FILES = "prompt_transfer_layer_files"


class WholeLoadError(Exception):
    """A checkpoint that cannot be read share by share, with the reason."""


@dataclass
class TensorFiles:
    """Tensors in safetensors files, read in part or whole.

    Attributes:
        paths: tensor name -> file.
        bytes_read: bytes of all tensors read so far.
        largest: bytes of the largest tensor read at once.
    """

    paths: dict[str, str]
    bytes_read: int = 0
    largest: int = 0
    _open: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Sequence[str]) -> TensorFiles:
        """Return the tensors of some files."""
        paths = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                paths.update(dict.fromkeys(opened.keys(), file))
        return cls(paths)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open each file once; forked processes share no open file."""
        with ExitStack() as stack:
            for file in set(self.paths.values()):
                self._open[file] = stack.enter_context(safe_open(file, framework="pt"))
            try:
                yield
            finally:
                self._open = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        return tuple(self._open[self.paths[name]].get_slice(name).get_shape())

    def read(self, name: str, dtype: torch.dtype, start: int = 0, end: int | None = None) -> Tensor:
        """Return the rows `start` to `end` (exclusive) of a tensor as a new tensor."""
        found = self._open[self.paths[name]].get_slice(name)
        whole = end is None or not found.get_shape()
        rows: Tensor = found[:] if whole else found[start:end]
        self.bytes_read += rows.nbytes
        self.largest = max(self.largest, rows.nbytes)
        return rows.to(dtype=dtype, copy=True)


@dataclass
class LayerFiles:
    """The places of the weights that were not loaded.

    Attributes:
        tensors: the checkpoint's tensors.
        places: module, name of its parameter, and name in the files.
    """

    tensors: TensorFiles
    places: list[tuple[nn.Module, str, str]]

    def places_in(self, layer: nn.Module) -> list[tuple[nn.Module, str, str]]:
        """Return the places of the weights inside a layer."""
        inside = {id(module) for module in layer.modules()}
        return [place for place in self.places if id(place[0]) in inside]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model that are gathered one by one, encoder before decoder; empty if it has none."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def is_shardable(module: nn.Module, parameter: Tensor) -> bool:
    """Return whether a parameter inside a layer is sharded.

    Tables inside a layer (T5's relative positions) are read outside its forward pass, and FSDP takes no scalars.
    """
    return not isinstance(module, nn.Embedding) and parameter.ndim > 0


def load(
    auto_class: Any, source: str, dtype: torch.dtype, implementation: str | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model as `from_pretrained` does, but leave the weights of its layers on the meta device.

    Args:
        auto_class: transformers' class of the kind of model.
        source: folder or hub id.
        dtype: float32 or bf16.
        implementation: attention implementation; None for the default.
        options: revision, `local_files_only`, `trust_remote_code`.

    Returns:
        The model, with the attribute `FILES`, and the loading information of `from_pretrained`.

    Raises:
        WholeLoadError: the layers cannot be read share by share.
        UserError: there are no separate layers.
    """
    config = AutoConfig.from_pretrained(source, return_dict=True, chunk_size_feed_forward=0, **options)
    attention = {} if implementation is None else {"attn_implementation": implementation}
    with torch.device("meta"):
        model = auto_class.from_config(
            config, dtype=dtype, trust_remote_code=options.get("trust_remote_code", False), **attention
        )
    check_layers(model, source)
    model.generation_config = GenerationConfig()
    tensors = TensorFiles.of(_safetensors(source, options))
    names = _names(model, tensors)
    meta = model.state_dict()
    info = LoadStateDictInfo(
        missing_keys={*meta} - {*names}, unexpected_keys=set(), mismatched_keys=set(), error_msgs=[],
        conversion_errors={}, skipped_pp_keys=set(),
    )  # fmt: skip
    owners = {id(module) for layer in layers_of(model) for module in layer.modules()}
    places = []
    with tensors.opened():
        for name, key in names.items():
            if tensors.shape(key) != tuple(meta[name].shape):
                info.mismatched_keys.add((name, tensors.shape(key), tuple(meta[name].shape)))
                continue
            module, _, last = (model.get_submodule(name.rpartition(".")[0]), *name.rpartition(".")[1:])
            if id(module) in owners and last in module._parameters and is_shardable(module, meta[name]):
                module._parameters[last]._is_hf_initialized = True
                places.append((module, last, key))
            else:
                _set(module, last, tensors.read(key, meta[name].dtype))
    if not info.mismatched_keys:
        model._finalize_model_loading(model, LoadStateDictConfig(dtype=dtype), info)
    model.eval()
    setattr(model, FILES, LayerFiles(tensors, places))
    return model, info.to_dict()


def _safetensors(source: str, options: dict[str, Any]) -> list[str]:
    """Return the safetensors files of a checkpoint."""
    if Path(source).is_dir() and not any(Path(source).glob("*.safetensors")):
        raise WholeLoadError("its checkpoint has no safetensors files")
    where = {name: value for name, value in options.items() if name != "trust_remote_code"}
    try:
        files, _ = _get_resolved_checkpoint_files(source, None, None, True, None, False, download_kwargs=where)
    except OSError as error:
        raise WholeLoadError("its checkpoint has no safetensors files") from error
    return list(files or ())


def _names(model: PreTrainedModel, tensors: TensorFiles) -> dict[str, str]:
    """Return the names of the model's tensors and their names in the files, which transformers may rename."""
    meta, conversions = model.state_dict(), get_model_conversion_mapping(model)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    found = {}
    for key in tensors.paths:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, meta)
        if name not in meta and key in meta:
            name, pattern = rename_source_key(key, [], [], model.base_model_prefix, meta)
        if name in meta and pattern is not None:
            raise WholeLoadError("transformers converts its weights while it loads them")
        if name in meta:
            found[name] = key
    return found


def check_layers(model: nn.Module, name: str) -> None:
    """Raise UserError if a model has no layers that can be gathered one by one."""
    if not layers_of(model):
        raise UserError(
            f"{name} has no layers that can be gathered one by one (transformers' GradientCheckpointingLayer), so it "
            "cannot be sharded: use --trainer.strategy ddp"
        )


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter or buffer, and mark it as loaded for transformers."""
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(value, requires_grad=False)
        module._parameters[name]._is_hf_initialized = True  # type: ignore[union-attr]
    else:
        module._buffers[name] = value
        value._is_hf_initialized = True  # type: ignore[attr-defined]
