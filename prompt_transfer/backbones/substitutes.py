"""Drop-in modules that share the weights of those they replace, so that no model code has to be copied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import FastGELUActivation, NewGELUActivation


class OptionalEmbedding(nn.Embedding):
    """An embedding table in which the id -1 stands for no embedding at all (a zero row)."""

    @classmethod
    def sharing(cls, table: nn.Embedding) -> OptionalEmbedding:
        new = cls(table.num_embeddings, table.embedding_dim, _weight=table.weight, _freeze=True)
        new.weight = table.weight
        return new

    def forward(self, input: Tensor) -> Tensor:
        rows = functional.embedding(input.clamp_min(0), self.weight)
        return rows * (input >= 0).unsqueeze(-1)


class SelectedRows(nn.Linear):
    """The output layer of an LM head, restricted to some vocabulary rows inside `only(...)`."""

    token_ids: Tensor | None = None

    @classmethod
    def sharing(cls, layer: nn.Linear) -> SelectedRows:
        new = cls(1, 1, bias=False, device="meta")
        new.in_features, new.out_features = layer.in_features, layer.out_features
        new.weight, new.bias = layer.weight, layer.bias
        return new

    @contextmanager
    def only(self, token_ids: Tensor) -> Iterator[None]:
        """Compute the logits of `token_ids` [U] alone."""
        self.token_ids = token_ids
        try:
            yield
        finally:
            self.token_ids = None

    def forward(self, input: Tensor) -> Tensor:
        if self.token_ids is None:
            return functional.linear(input, self.weight, self.bias)
        bias = None if self.bias is None else self.bias[self.token_ids]
        return functional.linear(input, self.weight[self.token_ids], bias)


def fuse_activations(model: nn.Module) -> None:
    """One kernel for the approximation of GELU that GPT-2 and T5 v1.1 have, which the library writes as eight."""
    found = [
        name
        for name, part in model.named_modules(remove_duplicate=False)
        if isinstance(part, (FastGELUActivation, NewGELUActivation))
    ]
    for name in found:
        replace(model, name, nn.GELU(approximate="tanh"))


def replace(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` where the module `path` of `model` is."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def path_of(model: nn.Module, module: nn.Module) -> str:
    """The path of `module` inside `model`."""
    return next(name for name, candidate in model.named_modules() if candidate is module)
