"""Backbones from GGUF files, dequantized once and cached as ordinary model folders."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import re
import shutil
import sys
import warnings
from contextlib import nullcontext, redirect_stderr, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from prompt_transfer.backbones import generic
from prompt_transfer.backbones.families import FAMILIES
from prompt_transfer.backbones.family import AUTO_CLASSES
from prompt_transfer.utils.errors import UserError, install_command
from prompt_transfer.utils.files import (
    atomic_folder,
    cache_folder,
    check_writable_dir,
    exclusive_lock,
    write_text_atomic,
)
from prompt_transfer.utils.network import hub_reachable

# Version of the converted folders; increase it to convert all files again.
FORMAT_VERSION = 1
SUFFIX = ".gguf"
# Key in a converted folder's config.json that names the GGUF file.
SOURCE = "gguf_source"
# Tensor types without quantization.
EXACT = ("F64", "F32", "F16", "BF16")
_ON_HUB = re.compile(r"([\w.-]+/[\w.-]+):([^:]+\.gguf)", re.IGNORECASE)
_ELSEWHERE = "free space, or set PROMPT_TRANSFER_CACHE to another folder"
# Scales of the rotary frequencies (Llama 3.2), which transformers does not read.
_ROTARY_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def is_gguf(name: str) -> bool:
    """Return whether `name` denotes a GGUF file: a path, or `org/repo:file.gguf`."""
    return name.lower().endswith(SUFFIX)


def on_hub(name: str) -> tuple[str, str] | None:
    """Split `org/repo:file.gguf` into repository and file; None for a path."""
    match = _ON_HUB.fullmatch(name)
    return (match[1], match[2]) if match and not Path(name).exists() else None


def only_file(folder: Path) -> Path | None:
    """Return the GGUF file of a folder; None if there is none. Folders and dangling links do not count.

    Raises:
        UserError: the folder has several.
    """
    files = sorted(
        path for path in folder.iterdir() if is_gguf(path.name) and not path.name.startswith(".") and path.is_file()
    )
    if len(files) > 1:
        names = ", ".join(path.name for path in files[:5]) + (" ..." if len(files) > 5 else "")
        raise UserError(f"the folder {folder} contains several GGUF files ({names}): give the path of one of them")
    return files[0] if files else None


def download(repo: str, file: str, revision: str | None) -> tuple[Path, str | None]:
    """Download a file of a hub repository, or find it in the hub's cache; return its path and commit.

    Raises:
        UserError: no such repository or file, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(repo, file, revision=revision, local_files_only=not hub_reachable())
    except Exception as error:  # from huggingface_hub, httpx or the disk; all mean that the file is not available
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if not hub_reachable():
            reason = "the hub cannot be reached, and its cache on this machine does not have the file"
        raise UserError(
            f"cannot download {file} from the hub repository {repo}: {reason} (give the path of a downloaded file, or "
            "see `prompt-transfer backbones list`)"
        ) from error
    parts = Path(path).parts
    commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
    return Path(path), commit


def model_folder(path: Path, name: str) -> Path:
    """Return the folder of the dequantized model of a GGUF file, which is converted at first use.

    The cache key is the file's SHA-256. The weights are float32: a dequantized weight is a scale times an integer,
    which float16 and bfloat16 cannot represent exactly.

    Args:
        path: path of the file.
        name: name of the backbone, for messages.

    Raises:
        UserError: not a readable and complete GGUF file, unknown architecture or quantization, missing tensors, missing
            package `gguf`, or cache not writable.
    """
    root = cache_folder() / "gguf"
    try:
        digest = _digest(path, root / "digests")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or _first_line(error)}; give a readable file") from error
    folder = root / f"v{FORMAT_VERSION}" / digest
    if (folder / "config.json").is_file():
        return folder
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise UserError(f"reading {path} needs the package {package}: {install_command('gguf')}")
    try:
        check_writable_dir(folder.parent)
    except UserError as error:
        raise UserError(f"cannot write to the cache {folder.parent}: {_ELSEWHERE}") from error
    with exclusive_lock(folder.parent, f".{digest}.lock", wait=True):
        if not (folder / "config.json").is_file():  # another process may have converted it meanwhile
            # The lock is held, so these were left by a killed process.
            for leftover in folder.parent.glob(f".{digest}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            _convert(path, name, digest, folder)
    return folder


def _digest(path: Path, known: Path) -> str:
    """Return the SHA-256 of a file, cached by path, size and modification time."""
    stat = path.stat()
    place = path.resolve()
    facts = {"path": str(place), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    note = known / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.json"
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        digest = found.pop("sha256")
        if found == facts and re.fullmatch("[0-9a-f]{64}", digest):
            return digest
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no cache entry, or a damaged one
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(UserError):  # a read-only cache, for example a shared one: the file is hashed again next time
        write_text_atomic(note, json.dumps(facts | {"sha256": digest}))
    return digest


def read_facts(path: Path) -> dict[str, Any]:
    """Read a GGUF file's metadata: architecture, quantization, parameters, tensors (names), license.

    Raises:
        UserError: not a complete GGUF file, or tensors of an unknown type.
    """
    import gguf

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path} is not a GGUF file (it does not begin with GGUF): give the path of a model")
    try:
        reader = gguf.GGUFReader(path)
        # The reader does not decode the values. All are decoded here, since transformers reports a damaged one as
        # invalid JSON.
        facts = {key: field.contents() for key, field in reader.fields.items()}
        file_type = facts.get("general.file_type")
        file_type = None if file_type is None else int(file_type)
        parts = int(facts.get("split.count") or 1)
    except Exception as error:  # ValueError, IndexError, struct errors, ... for a truncated or damaged file
        known = {entry.value for entry in gguf.GGMLQuantizationType}
        number = re.search(r"(\d+)\)? is not a valid GGMLQuantizationType", str(error))
        if number and int(number[1]) not in known:
            raise UserError(
                f"{path} has tensors of the quantization type {number[1]}, which the installed package gguf does not "
                "support: install a newer version, or use another quantization of the model"
            ) from error
        raise UserError(f"{path} is damaged or truncated ({_first_line(error)}): download it again") from error
    size = path.stat().st_size
    sizes: dict[str, int] = {}
    for tensor in reader.tensors:
        if tensor.data_offset + tensor.n_bytes > size:
            raise UserError(f"{path} is truncated inside the tensor {tensor.name}: download it again")
        kind = tensor.tensor_type.name
        sizes[kind] = sizes.get(kind, 0) + int(tensor.n_elements)

    if not sizes or facts.get("general.architecture") is None:
        raise UserError(f"{path} contains no language model (no tensors or no architecture): give the path of a model")
    if parts > 1:
        raise UserError(
            f"{path} is one part of a split model: join the parts with llama.cpp's `llama-gguf-split --merge`"
        )
    return {
        "architecture": str(facts["general.architecture"]),
        "quantization": _quantization(file_type, sizes),
        "parameters": sum(sizes.values()),
        "tensors": [tensor.name for tensor in reader.tensors],
        "license": facts.get("general.license"),
    }


def _quantization(file_type: int | None, sizes: dict[str, int]) -> str:
    """Return the name of the file's quantization, such as `Q4_K_M`: the declared one, or that of most weights.

    It is one of EXACT if and only if no tensor is quantized, regardless of the declared one.
    """
    import gguf

    blocks = {kind: size for kind, size in sizes.items() if kind not in EXACT}
    most = max(blocks or sizes, key=lambda kind: (blocks or sizes)[kind])
    names = {entry.value: entry.name.removeprefix("ALL_").removeprefix("MOSTLY_") for entry in gguf.LlamaFileType}
    declared = most if file_type is None else names.get(file_type, most)
    return declared if (declared in EXACT) == (most in EXACT) else most


def _convert(path: Path, name: str, digest: str, folder: Path) -> None:
    facts = read_facts(path)
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}
    try:
        configuration, _ = PreTrainedConfig.get_config_dict(**where)
        row = FAMILIES.get(configuration.get("model_type", "unknown"))
        kind = row.kind if row else generic.kind_of(configuration, name)
        # transformers draws its progress bar even if standard error is not a terminal.
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model, info = getattr(transformers, AUTO_CLASSES[kind]).from_pretrained(
                **where, dtype=torch.float32, output_loading_info=True
            )
    except UserError:
        raise
    except Exception as error:  # transformers raises many types; all mean that the file cannot be used
        raise UserError(f"cannot read {path}: {_first_line(error)}") from error
    heads = tuple(
        f"{module}." for module in (row.head if row else generic.describe(model, model.config.model_type, kind).head)
    )
    missing = set(info["missing_keys"])
    needed = sorted(key for key in missing if not key.startswith(heads))
    if needed:
        listed = ", ".join(needed[:6]) + (" ..." if len(needed) > 6 else "")
        raise UserError(f"{path} lacks tensors, which would be randomly initialized: {listed}; use a complete file")
    ignored = [tensor for tensor in facts["tensors"] if tensor in _ROTARY_TENSORS]
    if ignored:
        warnings.warn(
            f"transformers does not read {', '.join(ignored)} of {path.name}: rotary positions are unscaled, and "
            "scores may differ from the original model"
        )
    source = {"file": path.name, "sha256": digest, "quantization": facts["quantization"]}
    if facts["license"]:
        source["license"] = str(facts["license"])
    fresh = _serialisable(model, source)
    # A missing LM head stays missing: loading the folder decides whether that is an error.
    weights = {key: tensor for key, tensor in fresh.state_dict().items() if key not in missing}
    _check_space(folder, 4 * sum(parameter.numel() for parameter in fresh.parameters()))
    try:
        with atomic_folder(folder) as partial:
            fresh.save_pretrained(partial, state_dict=weights)
            tokenizer.save_pretrained(partial)
    except UserError:
        raise
    except Exception as error:  # safetensors has its own error for a full disk
        raise UserError(f"cannot write {folder}: {_first_line(error)}; {_ELSEWHERE}") from error


def _serialisable(model: PreTrainedModel, source: dict[str, str]) -> PreTrainedModel:
    """Return a fresh model with the same weights: transformers refuses to save a model loaded from GGUF."""
    configuration = copy.deepcopy(model.config)
    if hasattr(configuration, "quantization_config"):
        del configuration.quantization_config
    setattr(configuration, SOURCE, source)
    with torch.device("meta"):
        fresh = type(model)(configuration)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    return fresh


def _check_space(folder: Path, needed: int) -> None:
    place = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"the dequantized model needs {needed / 1e6:.0f} MB, but {place} has {free / 1e6:.0f} MB free; {_ELSEWHERE}"
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
