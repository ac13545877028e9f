"""Return types of the hub's methods.

Shape letters: P prompt tokens, H hidden, L layers, F neurons per layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import pandas as pd
from torch import Tensor


class Number(float):
    """A number with facts about it, which `dict(result)` returns too.

    Subclasses are dataclasses with keyword arguments; the attribute named by `NUMBER` is the number.
    """

    NUMBER: ClassVar[str] = "value"

    def __new__(cls, **facts: Any) -> Self:
        return super().__new__(cls, facts[cls.NUMBER])

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]

    def __str__(self) -> str:
        return str(float(self))

    def keys(self) -> list[str]:
        """Return the names of the facts, without tables."""
        return [one.name for one in fields(self) if one.name != "table"]  # type: ignore[arg-type]

    def items(self) -> list[tuple[str, Any]]:
        """Return names and values of the facts."""
        return [(name, self[name]) for name in self.keys()]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a fact, or `default` if there is none of that name."""
        try:
            return self[name]
        except KeyError:
            return default

    if TYPE_CHECKING:
        # At run time `in` and `for` use `__getitem__`: pandas takes objects with these methods for dicts or lists.
        def __contains__(self, name: object) -> bool: ...
        def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, name: str | int) -> Any:
        """Return a fact; the number also under its metric's name, as in `eval_accuracy` of release 2.0."""
        metric = getattr(self, "metric", None)
        aliases = [metric, f"eval_{metric}"] if metric is not None else []
        if isinstance(name, int):
            return [*self.keys(), *aliases][name]
        if name in self.keys():
            return getattr(self, name)
        if name in aliases:
            return float(self)
        raise KeyError(f"{name!r}; there are {', '.join(self.keys())}")


@dataclass(frozen=True, eq=False)
class TrainingResult(Number):
    """A trained prompt or projector; a number: its best validation score.

    Attributes:
        path: its file in the run folder of `fit`.
        metric: the task's metric.
        value: best validation score, a fraction; for projectors the mean over tasks.
        majority: accuracy of the majority class on validation, None for generation tasks.
        best_step: optimizer step of the best score.
        table: one row per task: the run's `results.csv`.
    """

    path: Path
    metric: str
    value: float
    majority: float | None
    best_step: int
    table: pd.DataFrame = field(repr=False)


@dataclass(frozen=True, eq=False)
class Score(Number):
    """A prompt's score on a task's test split, a number, with its baselines; all scores are fractions.

    Attributes:
        backbone, task: the backbone and task of the evaluation.
        source: the task that the prompt was trained on.
        split: the split and its origin.
        metric, value: the task's metric and the score.
        low, high: 95 % bootstrap interval over examples.
        n: number of examples.
        random: mean score of random prompts.
        baseline: score of the majority class, or of the text's lead for generation tasks.
        own: score of this task's own prompt on this backbone, None if there is no comparable one.
        relative: value / own.
        control: for a projected prompt, the mean score of projected random prompts; a score up to this level comes from
            the projector, not from the source prompt.
        table: one row per prompt.
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


class Activations(NamedTuple):
    """Neurons at the answer slot for a prompt without input text; float32 `[L, F]`.

    Attributes:
        before: inputs of the activation function.
        after: neurons: outputs of the activation function; for gated FFNs the product that enters the second layer.
    """

    before: Tensor
    after: Tensor


@dataclass(frozen=True, eq=False)
class Similarity(Number):
    """ON, the overlap of two prompts' activated neurons (after > 0): a number from 0 to 1.

    Attributes:
        overlap: ON over all layers.
        layers: ON of each layer, first layer first.
    """

    backbone: str
    task1: str
    task2: str
    overlap: float
    layers: tuple[float, ...]

    NUMBER: ClassVar[str] = "overlap"


@dataclass(frozen=True, eq=False)
class MaskedScore(Number):
    """A prompt's score with masked neurons, a number; all scores are fractions.

    Attributes:
        value: score with the prompt's own most activated neurons masked.
        low, high: 95 % bootstrap interval over examples.
        n: number of examples.
        unmasked: score without a mask.
        random: mean score with random neurons masked, the same number per layer.
        baseline: score of the majority class, or of the text's lead for generation tasks.
        masked: number of masked neurons.
        table: one row per mask.
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
        """The loss of score by masking: unmasked - value."""
        return self.unmasked - self.value


class MaskedNeurons(NamedTuple):
    """A score with masked neurons, and the mask: bool `[L, F]`, True for masked neurons."""

    metric: MaskedScore
    mask: Tensor


@dataclass(frozen=True)
class Picture:
    """A figure file, displayed by notebooks.

    Attributes:
        path: the `.png` file.
    """

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()
