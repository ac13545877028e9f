"""Tokens shared by the vocabularies of two backbones, and the linear map between their embeddings.

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

# Ridge penalties to try, as fractions of the mean over dimensions of the embeddings' sum of squares over tokens.
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 10  # every tenth token is held out to select the penalty


@dataclass(frozen=True)
class SharedTokens:
    """Tokens shared by two vocabularies, in the order of the source's ids (roughly by frequency).

    Attributes:
        source, target: float32 embeddings `[V, H]` and `[V, H']` on the CPU.
        texts: V texts; those that start a word begin with a space.
    """

    source: Tensor = field(repr=False)
    target: Tensor = field(repr=False)
    texts: list[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.texts)


def shared_tokens(source: Backbone, target: Backbone, top_k: int = 0, skip: int = 0) -> SharedTokens:
    """Return the ordinary tokens with the same text in both vocabularies.

    Byte-level BPE, WordPiece and SentencePiece mark word starts differently; all are converted to a leading space.

    Args:
        source, target: the backbones.
        top_k: number of shared tokens to use; 0 for all. Lester et al. use 4,000 English words.
        skip: number of leading shared tokens to exclude (Lester et al.: 1,000).

    Raises:
        UserError: fewer than the source's H remain, so some directions of its space would map to 0.
    """
    ids, others = _texts(source), _texts(target)
    both = [text for text in ids if text in others]
    chosen = both[skip : skip + top_k if top_k else None]
    if len(chosen) < source.hidden_size:
        left = "" if len(chosen) == len(both) else f", of which skip {skip} and top_k {top_k} leave {len(chosen)}"
        raise UserError(
            f"the vocabularies of {source.id} and {target.id} share {len(both)} tokens{left}; a map from {source.id} "
            f"needs {source.hidden_size}, one per dimension of its embeddings: train a projector instead "
            "(prompt-transfer fit --model CrossModelProjector)"
        )
    return SharedTokens(
        embedding_rows(source, [ids[text] for text in chosen]),
        embedding_rows(target, [others[text] for text in chosen]),
        chosen,
    )


def _texts(backbone: Backbone) -> dict[str, int]:
    """Return text -> id of the ordinary tokens, in the order of ids; the first of tokens with equal text."""
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
    # WordPiece punctuation is the same token with and without a preceding space.
    return f" {token}" if token[0].isalnum() else token


def _spaced(token: str, tokenizer: Any) -> str:
    if token.startswith("▁"):
        return f" {token[1:]}"
    return tokenizer.convert_tokens_to_string([token])


@dataclass(frozen=True)
class RidgeFit:
    """A fitted map and its error on held-out tokens.

    Attributes:
        affine: the map, fitted on all tokens.
        ridge: the penalty.
        error: squared error on held-out tokens, relative to predicting the mean: 0 is perfect, 1 as bad as the mean.
    """

    affine: AffineMap
    ridge: float
    error: float


def fit_ridge(source: Tensor, target: Tensor, ridge: float | None = None, center: bool = False) -> RidgeFit:
    """Fit the map x -> x W + b between two embedding tables by ridge regression.

    With penalty r, W = (S'S + r m I)^-1 S'T, where m is the mean of the diagonal of S'S. The minimum-norm linear
    combination gives the same map: the weights X that minimise |X S - P|^2 + r m |X|^2 give X T = P W, since
    S'(SS' + c I)^-1 = (S'S + c I)^-1 S'. "Least squares" and "linear combination" of Lester et al. (2022) therefore
    share this solver and differ only in the penalty. Penalty 0 is the pseudo-inverse.

    Args:
        source, target: `[V, H]` and `[V, H']`.
        ridge: r; None selects from `RIDGES` by the error on every tenth token, fitted on the others. No labels are
            used.
        center: subtract the mean of each table first; b is then not 0.
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
    # Solvers return column-major results, files are row-major, and their products differ in the last digit.
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
