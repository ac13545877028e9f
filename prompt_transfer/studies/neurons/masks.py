"""Masks of a masking study: from the task's own prompt, from prompts of other tasks, and random ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.neurons import files
from prompt_transfer.neurons.capture import capture_prompts
from prompt_transfer.neurons.mask import most_activated, random_like
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.entries import MADE, Entry
from prompt_transfer.studies.neurons.capture import prompt_facts
from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

# Values that rank neurons, and activations of the prompts alone: name of the prompt -> [L, F].
Neurons = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class MaskedEntry(Entry):
    """A prompt that is scored with masked neurons; the key of its answers combines prompt and mask.

    Attributes:
        mask: bool [L, F].
        kind_of_mask: none, own, same_type, different_type or random.
        mask_source: the prompt that the masked neurons belong to; for a random mask the own prompt, whose size it has.
        mask_seed: seed of a random mask.
        ratio: share of masked neurons.
        method: zero, mean or noise.
        effect: digest of the replacement values: of the means, or of the noise scale.
    """

    mask: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool), repr=False)
    kind_of_mask: str = "none"
    mask_source: str | None = None
    mask_seed: int | None = None
    ratio: float = 0.0
    method: str = "zero"
    effect: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        content = self.digest.encode() + np.packbits(self.mask.numpy()).tobytes()
        if self.mask.any():
            content += f"{self.method} {self.effect}".encode()
        object.__setattr__(self, "digest", hashlib.sha256(content).hexdigest())


class MaskPlan(Protocol):
    """The settings of a study that determine its masks; see `MaskStudy`."""

    @property
    def ratios(self) -> Sequence[float]: ...
    @property
    def scope(self) -> str: ...
    @property
    def methods(self) -> Sequence[str]: ...
    @property
    def masks(self) -> Sequence[str]: ...
    @property
    def sources(self) -> int: ...
    @property
    def random_seeds(self) -> int: ...
    @property
    def noise(self) -> float: ...


def neurons_of(backbone: FrozenBackbone, prompts: Mapping[str, Prompt], folder: str | None, by: str) -> Neurons:
    """Return the values that rank neurons, and the activations, of every prompt.

    Args:
        folder: folder of captured neurons; None: capture them now.
        by: name of the tensor with the values.

    Raises:
        UserError: a file is missing, belongs to another prompt or backbone, or lacks the tensor.
    """
    if folder is None:
        if by != "activations":
            raise UserError(f"--by {by} is read from neuron files: give their folder with --neurons")
        found = capture_prompts(backbone, [prompt.embeddings for prompt in prompts.values()], list(prompts))[
            "activations"
        ]
        activations = dict(zip(prompts, found, strict=True))
        return activations, activations
    values, activations = {}, {}
    for name, prompt in prompts.items():
        path = Path(folder) / f"{name}.safetensors"
        files.check(path, prompt_facts(backbone, prompt))
        tensors = files.read(path)[0]
        for key in (by, "activations"):
            if key not in tensors:
                raise UserError(f"{path} holds no tensor `{key}`, only {', '.join(tensors)}")
        values[name], activations[name] = tensors[by], tensors["activations"]
    return values, activations


def masked_entries(
    plan: MaskPlan, task: Task, prompts: Mapping[str, Prompt], neurons: Neurons, types: Mapping[str, str]
) -> list[MaskedEntry]:
    """Return each own prompt of a task without a mask, then with every mask.

    Args:
        types: task -> type of tasks missing from the registry.

    Raises:
        UserError: no prompt of the folder was trained on the task.
    """
    values, activations = neurons
    own = [name for name, prompt in prompts.items() if training_task(prompt) == task.name]
    if not own:
        raise UserError(f"no prompt was trained on {task.name}: add one to --prompts, or remove the task")
    mean = torch.stack(list(activations.values())).mean(dim=0)
    effects = {"zero": "", "mean": files.digest(mean), "noise": f"{plan.noise} {files.digest(mean)}"}
    entries = []
    for name in own:
        facts = prompts[name].metadata
        seed = int(facts["seed"]) if facts.get("seed", "").isdecimal() else None
        about = (name, "trained", task.name, seed, prompts[name].embeddings)
        unmasked = torch.zeros_like(values[name], dtype=torch.bool)
        entries.append(MaskedEntry(*about, mask=unmasked, file=prompts[name]))
        others = _other_sources(plan, task, prompts, seed, types)
        for ratio in plan.ratios:
            mine = most_activated(values[name], ratio, plan.scope)
            chosen: list[tuple[str, str, int | None, Tensor]] = [("own", name, None, mine)]
            chosen += [
                (kind, source, None, most_activated(values[source], ratio, plan.scope))
                for kind, sources in others.items()
                for source in sources
            ]
            chosen += [
                ("random", name, number, random_like(mine, number)) for number in range(1, plan.random_seeds + 1)
            ]
            entries += [
                MaskedEntry(
                    *about, mask=where, kind_of_mask=kind, mask_source=source, mask_seed=number, ratio=ratio,
                    method=method, effect=effects[method], file=prompts[name],
                )
                for method in plan.methods
                for kind, source, number, where in chosen
                if kind in plan.masks
            ]  # fmt: skip
    return entries


def training_task(prompt: Prompt) -> str | None:
    """Return the single task that a prompt was trained on; None for derived, random and multi-task prompts."""
    facts = prompt.metadata
    made = facts.get("random") == "true" or any(facts.get(mark, "false") != "false" for mark in MADE)
    task = facts.get("task", "")
    return None if made or not task or "," in task else task


def _other_sources(
    plan: MaskPlan, task: Task, prompts: Mapping[str, Prompt], seed: int | None, types: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return prompts of other tasks by type, same or different; one per task, with the same seed if there is one."""
    by_task: dict[str, list[str]] = {}
    for name, prompt in prompts.items():
        source = training_task(prompt)
        if source is not None and source != task.name and (source in types or source in task_names()):
            by_task.setdefault(source, []).append(name)
    found: dict[str, list[str]] = {"same_type": [], "different_type": []}
    # A fixed random order, independent of the alphabet and the same for every target.
    order = np.random.default_rng(0).permutation(len(by_task))
    for source in (sorted(by_task)[place] for place in order):
        own_type = types[source] if source in types else get_task(source).type
        kind = "same_type" if own_type == task.type else "different_type"
        same_seed = [name for name in by_task[source] if prompts[name].metadata.get("seed") == str(seed)]
        found[kind].append((same_seed or by_task[source])[0])
    return {kind: names[: plan.sources] for kind, names in found.items()}
