"""Reading neuron files in the order of a study's prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prompt_transfer.neurons import files
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.tensor_file import sizes
from prompt_transfer.studies.inputs import PromptSet
from prompt_transfer.utils.errors import UserError

# Tensors that indicators use unchanged, one per prompt.
PLAIN = ("active", "predictivity", "fisher", "gradient")


def read_neurons(folder: str | Path, prompts: PromptSet) -> dict[str, Any]:
    """Read the neuron files of all prompts, stacked under the names in `analysis.indicators.Indicator.needs`.

    The files lie below `folder` under the prompts' relative paths. `activations` [L, F] are required; any other entry
    is None if a file lacks it.

    Returns:
        `neurons`, `active`, `predictivity` [N, L, F], `fisher`, `gradient` [N, P, H], `task_active` [N, T, L, F] and
        `leep` [N, T] over the T tasks of the prompts, with `own_task` [N].

    Raises:
        UserError: a file is missing, belongs to another prompt, or differs in shape from the others.
    """
    paths = [Path(folder) / f"{name}.safetensors" for name in prompts.names]
    tensors = [_read(path, prompt) for path, prompt in zip(paths, prompts.prompts, strict=True)]
    for path, found in zip(paths, tensors, strict=True):
        check(path, found, tensors[0])
    inputs: dict[str, Any] = {"neurons": _stacked(tensors, "activations")}
    inputs |= {name: _stacked(tensors, name) for name in PLAIN}
    return inputs | _on_tasks(tensors, prompts.tasks)


def read_activations(path: Path, prompt: Prompt) -> Tensor:
    """Read the tensor `activations` [L, F] of one prompt.

    Raises:
        UserError: the file is missing, belongs to another prompt or has no valid activations.
    """
    found = _read(path, prompt)
    check(path, found, found)
    return found["activations"].float()


def _read(path: Path, prompt: Prompt) -> dict[str, Tensor]:
    found, facts = files.read(path)
    if facts.get("prompt", files.digest(prompt.values)) != files.digest(prompt.values):
        raise UserError(f"{path} holds neurons of another prompt than {prompt.path}: capture them again")
    if "activations" not in found:
        raise UserError(f"{path} holds no tensor `activations`: write it with `neurons capture`")
    return found


def check(path: Path, tensors: dict[str, Tensor], first: dict[str, Tensor]) -> None:
    """Raise UserError if a file's tensors are invalid or differ in shape from those of the first file."""
    neurons = tensors["activations"]
    if neurons.ndim != 2 or not torch.isfinite(neurons.float()).all():
        raise UserError(
            f"{path}: activations must be finite numbers [L, F], these are {sizes(neurons.shape)} or non-finite; "
            "capture them again"
        )
    for name in tensors.keys() & first.keys():
        if tensors[name].shape != first[name].shape:
            unit = "layers and neurons" if name == "activations" else f"numbers in `{name}`"
            raise UserError(
                f"{path} has {sizes(tensors[name].shape)} {unit}, the first file {sizes(first[name].shape)}; capture "
                "them together"
            )


def _stacked(tensors: list[dict[str, Tensor]], name: str) -> np.ndarray | None:
    if any(name not in found for found in tensors):
        return None
    return torch.stack([found[name].float() for found in tensors]).numpy()


def _on_tasks(tensors: list[dict[str, Tensor]], tasks: list[str]) -> dict[str, Any]:
    """Return the per-task tensors over the T tasks of the prompts, NaN where missing."""
    names = list(dict.fromkeys(tasks))
    inputs: dict[str, Any] = {"own_task": np.array([names.index(task) for task in tasks])}
    for key, name, shape in (
        ("task_active", "active", tensors[0]["activations"].shape),
        ("leep", "leep", torch.Size([1])),
    ):
        there = any(f"{name}/{task}" in found for found in tensors for task in names)
        missing = torch.full(shape, torch.nan)
        rows = [[found.get(f"{name}/{task}", missing).float().numpy() for task in names] for found in tensors]
        inputs[key] = np.array(rows) if there else None
    if inputs["leep"] is not None:
        inputs["leep"] = inputs["leep"][:, :, 0]
    return inputs
