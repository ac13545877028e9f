"""Lists of prompt files, and the facts of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prompt_transfer.prompts.prompt import NAMES, Prompt, vectors_of
from prompt_transfer.prompts.tensor_file import open_file, read_header
from prompt_transfer.utils.errors import UserError

LISTED_METADATA = (
    *("method", "task", "backbone", "layout", "attention", "metric", "score", "split", "seed", "created"),
    *("source", "random", "projected", "arithmetic"),
)


def describe(prompt: Prompt) -> dict[str, Any]:
    """Return the facts that `prompts inspect` shows.

    Returns:
        path, method, prompt_length, hidden_size (None for a deep prompt), mean/min/max_row_norm (Euclidean, per prompt
        token), distance_from_initial (Frobenius norm of the difference, None without `initial`), mean_row_distance (the
        mean per prompt token) and metadata.
    """
    norms = prompt.vectors.norm(dim=1)
    moved = None if prompt.initial is None else prompt.vectors - vectors_of(prompt.initial)
    return {
        "path": str(prompt.path) if prompt.path else None,
        "method": prompt.method,
        "prompt_length": prompt.length,
        "hidden_size": None if prompt.is_deep else prompt.embeddings.shape[1],
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
        One dict per file: path, prompt_length, hidden_size (None if unreadable, the second also for a deep prompt), the
        metadata method, task, backbone, layout, attention, metric, score, split, seed, created, source, random,
        projected, arithmetic ("" if missing), and error (None if readable).

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
                if not any(name in header.tensors for name in NAMES):
                    continue
                prompt = Prompt._read(file, header, path)
        except UserError as caught:
            error = str(caught)
        length = None if prompt is None else prompt.length
        width = None if prompt is None or prompt.is_deep else prompt.embeddings.shape[1]
        row = {"path": str(path), "prompt_length": length, "hidden_size": width}
        metadata = {} if prompt is None else prompt.metadata | {"method": prompt.method}
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
