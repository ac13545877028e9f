"""What the vocabularies of two backbones have in common, and the linear map between their embeddings.

Shape letters: V shared tokens, H and H' hidden of source and target.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.projectors.projector import AffineMap
from prompt_transfer.prompts.initializers import embedding_rows, vocabulary_ids
from prompt_transfer.prompts.prompt import Backbone
from prompt_transfer.utils.errors import UserError

# Ridge penalties that are tried, as shares of the mean square of an embedding's number summed over tokens.
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 10  # every tenth token chooses the penalty


@dataclass(frozen=True)
class SharedTokens:
    """Tokens that two vocabularies share, in the order of the source's ids (about that of frequency).

    Attributes:
        source, target: float32 embeddings [V, H] and [V, H'] on the CPU.
        texts: V texts, those that start a word with a blank before them.
    """

    source: Tensor = field(repr=False)
    target: Tensor = field(repr=False)
    texts: list[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.texts)


def shared_tokens(source: Backbone, target: Backbone, top_k: int = 0, skip: int = 0) -> SharedTokens:
    """Ordinary tokens that stand for the same text in both vocabularies.

    Byte-level BPE, WordPiece and SentencePiece mark the start of a word differently; here it is a blank.

    Args:
        source, target: the backbones.
        top_k: how many shared tokens to take; 0: all. Lester et al. take 4,000 English words.
        skip: how many of the first to leave out (Lester et al.: 1,000).

    Raises:
        UserError: fewer than the source's H are left: directions of its space would be mapped to nothing.
    """
    ids, others = _texts(source), _texts(target)
    both = [text for text in ids if text in others]
    chosen = both[skip : skip + top_k if top_k else None]
    if len(chosen) < source.hidden_size:
        left = "" if len(chosen) == len(both) else f", of which skip {skip} and top_k {top_k} leave {len(chosen)}"
        raise UserError(
            f"the vocabularies of {source.id} and {target.id} share {len(both)} tokens{left}; a map of {source.id} "
            f"needs {source.hidden_size}, one for each dimension of its embeddings: train a projector in its place "
            "(prompt-transfer fit --model CrossModelProjector)"
        )
    return SharedTokens(
        embedding_rows(source, [ids[text] for text in chosen]),
        embedding_rows(target, [others[text] for text in chosen]),
        chosen,
    )


def _texts(backbone: Backbone) -> dict[str, int]:
    """Text -> id of the ordinary tokens, in the order of ids; of two tokens with one text the first."""
    tokenizer = backbone.tokenizer
    ids = vocabulary_ids(backbone, 0)
    tokens: list[str] = tokenizer.convert_ids_to_tokens(ids)
    pieces = any(token.startswith("##") for token in tokens) and not any(token.startswith("Ġ") for token in tokens)
    found: dict[str, int] = {}
    for index, token in zip(ids, tokens, strict=True):
        text = _word_piece(token) if pieces else _spaced(token, tokenizer)
        if text.strip():
            found.setdefault(text, index)
    return found


def _word_piece(token: str) -> str:
    if token.startswith("##"):
        return token[2:]
    # Punctuation stands for itself there, whether a blank comes before it or not.
    return f" {token}" if token[0].isalnum() else token


def _spaced(token: str, tokenizer: Any) -> str:
    if token.startswith("▁"):
        return f" {token[1:]}"
    return tokenizer.convert_tokens_to_string([token])


@dataclass(frozen=True)
class RidgeFit:
    """A map and how well it does on tokens that it was not fitted on.

    Attributes:
        affine: fitted on all tokens.
        ridge: the penalty.
        error: on held-out tokens, squared error over that of their mean: 0 is perfect, 1 no better than the mean.
    """

    affine: AffineMap
    ridge: float
    error: float


def fit_ridge(source: Tensor, target: Tensor, ridge: float | None = None, center: bool = False) -> RidgeFit:
    """The map x -> x W + b with the least squared error between two tables of embeddings.

    With penalty r, W = (S'S + r m I)^-1 S'T, m the mean of S'S's diagonal. It is also the map of the minimum-norm
    linear combinations: weights X of embeddings with least |X S - P|^2 + r m |X|^2 give X T = P W, since
    S'(SS' + c I)^-1 = (S'S + c I)^-1 S'. So "least squares" and "linear combination" of Lester et al. (2022) are one
    solver here, and differ by the penalty alone. Penalty 0 is the pseudo-inverse.

    Args:
        source, target: [V, H] and [V, H'].
        ridge: r, or None: of `RIDGES` the one with the least error on every tenth token, fitted on the others. No task
            and no label is looked at.
        center: subtract the means of both tables first; b is then not 0.
    """
    source, target = source.double(), target.double()
    held = torch.arange(len(source)) % HELD_OUT == HELD_OUT - 1
    spread = (target[held] - target[~held].mean(dim=0)).square().sum()

    def error(penalty: float) -> float:
        weight, bias = _solve(source[~held], target[~held], penalty, center)
        return float((source[held] @ weight + bias - target[held]).square().sum() / spread)

    tried = {penalty: error(penalty) for penalty in (RIDGES if ridge is None else (ridge,))}
    best = min(tried, key=lambda penalty: tried[penalty])
    weight, bias = _solve(source, target, best, center)
    # A solver hands out columns; a file holds rows, and products differ in the last digit between the two.
    affine = AffineMap(weight.float().contiguous(), bias.float())
    return RidgeFit(affine, best, tried[best])


def _solve(source: Tensor, target: Tensor, ridge: float, center: bool) -> tuple[Tensor, Tensor]:
    means = [table.mean(dim=0) if center else torch.zeros_like(table[0]) for table in (source, target)]
    source, target = source - means[0], target - means[1]
    if ridge == 0:
        weight = torch.linalg.pinv(source) @ target
    else:
        gram = source.T @ source
        penalty = ridge * gram.diagonal().mean()
        weight = torch.linalg.solve(gram + penalty * torch.eye(len(gram)).double(), source.T @ target)
    return weight, means[1] - means[0] @ weight
