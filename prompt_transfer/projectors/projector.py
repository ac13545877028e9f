"""Projectors: maps from prompts of a source backbone to prompts of a target backbone.

`forward` maps prompts `[N, P, H]` of the source to prompts `[N, P', H']` of the target. Options are known before the
sizes, hence two steps: `MLP(768).build(source, target, generator)`. Trained values are parameters, constants are
buffers; the projector file holds both.

Shape letters: N prompts, P and P' prompt tokens, H and H' hidden of source and target, R width of the hidden layer.
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
# Initial scale of the network added to a linear map: small enough to start near the map, but not 0, which would
# block the gradient of the first layer.
SMALL = 0.01


class Space(NamedTuple):
    """The shape of a backbone's prompts: P prompt tokens of width H."""

    prompt_length: int
    hidden_size: int


class AffineMap(NamedTuple):
    """The map x -> x @ weight + bias of prompt tokens; weight `[H, H']`, bias `[H']`, float32."""

    weight: Tensor
    bias: Tensor


class Projector(nn.Module, ABC):
    """Module that maps prompts `[N, P, H]` to prompts `[N, P', H']`.

    Attributes:
        whole: whether it maps a prompt of fixed length as a whole; otherwise each prompt token separately.
        named_options: names of the class's options, which are also attributes.
    """

    whole = False
    named_options: tuple[str, ...] = ()

    @abstractmethod
    def allocate(self, source: Space, target: Space) -> None:
        """Create parameters and buffers of the right sizes, without setting values."""

    @abstractmethod
    def forward(self, prompts: Tensor) -> Tensor:
        """Map source prompts `[N, P, H]` to target prompts, float32 `[N, P', H']` even under autocast."""

    @property
    def is_built(self) -> bool:
        """Whether parameters and buffers exist."""
        return bool(self.state_dict())

    def options(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return {name: getattr(self, name) for name in self.named_options}

    def describe(self) -> str:
        """Return the class and its options in one line, for metadata."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options().items())})"


class TrainedProjector(Projector):
    """Projector with trained parameters.

    Args:
        standardize: subtract the mean of the training prompts (per prompt token if a prompt is mapped as a whole, else
            over all prompt tokens) and divide by the standard deviation of the differences. Prompts with the same
            initial prompt differ little, and a network fed their common part returns the same prompt for all.
    """

    shift: Tensor
    scale: Tensor
    # Whether to subtract the common initial prompt instead of the mean.
    wants_initial = False

    def __init__(self, standardize: bool = False) -> None:
        super().__init__()
        self.standardize = standardize

    @property
    def wants_start(self) -> bool:
        """Whether it is initialized from the least-squares map between the two vocabularies."""
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
        """Create and initialize the parameters; calling it again resets them.

        Args:
            source, target: shapes of the prompts of both backbones.
            generator: a CPU generator, the only source of randomness.
            prompts: training prompts `[N, P, H]`; needed to standardize.
            start: the map to start from, if `wants_start`.
            initial: the prompts' common initial prompt `[P, H]`, if `wants_initial`.

        Returns:
            The module itself.
        """
        self.allocate(source, target)
        with torch.no_grad():
            if self.standardize:
                if prompts is None:
                    raise ValueError("standardize needs the training prompts")
                common = prompts.mean(dim=0) if self.whole else prompts.mean(dim=(0, 1)).unsqueeze(0)
                if self.wants_initial:
                    if initial is None:
                        raise ValueError("the projector needs the initial prompt")
                    common = initial
                self.shift.copy_(common)
                # A single prompt equals its mean: keep its scale instead of dividing by 0.
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
        """Create the parameters."""

    @abstractmethod
    def fill(self, generator: torch.Generator, start: AffineMap | None) -> None:
        """Initialize the parameters."""

    @abstractmethod
    def map(self, inputs: Tensor) -> Tensor:
        """Map standardized prompts `[N, P, H]` to target prompts."""

    def forward(self, prompts: Tensor) -> Tensor:
        with _float32(prompts):
            prompts = prompts.float()
            return self.map((prompts - self.shift) / self.scale if self.standardize else prompts)

    def _on_inputs(self, start: AffineMap) -> AffineMap:
        """Return the equivalent map for standardized inputs."""
        if not self.standardize:
            return start
        return AffineMap(start.weight * self.scale, start.bias + self.shift[0] @ start.weight)


class MLP(TrainedProjector):
    """The projector of Su et al.: a bottleneck network over the whole prompt, then LayerNorm per prompt token.

    up(activation(down(vec(prompt)))), `[P H]` -> R -> `[P' H']`. P H R + R + R P' H' + P' H' values are trained, and
    2 H' more with layer_norm. Release 1.0 uses R 768 (512 for T5-XXL) with LeakyReLU or Tanh.

    Args:
        bottleneck: R, the width of the hidden layer.
        activation: leaky_relu, tanh, relu or gelu.
        layer_norm: normalise each prompt token of the output.
        norm_weight: initial LayerNorm weight, and therefore the initial standard deviation of the output.
        weight_std: standard deviation of the initial weights (release 1.0 for T5: 1); null initializes as nn.Linear.
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
        inputs, outputs = math.prod(source), math.prod(target)
        self.target = target
        self.down, self.down_bias = _empty(self.bottleneck, inputs), _empty(self.bottleneck)
        self.up, self.up_bias = _empty(outputs, self.bottleneck), _empty(outputs)
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
    """A small network applied to every prompt token, added to a linear map with `skip`.

    skip(x) + up(activation(down(x))), H -> R -> H'. H R + R + R H' + H' values are trained, and H H' more with skip.
    Without skip it has the architecture of Lester et al.'s v2v-nn (R = 4 H', ReLU).

    Args:
        bottleneck: R, the width of the hidden layer.
        activation: relu, leaky_relu, tanh or gelu.
        skip: add a linear map of the prompt token.
        start: initial linear map: random, or least_squares between the two backbones' vocabularies.
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
            raise UserError("projector TokenMLP: start least_squares needs its linear map: set skip to true")

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
    """One affine map of every prompt token: H H' + H' values are trained.

    Args:
        start: initial map: random, or least_squares between the two backbones' vocabularies.
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
    # The range of nn.Linear, whose constructor draws from the global generator.
    _uniform(weight, weight.shape[1], generator)
    _uniform(bias, weight.shape[1], generator)


def _uniform(values: Tensor, inputs: int, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(inputs)
    values.uniform_(-bound, bound, generator=generator)


def _float32(tensor: Tensor) -> AbstractContextManager:
    return torch.autocast(tensor.device.type, enabled=False)


def positive(name: str, option: str, value: Number) -> Number:
    """Return `value`, or raise UserError if it is not above 0."""
    if not value > 0:
        raise UserError(f"projector {name}: {option} is {value}; it must be above 0")
    return value


def _known(name: str, option: str, value: str, allowed: Any) -> str:
    if value not in allowed:
        raise UserError(f"projector {name}: unknown {option} {value!r}: choose one of {', '.join(allowed)}")
    return value
