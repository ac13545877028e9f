"""Neuron files: one safetensors file per prompt, to which several studies add tensors.

| tensor | content | written by |
|---|---|---|
| `activations`, `before`, `gate` | `[L, F]`, the prompt without input text | `neurons capture` |
| `mean`, `active` | `[L, F]`, means over the inputs of all tasks, tasks weighted equally | `neurons capture --tasks` |
| `mean/TASK`, `active/TASK` | `[L, F]`, means over the inputs of a task | the same |
| `predictivity` | `[L, F]`, for the prompt's own task | `neurons skill` |
| `fisher`, `gradient` | `[P, H]` (deep: `[P, W]`), on labelled examples of the prompt's own task | `neurons probe` |
| `leep/TASK` | `[1]`, on labelled examples of a task | `neurons probe` |

The metadata identify the prompt by a digest of its values, which prevents mixing tensors of different prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prompt_transfer.utils.digests import digest_of
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import atomic_path


def digest(values: Tensor) -> str:
    """Return 16 hex digits that identify a prompt by its values."""
    return digest_of(values)[:16]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and metadata of a file.

    Raises:
        UserError: the file does not exist or is not a safetensors file.
    """
    if not path.is_file():
        raise UserError(f"no neuron file {path}: capture all prompts with `prompt-transfer neurons capture`")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}; delete it and capture again") from error


def check(path: Path, facts: Mapping[str, str]) -> None:
    """Check that tensors with these facts may be added to the file `path`.

    Raises:
        UserError: the file belongs to another prompt or backbone, or cannot be read.
    """
    if not path.exists():
        return
    known = read(path)[1]
    other = sorted(key for key in facts if key in known and known[key] != facts[key])
    if other:
        raise UserError(
            f"{path} holds neurons of another {' and '.join(other)}: give another --output, or delete that folder"
        )


def add(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str], notes: Mapping[str, str] | None = None
) -> None:
    """Add tensors to a neuron file as float32, keeping its tensors of other names.

    Args:
        path: the file, created if missing.
        tensors: name -> tensor.
        facts: `prompt` (the digest), `backbone` (its fingerprint), `attention`, `layout`, `dtype`, `task`.
        notes: further metadata, which need not match those in the file.

    Raises:
        UserError: see `check`; or the file cannot be written.
    """
    check(path, facts)
    old, metadata = read(path) if path.exists() else ({}, {})
    whole = {**old, **{name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}}
    with atomic_path(path) as temporary:
        save_file(dict(sorted(whole.items())), temporary, {**metadata, **facts, **(notes or {})})
