"""Similarity of sources to prompts of the target tasks, by each indicator of prompts and neurons.

Shape letters: T targets, N prompts of the folder, M further prompts of targets.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from prompt_transfer.analysis.indicators import INDICATORS, compute
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt, vectors_of
from prompt_transfer.prompts.tensor_file import sizes
from prompt_transfer.studies.inputs import PromptSet
from prompt_transfer.studies.neuron_inputs import read_activations, read_neurons
from prompt_transfer.studies.recommend.load import RecommendInputs
from prompt_transfer.studies.recommend.short_tuning import BATCH_SIZE, ShortTuning, common_start
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.studies.recommend.study import RecommendStudy

# Indicators of pairs of prompts, without single layers: the best of many layers is more likely to be good by chance.
SIMILARITIES = tuple(
    name
    for name, row in INDICATORS.items()
    if set(row.needs) <= {"prompts", "initial", "neurons"} and not name.endswith(("_per_layer", "_per_group"))
)


@dataclass(frozen=True)
class TargetPrompts:
    """The prompts that represent the targets.

    Attributes:
        inputs: inputs of the indicators, of N + M prompts.
        rows: numbers of each target's prompts among them.
        sources: N.
        seconds: seconds of short tuning, mean over the tuned targets; 0 if none was tuned.
        words: data required for a target's prompt, in words.
    """

    inputs: dict[str, Any]
    rows: list[NDArray[np.int64]]
    sources: int
    seconds: float
    words: str

    def similarity(self, name: str) -> tuple[NDArray[np.float64], float] | None:
        """Return an indicator `[T, N]`, mean over a target's prompts, and the seconds per target.

        None if the inputs lack something.
        """
        began = time.perf_counter()
        matrix = compute(self.inputs, [name]).get(name)
        if matrix is None:
            return None
        values = np.stack([matrix[rows][:, : self.sources].mean(axis=0) for rows in self.rows])
        return values.astype(float), self.seconds + (time.perf_counter() - began) / len(self.rows)

    def needs(self, name: str) -> str:
        """Return the data that an indicator requires, in words."""
        return f"{self.words}, captured neurons" if "neurons" in INDICATORS[name].needs else self.words


def target_prompts(study: RecommendStudy, inputs: RecommendInputs, notes: list[str]) -> TargetPrompts:
    """Return the prompts that represent the targets: found in the folder, given, or short-tuned here.

    Args:
        study: the settings.
        inputs: loaded inputs.
        notes: gets the skipped indicators, and why.

    Raises:
        UserError: the given prompt does not fit, or data or neurons cannot be read.
    """
    found = inputs.found
    further: list[Prompt] = []
    rows: list[NDArray[np.int64]] = []
    tuning = ShortTuning(study.steps, study.seed, study.accelerator)
    start = common_start(found.prompts)
    seconds = []
    for name, target, own in zip(study.tasks, inputs.targets, inputs.own, strict=True):
        if study.target == "auto" and own.any():
            rows.append(np.flatnonzero(own))
            continue
        if study.target in ("auto", "tuned"):
            path = inputs.folder / "target" / f"{target}-tuned.safetensors"
            prompt = tuning.prompt(inputs.module, name, study.data, inputs.words, path, start)
            seconds.append(float(prompt.metadata["tuning_seconds"]))
        else:
            prompt = _given(study, inputs, target)
        rows.append(np.array([inputs.number + len(further)]))
        further.append(prompt)
    everyone = [*found.prompts, *further]
    initial = [vectors_of(prompt.initial) for prompt in everyone if prompt.initial is not None]
    features = {
        "prompts": torch.stack([prompt.vectors for prompt in everyone]),
        "initial": torch.stack(initial) if len(initial) == len(everyone) else None,
        "neurons": _neurons(study.neurons, inputs.found, further, notes),
    }
    if features["initial"] is None:
        notes.append("task_vector_dot, task_vector_cosine left out: not all prompts hold their initial prompt")
    words = f"{study.steps * BATCH_SIZE} labelled rows (short tuning)" if seconds else "a prompt of the target"
    return TargetPrompts(features, rows, inputs.number, sum(seconds) / max(1, len(seconds)), words)


def _given(study: RecommendStudy, inputs: RecommendInputs, target: str) -> Prompt:
    """Load and check the prompt file given by `--target`."""
    if not Path(study.target).exists():
        raise UserError(f"--target {study.target}: give auto, tuned, none, or the file of a prompt")
    prompt = Prompt.load(study.target)
    prompt.check(inputs.backbone, inputs.backbone.layout, inputs.backbone.attention)
    own, shape = prompt.metadata.get("task") or UNKNOWN, inputs.found.prompts[0].values.shape
    if own not in (target, UNKNOWN):
        raise UserError(f"--target {study.target} was trained on {own}, not on {target}")
    if prompt.values.shape != shape:
        raise UserError(
            f"--target {study.target} is {sizes(prompt.values.shape)}, the sources are {sizes(shape)}; "
            "only prompts of one shape can be compared; omit --target to tune one"
        )
    return prompt


def _neurons(
    folder: str | None, found: PromptSet, further: list[Prompt], notes: list[str]
) -> NDArray[np.float32] | None:
    """Return activations `[N + M, L, F]`; None without neuron files, or if those of a target are missing."""
    if folder is None:
        notes.append("overlaps of neurons left out: give --neurons DIR")
        return None
    known = read_neurons(folder, found)["neurons"]
    paths = [Path(folder) / _file_name(prompt) for prompt in further]
    if absent := [str(path) for path in paths if not path.is_file()]:
        notes.append(
            f"overlaps of neurons left out: there is no {', '.join(absent)}; capture those of "
            f"{', '.join(str(prompt.path) for prompt in further)} too"
        )
        return None
    added = [read_activations(path, prompt) for path, prompt in zip(paths, further, strict=True)]
    for path, tensor in zip(paths, added, strict=True):
        if tensor.shape != known.shape[1:]:
            raise UserError(
                f"{path} has {sizes(tensor.shape)} layers and neurons, those of the sources {sizes(known.shape[1:])}"
            )
    return np.concatenate([known, *(tensor.numpy()[None] for tensor in added)])


def _file_name(prompt: Prompt) -> str:
    path = Path(str(prompt.path))
    return f"{path.resolve().parent.name}.safetensors" if path.stem == "prompt" else path.name
