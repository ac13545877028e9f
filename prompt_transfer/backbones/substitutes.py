"""Drop-in modules that share the weights of the modules they replace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import FastGELUActivation, NewGELUActivation


class OptionalEmbedding(nn.Embedding):
    """An embedding table that returns zeros for the id -1."""

    @classmethod
    def sharing(cls, table: nn.Embedding) -> OptionalEmbedding:
        """Create an embedding that shares the weights of `table`."""
        new = cls(table.num_embeddings, table.embedding_dim, _weight=table.weight, _freeze=True)
        new.weight = table.weight
        return new

    def forward(self, input: Tensor) -> Tensor:
        rows = functional.embedding(input.clamp_min(0), self.weight)
        return rows * (input >= 0).unsqueeze(-1)


class SelectedRows(nn.Linear):
    """The output layer of an LM head, restricted to some token ids inside `only(...)`, or to rows in `given(...)`."""

    token_ids: Tensor | None = None
    rows: tuple[Tensor, Tensor] | None = None

    @classmethod
    def sharing(cls, layer: nn.Linear) -> SelectedRows:
        """Create a layer that shares the weights of `layer`."""
        new = cls(1, 1, bias=False, device="meta")
        new.in_features, new.out_features = layer.in_features, layer.out_features
        new.weight, new.bias = layer.weight, layer.bias
        return new

    @contextmanager
    def only(self, token_ids: Tensor) -> Iterator[None]:
        """Compute only the logits of `token_ids` [U]."""
        self.token_ids = token_ids
        try:
            yield
        finally:
            self.token_ids = None

    @contextmanager
    def given(self, rows: Tensor, bias: Tensor) -> Iterator[None]:
        """Compute the logits [B, C] of given rows [B, C, H] with biases [B, C] in place of those of the layer."""
        self.rows = (rows, bias)
        try:
            yield
        finally:
            self.rows = None

    def forward(self, input: Tensor) -> Tensor:
        if self.rows is not None:
            rows, bias = self.rows
            return (rows @ input.unsqueeze(-1)).squeeze(-1) + bias
        if self.token_ids is None:
            return functional.linear(input, self.weight, self.bias)
        bias = None if self.bias is None else self.bias[self.token_ids]
        return functional.linear(input, self.weight[self.token_ids], bias)


def fuse_activations(model: nn.Module) -> None:
    """Replace the approximate GELU of GPT-2 and T5 v1.1 (eight kernels in transformers) with PyTorch's fused one."""
    names = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, (FastGELUActivation, NewGELUActivation))
    ]
    for name in names:
        replace(model, name, nn.GELU(approximate="tanh"))


def replace(model: nn.Module, path: str, new: nn.Module) -> None:
    """Replace the module at `path` of `model` with `new`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def path_of(model: nn.Module, module: nn.Module) -> str:
    """Return the path of `module` in `model`."""
    return next(name for name, candidate in model.named_modules() if candidate is module)
