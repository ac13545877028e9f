"""The prompt file: a trained `[P, H]` matrix and the metadata needed to use it correctly."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from prompt_transfer.backbones.deep import is_deep, prompt_length, to_vectors
from prompt_transfer.prompts import compatibility
from prompt_transfer.prompts.compatibility import UNKNOWN, Backbone
from prompt_transfer.prompts.tensor_file import (
    Header,
    check_keys_values_shape,
    check_shape,
    open_file,
    read_header,
    read_tensor,
    sizes,
    write,
)
from prompt_transfer.utils import provenance
from prompt_transfer.utils.errors import UserError
from prompt_transfer.version import __version__

FORMAT_VERSION = 1
PROMPT, DEEP_PROMPT = ("prompt", "deep_prompt")
# Tensor names in the file, one of which a prompt file has.
NAMES = ("embeddings", "keys_values")


class Prompt:
    """A trained prompt: embeddings in front of the text, or a deep prompt, keys and values before every layer.

    The tensors are copied to the CPU: further training does not change a stored prompt. `format_version`,
    `prompt_length` and `hidden_size` in the metadata always describe the prompt; of a deep prompt `method`,
    `prompt_length`, `layers`, `kv_heads` and `head_dim`.

    Args:
        embeddings: the prompt, float32 `[P, H]`, H the width of the backbone's input embeddings; or a deep prompt,
            float32 `[L, 2, P, kv_heads, head_dim]`: keys and values of each layer as they enter its attention.
        metadata: strings only: format_version, method, backbone, fingerprint, family, hidden_size, prompt_length,
            layout, attention, task, source, label_words, train_rows, split, metric, score, seed, steps, init,
            source_prompt, reparameterization, dtype, versions (JSON), created (UTC); random is "true" for an untrained
            prompt, projected for one that a projector computed; arithmetic is the operation on other prompts that
            gave this one. All but the sizes may be missing.
        initial: the prompt before training, of the same shape, or None; the difference is the task vector.
        path: the file it was loaded from or saved to, for messages.
        label_embeddings: trained LM-head rows of the classes of its tasks, float32 `[classes, H']`, in the order of the
            metadata `label_words`; None: the label words' own.

    Attributes:
        values: the trained tensor, of either shape.
        metadata, initial, path: as above.

    Raises:
        UserError: a tensor is not float32, has another shape, is empty, too large or has non-finite values.
    """

    def __init__(
        self,
        embeddings: Tensor,
        metadata: dict[str, str] | None = None,
        initial: Tensor | None = None,
        path: Path | None = None,
        label_embeddings: Tensor | None = None,
    ) -> None:
        self.values = _checked(tensor_name(embeddings), embeddings)
        self.initial = None if initial is None else _checked("initial", initial)
        self.path = path
        if self.initial is not None and self.initial.shape != self.values.shape:
            raise UserError(
                f"the initial prompt is {sizes(self.initial.shape)}, the prompt {sizes(self.values.shape)}; "
                "their shapes must be equal"
            )
        self.label_embeddings = None if label_embeddings is None else _checked("label_embeddings", label_embeddings)
        metadata = metadata or {}
        for key, value in metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TypeError(f"prompt metadata must be strings, but {key!r} is {value!r}")
        stated = metadata.get("method", self.method)
        if stated != self.method:
            raise UserError(f"its metadata say the method {stated[:40]}, its tensor is that of a {self.method}")
        self.metadata = metadata | {"format_version": str(FORMAT_VERSION), **sizes_of(self.values)}

    def __repr__(self) -> str:
        return f"Prompt({sizes(self.values.shape)}, metadata={self.metadata!r}, path={self.path!r})"

    @property
    def is_deep(self) -> bool:
        """Whether it is a deep prompt."""
        return is_deep(self.values)

    @property
    def method(self) -> str:
        """`prompt` or `deep_prompt`."""
        return DEEP_PROMPT if self.is_deep else PROMPT

    @property
    def length(self) -> int:
        """P, the number of prompt tokens."""
        return prompt_length(self.values)

    @property
    def embeddings(self) -> Tensor:
        """The embeddings, float32 `[P, H]`.

        Raises:
            UserError: it is a deep prompt.
        """
        if self.is_deep:
            raise UserError(
                f"{self.label} is a deep prompt: it has keys and values for every layer and no embeddings, which this "
                "needs; use a prompt of --model.method prompt"
            )
        return self.values

    @property
    def keys_values(self) -> Tensor:
        """Keys (0) and values (1) of a deep prompt, float32 `[L, 2, P, kv_heads, head_dim]`.

        Raises:
            UserError: it is not a deep prompt.
        """
        if not self.is_deep:
            raise UserError(
                f"{self.label} has embeddings, no keys and values: train one with --model.method deep_prompt"
            )
        return self.values

    @property
    def vectors(self) -> Tensor:
        """One vector per prompt token, `[P, W]`: its embedding, or all its keys and values."""
        return vectors_of(self.values)

    @classmethod
    def load(cls, path: str | Path) -> Prompt:
        """Read a prompt file, or `prompt.safetensors` in the folder of a run.

        Memory is allocated only after the sizes in the header agree with each other and with the file.

        Raises:
            UserError: the file does not exist, or is not a complete and valid prompt file.
        """
        path = Path(path).expanduser()
        path = path / "prompt.safetensors" if path.is_dir() else path
        with open_file(path) as file:
            return cls._read(file, read_header(file, path), path)

    @classmethod
    def _read(cls, file: BinaryIO, header: Header, path: Path) -> Prompt:
        name = next((name for name in NAMES if name in header.tensors), None)
        if name is None:
            found = ", ".join(repr(name[:60]) for name in sorted(header.tensors)[:5]) or "no tensor at all"
            raise UserError(
                f"{path} is not a prompt file: it has no tensor `embeddings` (but {found}); "
                "import prompts of other tools with `prompt-transfer prompts import`"
            )
        _check_version(header.metadata, path)
        check = check_keys_values_shape if name == "keys_values" else check_shape
        checks = {name: check, "initial": check, "label_embeddings": check_shape}
        tensors = {
            key: read_tensor(file, header, key, path, one) for key, one in checks.items() if key in header.tensors
        }
        for key, size in sizes_of(tensors[name]).items():
            if header.metadata.get(key, size) != size:
                raise UserError(f"{path} is damaged: its {key} is {header.metadata[key]!r}, its tensor has {size}")
        try:
            labels = tensors.get("label_embeddings")
            return cls(tensors[name], header.metadata, tensors.get("initial"), path, labels)
        except UserError as error:
            raise UserError(f"{path} is not a usable prompt: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write the prompt file atomically and return its path; adds `versions` and `created` if missing.

        Raises:
            UserError: the file cannot be written.
        """
        path = Path(path)
        self.metadata.setdefault("versions", library_versions())
        self.metadata.setdefault("created", datetime.now(UTC).isoformat(timespec="seconds"))
        name = tensor_name(self.values)
        tensors = {name: _checked(name, self.values)}
        if self.initial is not None:
            tensors["initial"] = _checked("initial", self.initial)
        if self.label_embeddings is not None:
            tensors["label_embeddings"] = _checked("label_embeddings", self.label_embeddings)
        write(path, tensors, self.metadata)
        self.path = path
        return path

    def labels_for(self, task: str, words: list[Any]) -> Tensor | None:
        """Return the label embeddings [C, H'] for a task with these label words; None if they do not apply.

        They apply to the task of their training with the same words, and to any task with the same words.

        Raises:
            UserError: the metadata do not name as many classes as there are label embeddings.
        """
        if self.label_embeddings is None:
            return None
        try:
            stored: dict[str, list[Any]] = json.loads(self.metadata.get("label_words") or "{}")
            counts = [len(own) for own in stored.values()]
        except (ValueError, AttributeError, TypeError):
            counts = []
        if sum(counts) != len(self.label_embeddings):
            raise UserError(f"{self.label} is damaged: its label_words do not fit its label embeddings")
        parts = dict(zip(stored, self.label_embeddings.split(counts), strict=True))
        fitting = [name for name, own in stored.items() if own == words]
        return None if not fitting else parts[task if task in fitting else fitting[0]]

    def check(self, backbone: Backbone, layout: Any = None, attention: str | None = None) -> None:
        """Check that the prompt fits a backbone, layout and attention mode.

        Equal fingerprints mean the same backbone, regardless of names. If the fingerprint is `unknown` (imported
        prompts), width and family must match, and a warning is given. Attention is not compared for causal
        backbones, where full and shared attention are the same function.

        Args:
            backbone: the backbone to use the prompt with.
            layout: its layout (name or object); None skips the check.
            attention: its attention mode; None skips the check.

        Raises:
            UserError: lists every mismatch and its remedy.
        """
        compatibility.check(self, backbone, layout, attention)

    @property
    def label(self) -> str:
        """The prompt's name in messages."""
        return f"prompt {self.path}" if self.path else f"the prompt for {self.fact('task', 'an unnamed task')}"

    def fact(self, key: str, missing: str = UNKNOWN) -> str:
        """Return a metadata value for a message, or `missing`."""
        # Metadata of unknown files may be long or multi-line; messages are one short line.
        return " ".join(self.metadata.get(key, "").split())[:200] or missing


def library_versions() -> str:
    """Return the versions of the libraries that affect results, as JSON."""
    return json.dumps(provenance.library_versions(), sort_keys=True)


def _check_version(metadata: dict[str, str], path: Path) -> None:
    version = metadata.get("format_version", str(FORMAT_VERSION))
    if not (version.isascii() and version.isdecimal() and len(version) < 10):
        raise UserError(f"{path} is damaged: its format_version is {version!r}")
    if int(version) > FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {version}, but prompt_transfer {__version__} reads only versions up to "
            f"{FORMAT_VERSION}; install a newer prompt_transfer"
        )


def tensor_name(values: Tensor) -> str:
    """Return the name of a prompt's tensor in its file."""
    return NAMES[is_deep(values)]


def sizes_of(values: Tensor) -> dict[str, str]:
    """Return the metadata that describe a prompt's shape."""
    if not is_deep(values):
        return {"prompt_length": str(values.shape[0]), "hidden_size": str(values.shape[1])}
    layers, _, length, heads, width = map(str, values.shape)
    sizes = {"prompt_length": length, "layers": layers, "kv_heads": heads, "head_dim": width}
    return {"method": DEEP_PROMPT, **sizes}


def vectors_of(values: Tensor) -> Tensor:
    """Return one vector per prompt token, `[P, W]`, of either kind of prompt."""
    return to_vectors(values) if is_deep(values) else values


def _checked(name: str, tensor: Tensor) -> Tensor:
    (check_keys_values_shape if is_deep(tensor) else check_shape)(f"`{name}`", tensor.shape)
    if tensor.dtype != torch.float32:
        raise UserError(f"`{name}` is {str(tensor.dtype).removeprefix('torch.')}, a prompt is float32; use .float()")
    if not torch.isfinite(tensor).all():
        raise UserError(f"`{name}` has non-finite values (NaN or infinity); train with a lower learning rate")
    return tensor.detach().to("cpu", copy=True).contiguous()
