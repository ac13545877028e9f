"""The prompt file: a trained `[P, H]` matrix and the metadata needed to use it correctly."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from prompt_transfer.prompts.tensor_file import Header, check_shape, open_file, read_header, read_tensor, sizes, write
from prompt_transfer.utils import provenance
from prompt_transfer.utils.errors import UserError
from prompt_transfer.version import __version__

FORMAT_VERSION = 1
UNKNOWN = "unknown"
LISTED_METADATA = (
    *("task", "backbone", "layout", "attention", "metric", "score", "split", "seed", "created"),
    *("source", "random", "projected", "arithmetic"),
)


class Backbone(Protocol):
    """The attributes of a backbone that prompts use; `FrozenBackbone` implements it."""

    @property
    def id(self) -> str: ...
    @property
    def family(self) -> Any: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def embedding_weight(self) -> Tensor: ...


@dataclass(eq=False)
class Prompt:
    """A trained prompt.

    The tensors are copied to the CPU: further training does not change a stored prompt. `format_version`,
    `prompt_length` and `hidden_size` in the metadata always describe `embeddings`.

    Attributes:
        embeddings: the prompt, float32 `[P, H]`; H is the width of the backbone's input embeddings.
        metadata: strings only: format_version, backbone, fingerprint, family, hidden_size, prompt_length, layout,
            attention, task, source, label_words, train_rows, split, metric, score, seed, steps, init,
            source_prompt, reparameterization, dtype, versions (JSON), created (UTC); random is "true" for an untrained
            prompt, projected for one that a projector computed; arithmetic is the operation on other prompts that
            gave this one. All but the sizes may be missing.
        initial: the prompt before training, float32 `[P, H]`, or None; the difference is the task vector.
        path: the file it was loaded from or saved to, for messages.
        label_embeddings: trained LM-head rows of the classes of its tasks, float32 `[classes, H']`, in the order of the
            metadata `label_words`; None: the label words' own.

    Raises:
        UserError: a tensor is not float32 `[P, H]`, is empty, too large or has non-finite values.
    """

    embeddings: Tensor = field(repr=False)
    metadata: dict[str, str] = field(default_factory=dict)
    initial: Tensor | None = field(default=None, repr=False)
    path: Path | None = None
    label_embeddings: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.embeddings = _checked("embeddings", self.embeddings)
        if self.initial is not None:
            self.initial = _checked("initial", self.initial)
            if self.initial.shape != self.embeddings.shape:
                raise UserError(
                    f"the initial prompt is {sizes(self.initial.shape)}, the prompt {sizes(self.embeddings.shape)}; "
                    "their shapes must be equal"
                )
        if self.label_embeddings is not None:
            self.label_embeddings = _checked("label_embeddings", self.label_embeddings)
        for key, value in self.metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TypeError(f"prompt metadata must be strings, but {key!r} is {value!r}")
        self.metadata = self.metadata | {
            "format_version": str(FORMAT_VERSION),
            "prompt_length": str(self.embeddings.shape[0]),
            "hidden_size": str(self.embeddings.shape[1]),
        }

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
        if "embeddings" not in header.tensors:
            found = ", ".join(repr(name[:60]) for name in sorted(header.tensors)[:5]) or "no tensor at all"
            raise UserError(
                f"{path} is not a prompt file: it has no tensor `embeddings` (but {found}); "
                "import prompts of other tools with `prompt-transfer prompts import`"
            )
        _check_version(header.metadata, path)
        names = ("embeddings", "initial", "label_embeddings")
        tensors = {name: read_tensor(file, header, name, path) for name in names if name in header.tensors}
        for key, size in zip(("prompt_length", "hidden_size"), tensors["embeddings"].shape, strict=True):
            if header.metadata.get(key, str(size)) != str(size):
                raise UserError(f"{path} is damaged: its {key} is {header.metadata[key]!r}, its tensor has {size}")
        try:
            labels = tensors.get("label_embeddings")
            return cls(tensors["embeddings"], header.metadata, tensors.get("initial"), path, labels)
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
        tensors = {"embeddings": _checked("embeddings", self.embeddings)}
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
            raise UserError(f"{self._name()} is damaged: its label_words do not fit its label embeddings")
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
        problems, remedies = [], []
        width, trained_on = self.embeddings.shape[1], self._value("backbone", "another backbone")
        family = getattr(backbone.family, "name", backbone.family)
        fingerprint, own_family = self._value("fingerprint"), self._value("family")
        known = UNKNOWN not in (fingerprint, backbone.fingerprint)
        if width != backbone.hidden_size:
            problems.append(f"it is {width} wide, the backbone {backbone.hidden_size}")
        if own_family not in (UNKNOWN, family):
            problems.append(f"it is for the family {own_family}, the backbone is {family}")
        if known and fingerprint != backbone.fingerprint:
            problems.append(
                f"its backbone has the fingerprint {fingerprint[:12]}, this one {backbone.fingerprint[:12]} "
                "(tokenizer, configuration or embeddings differ, as they do in a float16 or quantized copy)"
            )
        if problems:
            remedies.append(f"use {trained_on}, or map the prompt with `prompt-transfer prompts project`")
        layout_name = getattr(layout, "name", layout)
        causal = getattr(backbone.family, "kind", None) == "causal_lm"
        for key, here in (("layout", layout_name), ("attention", None if causal else attention)):
            own = self._value(key)
            if here is not None and own not in (UNKNOWN, here):
                problems.append(f"it was trained with {key} {own}, not {here}")
                remedies.append(f"set {key} to {own} (--model.{key} {own})")
        if problems:
            raise UserError(
                f"{self._name()}, trained on {trained_on}, does not fit {backbone.id}: {'; '.join(problems)}. "
                f"Remedy: {'; '.join(remedies)}"
            )
        if not known:
            stated = self._value("backbone", "")
            unknown = "which backbone it was trained on"
            unknown = f"exactly {unknown} ({stated})" if stated else unknown
            warnings.warn(
                f"{self._name()} does not say {unknown}; only its width {width} was checked against {backbone.id}",
                stacklevel=1,  # a fixed location: Python then shows the warning once, however many checks there are
            )

    def _name(self) -> str:
        return f"prompt {self.path}" if self.path else f"the prompt for {self._value('task', 'an unnamed task')}"

    def _value(self, key: str, missing: str = UNKNOWN) -> str:
        # Metadata of unknown files may be long or multi-line; messages are one short line.
        return " ".join(self.metadata.get(key, "").split())[:200] or missing


def describe(prompt: Prompt) -> dict[str, Any]:
    """Return the facts that `prompts inspect` shows.

    Returns:
        path, prompt_length, hidden_size, mean/min/max_row_norm (Euclidean, per prompt token), distance_from_initial
        (Frobenius norm of the difference, None without `initial`), mean_row_distance (the mean per prompt token) and
        metadata.
    """
    norms = prompt.embeddings.norm(dim=1)
    moved = None if prompt.initial is None else prompt.embeddings - prompt.initial
    return {
        "path": str(prompt.path) if prompt.path else None,
        "prompt_length": prompt.embeddings.shape[0],
        "hidden_size": prompt.embeddings.shape[1],
        "mean_row_norm": norms.mean().item(),
        "min_row_norm": norms.min().item(),
        "max_row_norm": norms.max().item(),
        "distance_from_initial": None if moved is None else moved.norm().item(),
        "mean_row_distance": None if moved is None else moved.norm(dim=1).mean().item(),
        "metadata": dict(sorted(prompt.metadata.items())),
    }


def list_prompts(folder: str | Path) -> list[dict[str, Any]]:
    """List all prompt files below `folder`, sorted by path.

    Other safetensors files (models, projectors) are skipped; unreadable ones are listed with their error.

    Returns:
        One dict per file: path, prompt_length, hidden_size (None if unreadable), the metadata task, backbone, layout,
        attention, metric, score, split, seed, created, source, random, projected, arithmetic ("" if missing), and
        error (None if readable).

    Raises:
        UserError: the folder does not exist.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"no such folder: {folder}; give one that holds prompt files")
    found = [folder] if folder.is_file() else sorted(folder.rglob("*.safetensors"))
    rows = []
    for path in found:
        # Skip the temporary files of other writers (names with a dot) and pipes, which would block.
        if path.name.startswith(".") or not (path.is_file() or path.is_symlink()):
            continue
        prompt, error = None, None
        try:
            with open_file(path) as file:
                header = read_header(file, path)
                if "embeddings" not in header.tensors:
                    continue
                prompt = Prompt._read(file, header, path)
        except UserError as caught:
            error = str(caught)
        length, width = (None, None) if prompt is None else prompt.embeddings.shape
        row = {"path": str(path), "prompt_length": length, "hidden_size": width}
        metadata = {} if prompt is None else prompt.metadata
        rows.append(row | {key: metadata.get(key, "") for key in LISTED_METADATA} | {"error": error})
    return rows


def readable_prompts(folder: str | Path) -> list[dict[str, Any]]:
    """List as `list_prompts`, without a multi-prompt run's copy of its best prompt.

    Raises:
        UserError: the folder does not exist, or one of its files cannot be read.
    """
    rows = list_prompts(folder)
    for row in rows:
        if row["error"]:
            raise UserError(row["error"])
    return [row for row in rows if run_name(Path(row["path"])) is not None]


def run_name(path: Path) -> str | None:
    """Return the name of a prompt file: its run folder's name if `fit` named the file.

    Returns None for a multi-prompt run's copy of its best prompt.
    """
    if path.stem == "prompt":
        return None if any(path.parent.glob("prompt-*.safetensors")) else path.resolve().parent.name
    if path.stem.startswith("prompt-"):
        return f"{path.resolve().parent.name}-{path.stem.removeprefix('prompt-')}"
    return path.stem


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


def _checked(name: str, tensor: Tensor) -> Tensor:
    check_shape(f"`{name}`", tensor.shape)
    if tensor.dtype != torch.float32:
        raise UserError(f"`{name}` is {str(tensor.dtype).removeprefix('torch.')}, a prompt is float32; use .float()")
    if not torch.isfinite(tensor).all():
        raise UserError(f"`{name}` has non-finite values (NaN or infinity); train with a lower learning rate")
    return tensor.detach().to("cpu", copy=True).contiguous()
