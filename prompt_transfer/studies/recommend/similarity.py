"""Prompts of target tasks, and how like them the sources are by each indicator of prompts and neurons.

Shape letters: T targets, N prompts of the folder, M further prompts of targets.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prompt_transfer.analysis.indicators import INDICATORS, compute
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt
from prompt_transfer.prompts.tensor_file import sizes
from prompt_transfer.studies.neuron_inputs import read_activations, read_neurons
from prompt_transfer.studies.recommend.candidates import Sources
from prompt_transfer.studies.recommend.short_tuning import BATCH_SIZE, ShortTuning, common_start
from prompt_transfer.utils.errors import UserError

# What is compared pair by pair, as a whole: the best of many layers is good by chance more easily than one number.
SIMILARITIES = tuple(
    name
    for name, row in INDICATORS.items()
    if set(row.needs) <= {"prompts", "initial", "neurons"} and not name.endswith(("_per_layer", "_per_group"))
)


@dataclass(frozen=True)
class TargetPrompts:
    """The prompts that stand for the targets.

    Attributes:
        inputs: what indicators need, of N + M prompts.
        rows: of each target its prompts among them.
        sources: N.
        seconds: of short tuning, mean over the targets for which it was done; 0 where all prompts were there.
        words: what a target's prompt took beside time.
    """

    inputs: dict[str, Any]
    rows: list[NDArray[np.int64]]
    sources: int
    seconds: float
    words: str

    def similarity(self, name: str) -> tuple[NDArray[np.float64], float] | None:
        """An indicator of sources and targets `[T, N]`, mean over a target's prompts; the seconds of one target.

        None where the inputs do not allow it.
        """
        began = time.perf_counter()
        matrix = compute(self.inputs, [name]).get(name)
        if matrix is None:
            return None
        values = np.stack([matrix[rows][:, : self.sources].mean(axis=0) for rows in self.rows])
        return values.astype(float), self.seconds + (time.perf_counter() - began) / len(self.rows)

    def needs(self, name: str) -> str:
        """What an indicator takes beside time, for people."""
        return f"{self.words}, captured neurons" if "neurons" in INDICATORS[name].needs else self.words


def target_prompts(sources: Sources, notes: list[str]) -> TargetPrompts:
    """The prompts that stand for the targets: found, given, or trained for some steps.

    Args:
        sources: with the study.
        notes: gets what has to be left out, and why.

    Raises:
        UserError: the file that was given does not fit, or data or neurons cannot be read.
    """
    study, found = sources.study, sources.found
    further: list[Prompt] = []
    rows: list[NDArray[np.int64]] = []
    tuning = ShortTuning(study.steps, study.seed, study.accelerator)
    start = common_start(found.prompts)
    seconds = []
    for name, target, own in zip(study.tasks, sources.targets, sources.own, strict=True):
        if study.target == "auto" and own.any():
            rows.append(np.flatnonzero(own))
            continue
        if study.target in ("auto", "tuned"):
            path = sources.folder / "target" / f"{target}-tuned.safetensors"
            prompt = tuning.prompt(sources.module, name, study.data, sources.words, path, start)
            seconds.append(float(prompt.metadata["tuning_seconds"]))
        else:
            prompt = _given(sources, target)
        rows.append(np.array([sources.number + len(further)]))
        further.append(prompt)
    everyone = [*found.prompts, *further]
    initial = [prompt.initial for prompt in everyone if prompt.initial is not None]
    inputs = {
        "prompts": torch.stack([prompt.embeddings for prompt in everyone]),
        "initial": torch.stack(initial) if len(initial) == len(everyone) else None,
        "neurons": _neurons(sources, further, notes),
    }
    if inputs["initial"] is None:
        notes.append("task_vector_dot, task_vector_cosine left out: not all prompts hold their initial prompt")
    words = f"{study.steps * BATCH_SIZE} labelled rows (short tuning)" if seconds else "a prompt of the target"
    return TargetPrompts(inputs, rows, sources.number, sum(seconds) / max(1, len(seconds)), words)


def _given(sources: Sources, target: str) -> Prompt:
    """The prompt file of `--target`."""
    if not Path(sources.study.target).exists():
        raise UserError(f"--target {sources.study.target}: give auto, tuned, none, or the file of a prompt")
    prompt = Prompt.load(sources.study.target)
    prompt.check(sources.backbone, sources.backbone.layout, sources.backbone.attention)
    own, shape = prompt.metadata.get("task") or UNKNOWN, sources.found.prompts[0].embeddings.shape
    if own not in (target, UNKNOWN):
        raise UserError(f"--target {sources.study.target} was trained on {own}, not on {target}")
    if prompt.embeddings.shape != shape:
        raise UserError(
            f"--target {sources.study.target} is {sizes(prompt.embeddings.shape)}, the sources are {sizes(shape)}; "
            "only prompts of one shape can be compared; leave --target out, and one is tuned"
        )
    return prompt


def _neurons(sources: Sources, further: list[Prompt], notes: list[str]) -> NDArray[np.float32] | None:
    """Activations `[N + M, L, F]`; None where there are none, or not those of all targets."""
    folder = sources.study.neurons
    if folder is None:
        notes.append("overlaps of neurons left out: give --neurons DIR")
        return None
    known = read_neurons(folder, sources.found)["neurons"]
    paths = [Path(folder) / _file_name(prompt) for prompt in further]
    if absent := [str(path) for path in paths if not path.is_file()]:
        notes.append(
            f"overlaps of neurons left out: there is no {', '.join(absent)}; capture those of "
            f"{', '.join(str(prompt.path) for prompt in further)} too"
        )
        return None
    found = [read_activations(path, prompt) for path, prompt in zip(paths, further, strict=True)]
    for path, tensor in zip(paths, found, strict=True):
        if tensor.shape != known.shape[1:]:
            raise UserError(
                f"{path} has {sizes(tensor.shape)} layers and neurons, those of the sources {sizes(known.shape[1:])}"
            )
    return np.concatenate([known, *(tensor.numpy()[None] for tensor in found)])


def _file_name(prompt: Prompt) -> str:
    path = Path(str(prompt.path))
    return f"{path.resolve().parent.name}.safetensors" if path.stem == "prompt" else path.name
