"""Methods of prompting, the values of `--model.method`: what is trained, how it starts, and how it is attached.

To add one, write a class here and add it to METHODS. In training, every prompt is a matrix `[P, W]` of one vector per
prompt token, which all reparameterizations understand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prompt_transfer.backbones.deep import from_vectors, to_vectors
from prompt_transfer.prompts.compatibility import Backbone
from prompt_transfer.prompts.initializers import Initializer
from prompt_transfer.prompts.prompt import DEEP_PROMPT, PROMPT
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.prompts.reparameterizations import Reparameterization

# Measured on SST-2: docs/pages/guide/deep_prompts.md.
DEEP_LEARNING_RATES = {"masked_lm": 0.03, "causal_lm": 0.03, "seq2seq_lm": 0.1}


class PromptMethod:
    """Embeddings `[P, H]` in front of the text (prompt tuning, Lester et al. 2021)."""

    name = PROMPT

    def attention(self, given: str) -> str:
        """Return the attention mode of the backbone, given the option."""
        return given

    def check(self, backbone: Backbone, reparameterization: Reparameterization) -> None:
        """Raise UserError if the method does not support the backbone or the reparameterization."""

    def learning_rate(self, backbone: Backbone) -> float:
        """Return the default learning rate with AdamW."""
        return float(backbone.family.learning_rate)

    def initial(
        self, init: Initializer, backbone: Backbone, length: int, generator: torch.Generator, words: Sequence[str]
    ) -> Tensor:
        """Return an initial prompt in the shape of the prompt file."""
        return init(backbone, (length, backbone.hidden_size), generator, words)

    def random(self, backbone: Backbone, length: int, number: int, draw: str = "vocabulary") -> Tensor:
        """Return random prompt `number` (see `random_prompt`) in the shape of the prompt file."""
        return random_prompt(backbone, (length, backbone.hidden_size), number, draw)

    def to_vectors(self, values: Tensor) -> Tensor:
        """Return a prompt as the matrix `[P, W]` that is trained."""
        return values

    def from_vectors(self, vectors: Tensor, backbone: Backbone) -> Tensor:
        """Return the matrix `[P, W]` in the shape of the prompt file, with its gradient."""
        return vectors


class DeepPromptMethod(PromptMethod):
    """Keys and values `[L, 2, P, K, D]` before those of every layer (prefix tuning, P-tuning v2).

    The trained values are the keys and values themselves: keys as they enter attention, after norms and rotary
    positions. Sources: Li & Liang 2021; Liu et al. 2022.
    """

    name = DEEP_PROMPT

    def attention(self, given: str) -> str:
        """Return `shared`: the keys and values of a deep prompt never depend on the text."""
        return "shared"

    def check(self, backbone: Backbone, reparameterization: Reparameterization) -> None:
        backbone.keys_values_shape(1)
        if not reparameterization.any_width:
            raise UserError(
                f"{type(reparameterization).__name__} mixes word embeddings, which a deep prompt does not consist of: "
                "choose the reparameterization Plain, LowRank or ResidualMLP"
            )

    def learning_rate(self, backbone: Backbone) -> float:
        return DEEP_LEARNING_RATES[backbone.family.kind]

    def initial(
        self, init: Initializer, backbone: Backbone, length: int, generator: torch.Generator, words: Sequence[str]
    ) -> Tensor:
        return init.keys_values(backbone, length, generator, words)

    def random(self, backbone: Backbone, length: int, number: int, draw: str = "vocabulary") -> Tensor:
        return backbone.keys_values(super().random(backbone, length, number, draw))

    def to_vectors(self, values: Tensor) -> Tensor:
        return to_vectors(values)

    def from_vectors(self, vectors: Tensor, backbone: Backbone) -> Tensor:
        return from_vectors(vectors, backbone.keys_values_shape(len(vectors)))


METHODS: dict[str, PromptMethod] = {method.name: method for method in (PromptMethod(), DeepPromptMethod())}


def get_method(name: str) -> PromptMethod:
    """Return a method by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
