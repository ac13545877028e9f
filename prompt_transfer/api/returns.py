"""What the verbs of a hub give back.

Shape letters: P prompt tokens, H hidden, L layers, F neurons a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from torch import Tensor


@dataclass(frozen=True)
class TrainingResult:
    """A prompt or projector that was trained.

    Attributes:
        path: its file, in the run folder that `fit` makes.
        metric: of the task.
        value: best score on validation, a fraction; the mean over the tasks of a projector.
        majority: share of the largest class there, None for tasks that write a text.
        best_step: optimizer steps of the one that was kept.
        table: one row a task: `results.csv` of the run.
    """

    path: Path
    metric: str
    value: float
    majority: float | None
    best_step: int
    table: pd.DataFrame = field(repr=False)

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Score:
    """What a prompt scores on the test split of a task, beside its baselines; all scores are fractions.

    Attributes:
        backbone, task, source: where it is used, and the task that it was trained on.
        split: and where its rows come from.
        metric, value: the task's metric.
        low, high: 95 % bootstrap interval over rows.
        n: rows.
        random: mean of random prompts.
        baseline: the majority class, or the lead of the text for tasks that write one.
        own: the prompt that was trained on this task and backbone, None where there is none that compares.
        relative: value / own.
        control: of a projected prompt: mean of projected random prompts. What is not above it comes from the projector
            alone and not from the source prompt.
        table: one row a prompt.
    """

    backbone: str
    task: str
    source: str
    split: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    random: float
    baseline: float
    own: float | None
    relative: float | None
    control: float | None = None
    table: pd.DataFrame = field(repr=False, default_factory=pd.DataFrame)

    def __float__(self) -> float:
        return self.value


class Activations(NamedTuple):
    """Neurons of a backbone behind a prompt alone, without any data; float32 [L, F] at the answer slot.

    Attributes:
        before: what enters the activation function.
        after: neurons: after the activation; of gated FFNs the product that enters the second layer.
    """

    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Similarity:
    """ON, the overlap of activated neurons (after > 0) of two prompts, 0 to 1.

    Attributes:
        overlap: over all layers.
        layers: in each layer, from the input.
    """

    backbone: str
    task1: str
    task2: str
    overlap: float
    layers: tuple[float, ...]

    def __float__(self) -> float:
        return self.overlap


@dataclass(frozen=True)
class MaskedScore:
    """What a prompt scores while neurons give 0; all scores are fractions.

    Attributes:
        value: with its own most activated neurons masked.
        low, high: 95 % bootstrap interval over rows.
        n: rows.
        unmasked: with all neurons.
        random: mean with as many random neurons masked, in each layer as many as of the own ones.
        baseline: the majority class, or the lead of the text.
        masked: number of neurons.
        table: one row a mask.
    """

    backbone: str
    task: str
    ratio: float
    split: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    unmasked: float
    random: float
    baseline: float
    masked: int
    table: pd.DataFrame = field(repr=False)

    @property
    def drop(self) -> float:
        """What the own neurons cost: unmasked - value."""
        return self.unmasked - self.value

    def __float__(self) -> float:
        return self.value


class MaskedNeurons(NamedTuple):
    """A score with masked neurons, and the mask: bool [L, F], True for masked neurons."""

    metric: MaskedScore
    mask: Tensor


@dataclass(frozen=True)
class Picture:
    """A figure as a file; notebooks show it.

    Attributes:
        path: the `.png` file.
    """

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()
