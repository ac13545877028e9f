"""What is trained instead of the prompt itself: modules whose `forward()` is the prompt `[P, H]`.

Each starts exactly at the initial prompt and folds into a plain prompt on export, so no later use of the prompt needs
to know which one it was. Options are known before the prompt, hence two steps: `ResidualMLP(64).build(initial, ...)`.
Parameters are what is trained; buffers are constants that a checkpoint needs to go on.
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
    """Makes the prompt `[P, H]` from its own parameters."""

    @abstractmethod
    def build(self, initial: Tensor, backbone: Backbone, generator: torch.Generator) -> Reparameterization:
        """Create the parameters, so that `forward()` is `initial`, bit for bit.

        Building again starts again: parameters that were trained are lost.

        Args:
            initial: the initial prompt, float32 `[P, H]`; it is copied.
            backbone: the backbone it is for (Superposition takes embeddings from it).
            generator: a CPU generator, the only source of randomness.

        Returns:
            The module itself.
        """

    @abstractmethod
    def forward(self) -> Tensor:
        """The prompt, float32 `[P, H]` also under autocast, with gradients to the parameters."""

    @property
    def is_built(self) -> bool:
        """Whether `build` has made the parameters."""
        return any(True for _ in self.parameters())

    @torch.no_grad()
    def fold(self) -> Tensor:
        """The prompt as a plain tensor `[P, H]` that shares nothing with the parameters."""
        return self().detach().clone()

    def describe(self) -> str:
        """One line for the metadata of the prompt: the class and its options."""
        return f"{type(self).__name__}({self.extra_repr()})"


class Plain(Reparameterization):
    """The prompt itself is the parameter: P * H numbers are trained."""

    def build(self, initial: Tensor, backbone: Backbone, generator: torch.Generator) -> Plain:
        self.prompt = _parameter(initial)
        return self

    def forward(self) -> Tensor:
        return self.prompt


class ResidualMLP(Reparameterization):
    """The prompt plus a small network of itself that all rows share: P + up(relu(down(P))).

    Residual prompt tuning (Razdaibiedina et al. 2023). P is trained as well: P * H + 2 * H * bottleneck numbers, and
    2 * H more with layer_norm. There are no biases. `up` starts at zero; with layer_norm its scale and shift do.

    Args:
        bottleneck: width of the hidden layer.
        layer_norm: normalise what the network adds (the paper does, its code's default does not).
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
            # A zero `up` would sit where the norm is singular, and behind a zero scale it would never move.
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
    """Every row is a learnt mixture of the same sampled vocabulary embeddings E `[M, H]`, plus a constant.

    SuperPos-Prompt (SadraeiJavaeri et al. 2024). The mixture weights W `[P, M]` are trained: P * num_embeddings
    numbers. W starts at the ridge solution W0 of W E = initial, and what that leaves over stays a constant offset:
    the prompt is W E + (initial - W0 E), computed as initial + (W - W0) E, which is exact at the first step. So only
    directions in the span of E are learnt, and weight decay pulls W, not the prompt, towards zero.

    Args:
        num_embeddings: M, how many embeddings are mixed; from about 128 on, more help little.
        top_k: how many tokens they are drawn from; 0 for all. See the initializer `Vocabulary`.
    """

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
                "from; take fewer, or a larger top_k"
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
    """The initial prompt plus a learnt matrix of low rank: initial + U V, U `[P, rank]`, V `[rank, H]`.

    rank * (P + H) numbers are trained. V starts at zero, U normal with variance 1 / rank, so that a step of V moves a
    row about as far as the same step moves a row of Plain.

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
                f"LowRank: rank {self.rank} is above the size of the prompt, {length} x {width}; take a smaller rank"
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
    # The range of nn.Linear, whose own constructor would draw from the global generator.
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(shape[1])


def _ridge(targets: Tensor, rows: Tensor) -> Tensor:
    """Weights `[P, M]` with weights @ rows [M, H] near targets [P, H], lightly regularised."""
    rows, targets = rows.double(), targets.double()
    gram = rows @ rows.T
    # Without it, more embeddings than dimensions would give no unique, and nearly equal ones huge weights.
    penalty = 1e-3 * gram.diagonal().mean().clamp_min(1e-12)
    return torch.linalg.solve(gram + penalty * torch.eye(len(rows)).double(), rows @ targets.T).T.float().contiguous()


def _float32(parameter: Tensor) -> AbstractContextManager:
    return torch.autocast(parameter.device.type, enabled=False)


def _positive(name: str, option: str, value: int) -> int:
    if value < 1:
        raise UserError(f"{name}: {option} is {value}; it must be 1 or more")
    return value
