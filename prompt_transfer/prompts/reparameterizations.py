"""Reparameterizations of a prompt: modules whose `forward()` returns the prompt `[P, H]`.

Each starts exactly at the initial prompt and folds into a plain prompt on export, so users of the prompt never need to
know which one trained it. Options are known before the initial prompt, hence two steps:
`ResidualMLP(64).build(initial, ...)`. Parameters are trained; buffers are constants that resuming needs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from prompt_transfer.prompts.initializers import draw, embedding_rows, vocabulary_ids
from prompt_transfer.prompts.prompt import Backbone
from prompt_transfer.utils.errors import UserError


class Reparameterization(nn.Module, ABC):
    """Module that computes the prompt `[P, H]` from its parameters; of a deep prompt the vectors `[P, W]`.

    Attributes:
        any_width: whether the rows may be other vectors than embeddings.
    """

    any_width = True

    @abstractmethod
    def build(self, initial: Tensor, backbone: Backbone, generator: torch.Generator) -> Reparameterization:
        """Create the parameters; `forward()` is then bit-equal to `initial`.

        Calling it again resets trained parameters.

        Args:
            initial: the initial prompt, float32 `[P, H]`; it is copied.
            backbone: the backbone that the prompt is for (Superposition samples its embeddings).
            generator: a CPU generator, the only source of randomness.

        Returns:
            The module itself.
        """

    @abstractmethod
    def forward(self) -> Tensor:
        """Return the prompt, float32 `[P, H]` even under autocast, with gradients to the parameters."""

    @property
    def is_built(self) -> bool:
        """Whether `build` has created the parameters."""
        return any(True for _ in self.parameters())

    @torch.no_grad()
    def fold(self) -> Tensor:
        """Return the prompt as a plain tensor `[P, H]` that shares no memory with the parameters."""
        return self().detach().clone()

    def describe(self) -> str:
        """Return the class and its options in one line, for the prompt's metadata."""
        return f"{type(self).__name__}({self.extra_repr()})"


class Plain(Reparameterization):
    """The prompt itself as the parameter: P * H values are trained."""

    def build(self, initial: Tensor, backbone: Backbone, generator: torch.Generator) -> Plain:
        self.prompt = _parameter(initial)
        return self

    def forward(self) -> Tensor:
        return self.prompt


class ResidualMLP(Reparameterization):
    """Residual prompt tuning: P + up(relu(down(P))), with one network for all prompt tokens.

    Source: Razdaibiedina et al. 2023. P is trained too: P * H + 2 * H * bottleneck values, and 2 * H more with
    layer_norm. There are no biases. `up` is initialized with zeros, or scale and shift with layer_norm.

    Args:
        bottleneck: width of the hidden layer.
        layer_norm: normalise the network's output (the paper does, its code's default does not).
    """

    def __init__(self, bottleneck: int = 64, layer_norm: bool = False) -> None:
        super().__init__()
        self.bottleneck = _positive("ResidualMLP", "bottleneck", bottleneck)
        self.layer_norm = layer_norm

    def build(self, initial: Tensor, backbone: Backbone, generator: torch.Generator) -> ResidualMLP:
        width = initial.shape[1]
        self.prompt = _parameter(initial)
        self.down = _parameter(_uniform((self.bottleneck, width), generator))
        up = _uniform((width, self.bottleneck), generator)
        if self.layer_norm:
            # Layer norm is singular at a zero output, and with a zero scale a zero `up` would get no gradient.
            self.up = _parameter(up)
            self.scale = _parameter(torch.zeros(width))
            self.shift = _parameter(torch.zeros(width))
        else:
            self.up = _parameter(torch.zeros_like(up))
        return self

    def forward(self) -> Tensor:
        with _float32(self.prompt):
            added = functional.linear(functional.relu(functional.linear(self.prompt, self.down)), self.up)
            if self.layer_norm:
                added = functional.layer_norm(added, added.shape[-1:], self.scale, self.shift)
            return self.prompt + added

    def extra_repr(self) -> str:
        return f"bottleneck={self.bottleneck}, layer_norm={self.layer_norm}"


class Superposition(Reparameterization):
    """Learned mixtures of sampled vocabulary embeddings E `[M, H]`, plus a constant offset.

    Source: SuperPos-Prompt (SadraeiJavaeri et al. 2024). The mixture weights W `[P, M]` are trained:
    P * num_embeddings values. W starts at the ridge solution W0 of W E = initial, and the residual remains as a
    constant offset: the prompt is W E + (initial - W0 E), computed as initial + (W - W0) E, which is exact at the
    first step. Only directions in the span of E are learned, and weight decay acts on W, not on the prompt.

    Args:
        num_embeddings: M, the number of embeddings to mix; more than about 128 helps little.
        top_k: number of tokens to draw them from; 0 for all. See the initializer `Vocabulary`.
    """

    any_width = False
    embeddings: Tensor
    start: Tensor
    initial: Tensor

    def __init__(self, num_embeddings: int = 128, top_k: int = 5000) -> None:
        super().__init__()
        self.num_embeddings = _positive("Superposition", "num_embeddings", num_embeddings)
        self.top_k = top_k

    def build(self, initial: Tensor, backbone: Backbone, generator: torch.Generator) -> Superposition:
        ids = vocabulary_ids(backbone, self.top_k)
        if len(ids) < self.num_embeddings:
            raise UserError(
                f"Superposition: num_embeddings is {self.num_embeddings}, but there are only {len(ids)} tokens to draw "
                "from; use fewer, or a larger top_k"
            )
        embeddings = embedding_rows(backbone, draw(ids, self.num_embeddings, generator))
        start = _ridge(initial.detach().cpu(), embeddings)
        self.weights = _parameter(start)
        for name, value in (("embeddings", embeddings), ("start", start), ("initial", initial.detach().clone())):
            self.register_buffer(name, value)
        return self

    def forward(self) -> Tensor:
        with _float32(self.weights):
            return self.initial + (self.weights - self.start) @ self.embeddings

    def extra_repr(self) -> str:
        return f"num_embeddings={self.num_embeddings}, top_k={self.top_k}"


class LowRank(Reparameterization):
    """The initial prompt plus a learned low-rank matrix: initial + U V, U `[P, rank]`, V `[rank, H]`.

    rank * (P + H) values are trained. V is initialized with zeros and U from a normal with variance 1 / rank: a step
    of V then moves a prompt token about as far as the same step does with Plain.

    Args:
        rank: the rank, at most P and H.
    """

    initial: Tensor

    def __init__(self, rank: int = 8) -> None:
        super().__init__()
        self.rank = _positive("LowRank", "rank", rank)

    def build(self, initial: Tensor, backbone: Backbone, generator: torch.Generator) -> LowRank:
        length, width = initial.shape
        if self.rank > min(length, width):
            raise UserError(
                f"LowRank: rank {self.rank} is above the size of the prompt, {length} x {width}; use a smaller rank"
            )
        self.u = _parameter(torch.randn(length, self.rank, generator=generator) / math.sqrt(self.rank))
        self.v = _parameter(torch.zeros(self.rank, width))
        self.register_buffer("initial", initial.detach().clone())
        return self

    def forward(self) -> Tensor:
        with _float32(self.u):
            return self.initial + self.u @ self.v

    def extra_repr(self) -> str:
        return f"rank={self.rank}"


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone())


def _uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    # The range of nn.Linear, whose constructor draws from the global generator.
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(shape[1])


def _ridge(targets: Tensor, rows: Tensor) -> Tensor:
    """Solve weights `[P, M]` @ rows `[M, H]` = targets `[P, H]` by lightly regularised least squares."""
    rows, targets = rows.double(), targets.double()
    gram = rows @ rows.T
    # Keeps weights unique with more embeddings than dimensions, and small with nearly equal embeddings.
    penalty = 1e-3 * gram.diagonal().mean().clamp_min(1e-12)
    return torch.linalg.solve(gram + penalty * torch.eye(len(rows)).double(), rows @ targets.T).T.float().contiguous()


def _float32(parameter: Tensor) -> AbstractContextManager:
    return torch.autocast(parameter.device.type, enabled=False)


def _positive(name: str, option: str, value: int) -> int:
    if value < 1:
        raise UserError(f"{name}: {option} is {value}; it must be 1 or more")
    return value
