"""Projectors: maps from the prompts of a source backbone to prompts of a target backbone.

All have one shape: `forward` takes prompts [N, P, H] of the source and gives prompts [N, P', H'] of the target. Options
are known before the sizes, hence two steps: `MLP(768).build(source, target, generator)`. What is trained is in
parameters; what stays is in buffers; both go into the projector file.

Shape letters: N prompts, P and P' prompt tokens, H and H' hidden of source and target, R the width of a hidden layer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from prompt_transfer.utils.errors import UserError

Number = TypeVar("Number", int, float)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": functional.leaky_relu,
    "tanh": torch.tanh,
    "relu": functional.relu,
    "gelu": functional.gelu,
}
STARTS = ("random", "least_squares")
# What a small network adds to a linear map at first, as a part of what it would add with usual weights: little enough
# to start at the map, and not 0, behind which no gradient would come to its first layer.
SMALL = 0.01


class Space(NamedTuple):
    """The sizes of the prompts of a backbone: P rows of H numbers."""

    prompt_length: int
    hidden_size: int


class AffineMap(NamedTuple):
    """Rows x -> x @ weight + bias; weight [H, H'], bias [H'], float32."""

    weight: Tensor
    bias: Tensor


class Projector(nn.Module, ABC):
    """Maps prompts [N, P, H] to prompts [N, P', H'].

    Attributes:
        whole: whether a prompt is mapped as a whole, with a length of its own; else row by row, whatever its length.
        named_options: names of the options of the class, which are attributes too.
    """

    whole = False
    named_options: tuple[str, ...] = ()

    @abstractmethod
    def allocate(self, source: Space, target: Space) -> None:
        """Make parameters and buffers of the right sizes, with any numbers."""

    @abstractmethod
    def forward(self, prompts: Tensor) -> Tensor:
        """Prompts of the target, float32 [N, P', H'] also under autocast, of prompts [N, P, H] of the source."""

    @property
    def is_built(self) -> bool:
        """Whether its sizes are known."""
        return bool(self.state_dict())

    def options(self) -> dict[str, Any]:
        """Its options as plain values."""
        return {name: getattr(self, name) for name in self.named_options}

    def describe(self) -> str:
        """One line for metadata: the class and its options."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options().items())})"


class TrainedProjector(Projector):
    """A projector whose parameters are trained.

    Args:
        standardize: subtract the mean of the prompts that it is trained on (of each row where a prompt is mapped as a
            whole, else one of all rows) and divide by the standard deviation of what is left. Prompts of one start
            differ little, and a network that is fed what they have in common gives the same prompt for all.
    """

    shift: Tensor
    scale: Tensor
    # Whether what is subtracted is the common start of the prompts, and not their mean.
    wants_initial = False

    def __init__(self, standardize: bool = False) -> None:
        super().__init__()
        self.standardize = standardize

    @property
    def wants_start(self) -> bool:
        """Whether it starts from the least-squares map between the two vocabularies."""
        return getattr(self, "start", "random") == "least_squares"

    def build(
        self,
        source: Space,
        target: Space,
        generator: torch.Generator,
        prompts: Tensor | None = None,
        start: AffineMap | None = None,
        initial: Tensor | None = None,
    ) -> TrainedProjector:
        """Create the parameters; building again starts again.

        Args:
            source, target: sizes of the prompts on both sides.
            generator: a CPU generator, the only source of randomness.
            prompts: [N, P, H], those that it will be trained on; needed to standardize.
            start: the map to start from where `wants_start`.
            initial: [P, H], the numbers that the prompts began with, where `wants_initial`.

        Returns:
            The module itself.
        """
        self.allocate(source, target)
        with torch.no_grad():
            if self.standardize:
                if prompts is None:
                    raise ValueError("standardize needs the prompts that the projector is trained on")
                common = prompts.mean(dim=0) if self.whole else prompts.mean(dim=(0, 1)).unsqueeze(0)
                if self.wants_initial:
                    if initial is None:
                        raise ValueError("the projector needs the numbers that the prompts began with")
                    common = initial
                self.shift.copy_(common)
                # A single prompt leaves nothing over: it is then its mean, and its own size is as good as any.
                rest = (prompts - common).square().mean().sqrt()
                self.scale.fill_(rest if rest > 1e-6 * prompts.square().mean().sqrt() else 1.0)
            self.fill(generator, start)
        return self

    def allocate(self, source: Space, target: Space) -> None:
        if self.standardize:
            self.register_buffer("shift", torch.empty(source.prompt_length if self.whole else 1, source.hidden_size))
            self.register_buffer("scale", torch.empty(1))
        self.make(source, target)

    @abstractmethod
    def make(self, source: Space, target: Space) -> None:
        """Make the parameters."""

    @abstractmethod
    def fill(self, generator: torch.Generator, start: AffineMap | None) -> None:
        """Give the parameters their first numbers."""

    @abstractmethod
    def map(self, inputs: Tensor) -> Tensor:
        """Prompts of the target of standardized prompts [N, P, H]."""

    def forward(self, prompts: Tensor) -> Tensor:
        with _float32(prompts):
            prompts = prompts.float()
            return self.map((prompts - self.shift) / self.scale if self.standardize else prompts)

    def _on_inputs(self, start: AffineMap) -> AffineMap:
        """The same map for standardized rows."""
        if not self.standardize:
            return start
        return AffineMap(start.weight * self.scale, start.bias + self.shift[0] @ start.weight)


class MLP(TrainedProjector):
    """The projector of Su et al.: the whole prompt through a narrow layer, then a LayerNorm of each row.

    up(activation(down(vec(prompt)))), [P H] -> R -> [P' H']. P H R + R + R P' H' + P' H' numbers are trained, and 2 H'
    more with layer_norm. Release 1.0 has R 768 (512 for T5-XXL), LeakyReLU or Tanh.

    Args:
        bottleneck: R, the width of the hidden layer.
        activation: leaky_relu, tanh, relu or gelu.
        layer_norm: normalise each row of the result.
        norm_weight: weight of the LayerNorm at first: the standard deviation of the prompts that it gives.
        weight_std: draw the weights from N(0, weight_std) (release 1.0 for T5: 1); null: as nn.Linear draws them.
        standardize: see TrainedProjector.
    """

    whole = True
    named_options = ("bottleneck", "activation", "layer_norm", "norm_weight", "weight_std", "standardize")

    def __init__(
        self,
        bottleneck: int = 768,
        activation: str = "leaky_relu",
        layer_norm: bool = True,
        norm_weight: float = 1.0,
        weight_std: float | None = None,
        standardize: bool = False,
    ) -> None:
        super().__init__(standardize)
        self.bottleneck = positive("MLP", "bottleneck", bottleneck)
        self.activation = _known("MLP", "activation", activation, ACTIVATIONS)
        self.layer_norm = layer_norm
        self.norm_weight = positive("MLP", "norm_weight", norm_weight)
        self.weight_std = weight_std if weight_std is None else positive("MLP", "weight_std", weight_std)

    def make(self, source: Space, target: Space) -> None:
        before, behind = math.prod(source), math.prod(target)
        self.target = target
        self.down, self.down_bias = _empty(self.bottleneck, before), _empty(self.bottleneck)
        self.up, self.up_bias = _empty(behind, self.bottleneck), _empty(behind)
        if self.layer_norm:
            self.norm, self.norm_bias = _empty(target.hidden_size), _empty(target.hidden_size)

    def fill(self, generator: torch.Generator, start: AffineMap | None) -> None:
        for weight, bias in ((self.down, self.down_bias), (self.up, self.up_bias)):
            if self.weight_std is None:
                _like_linear(weight, bias, generator)
            else:
                weight.normal_(0.0, self.weight_std, generator=generator)
                _uniform(bias, weight.shape[1], generator)
        if self.layer_norm:
            self.norm.fill_(self.norm_weight)
            self.norm_bias.zero_()

    def map(self, inputs: Tensor) -> Tensor:
        hidden = ACTIVATIONS[self.activation](functional.linear(inputs.flatten(1), self.down, self.down_bias))
        rows = functional.linear(hidden, self.up, self.up_bias).view(-1, *self.target)
        return functional.layer_norm(rows, rows.shape[-1:], self.norm, self.norm_bias) if self.layer_norm else rows


class TokenMLP(TrainedProjector):
    """A small network that all rows of the prompt share; with `skip` on top of a linear map.

    skip(x) + up(activation(down(x))), H -> R -> H'. H R + R + R H' + H' numbers are trained, and H H' more with skip.
    Without skip it has the shape of Lester et al.'s v2v-nn (R = 4 H', ReLU).

    Args:
        bottleneck: R, the width of the hidden layer.
        activation: relu, leaky_relu, tanh or gelu.
        skip: add a linear map of the row.
        start: of the linear map: random, or least_squares between the vocabularies of the two backbones.
        standardize: see TrainedProjector.
    """

    named_options = ("bottleneck", "activation", "skip", "start", "standardize")

    def __init__(
        self,
        bottleneck: int = 256,
        activation: str = "relu",
        skip: bool = True,
        start: str = "random",
        standardize: bool = False,
    ) -> None:
        super().__init__(standardize)
        self.bottleneck = positive("TokenMLP", "bottleneck", bottleneck)
        self.activation = _known("TokenMLP", "activation", activation, ACTIVATIONS)
        self.skip = skip
        self.start = _known("TokenMLP", "start", start, STARTS)
        if self.wants_start and not skip:
            raise UserError("projector TokenMLP: start least_squares is that of its linear map: set skip to true")

    def make(self, source: Space, target: Space) -> None:
        self.down, self.down_bias = _empty(self.bottleneck, source.hidden_size), _empty(self.bottleneck)
        self.up, self.up_bias = _empty(target.hidden_size, self.bottleneck), _empty(target.hidden_size)
        if self.skip:
            self.weight = _empty(source.hidden_size, target.hidden_size)

    def fill(self, generator: torch.Generator, start: AffineMap | None) -> None:
        _like_linear(self.down, self.down_bias, generator)
        _like_linear(self.up, self.up_bias, generator)
        if not self.skip:
            return
        _uniform(self.weight, self.weight.shape[0], generator)
        if start is not None:
            start = self._on_inputs(start)
            self.weight.copy_(start.weight)
            self.up.mul_(SMALL)
            self.up_bias.copy_(start.bias)

    def map(self, inputs: Tensor) -> Tensor:
        hidden = ACTIVATIONS[self.activation](functional.linear(inputs, self.down, self.down_bias))
        added = functional.linear(hidden, self.up, self.up_bias)
        return inputs @ self.weight + added if self.skip else added


class Linear(TrainedProjector):
    """One affine map of each row of the prompt: H H' + H' numbers are trained.

    Args:
        start: random, or least_squares between the vocabularies of the two backbones.
        standardize: see TrainedProjector.
    """

    named_options = ("start", "standardize")

    def __init__(self, start: str = "random", standardize: bool = False) -> None:
        super().__init__(standardize)
        self.start = _known("Linear", "start", start, STARTS)

    def make(self, source: Space, target: Space) -> None:
        self.weight, self.bias = _empty(source.hidden_size, target.hidden_size), _empty(target.hidden_size)

    def fill(self, generator: torch.Generator, start: AffineMap | None) -> None:
        _uniform(self.weight, self.weight.shape[0], generator)
        _uniform(self.bias, self.weight.shape[0], generator)
        if start is not None:
            start = self._on_inputs(start)
            self.weight.copy_(start.weight)
            self.bias.copy_(start.bias)

    def map(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.bias


def _empty(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*sizes))


def _like_linear(weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    # The range of nn.Linear, whose own constructor would draw from the global generator.
    _uniform(weight, weight.shape[1], generator)
    _uniform(bias, weight.shape[1], generator)


def _uniform(values: Tensor, inputs: int, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(inputs)
    values.uniform_(-bound, bound, generator=generator)


def _float32(tensor: Tensor) -> AbstractContextManager:
    return torch.autocast(tensor.device.type, enabled=False)


def positive(name: str, option: str, value: Number) -> Number:
    """`value`, or a UserError where it is not above 0."""
    if not value > 0:
        raise UserError(f"projector {name}: {option} is {value}; it must be above 0")
    return value


def _known(name: str, option: str, value: str, allowed: Any) -> str:
    if value not in allowed:
        raise UserError(f"projector {name}: unknown {option} {value!r}: choose one of {', '.join(allowed)}")
    return value
