"""Files of neurons: one safetensors file a prompt, that several studies add tensors to.

| tensor | what | written by |
|---|---|---|
| `activations`, `before`, `gate` | [L, F], the prompt alone | `neurons capture` |
| `mean`, `active` | [L, F], over the inputs of all tasks, each task weighing the same | `neurons capture --tasks` |
| `mean/TASK`, `active/TASK` | [L, F], over the inputs of a task | the same |
| `predictivity` | [L, F], of the prompt's own task | `neurons skill` |
| `fisher`, `gradient` | [P, H], on labelled examples of the prompt's own task | `neurons probe` |
| `leep/TASK` | [1], on labelled examples of a task | `neurons probe` |

The metadata name the prompt by the digest of its numbers: tensors of another prompt are never mixed in.
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


def digest(embeddings: Tensor) -> str:
    """16 hex digits that tell prompts [P, H] apart."""
    return digest_of(embeddings)[:16]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file.

    Raises:
        UserError: no such file, or not a safetensors file.
    """
    if not path.is_file():
        raise UserError(f"no neurons {path}: capture those of all prompts with `prompt-transfer neurons capture`")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}; remove it and capture again") from error


def check(path: Path, facts: Mapping[str, str]) -> None:
    """Make sure that tensors made under these facts may go to `path`.

    Raises:
        UserError: the file there is of another prompt or backbone, or cannot be read.
    """
    if not path.exists():
        return
    known = read(path)[1]
    other = sorted(key for key in facts if key in known and known[key] != facts[key])
    if other:
        raise UserError(
            f"{path} holds neurons of another {' and '.join(other)}: give another --output, or remove that folder"
        )


def add(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str], notes: Mapping[str, str] | None = None
) -> None:
    """Write tensors, float32, into a file of neurons; those that it holds under other names stay.

    Args:
        facts: `prompt` (the digest), `backbone` (its fingerprint), `attention`, `layout`, `dtype`, `task`.
        notes: metadata that may change from one time to the next.

    Raises:
        UserError: see `check`; or the file cannot be written.
    """
    check(path, facts)
    old, metadata = read(path) if path.exists() else ({}, {})
    whole = {**old, **{name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}}
    with atomic_path(path) as temporary:
        save_file(dict(sorted(whole.items())), temporary, {**metadata, **facts, **(notes or {})})
