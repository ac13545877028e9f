"""Projectors without training: solved from the vocabularies of two backbones, without tasks or labels.

Shape letters: N prompts, P prompt tokens, H and H' hidden of source and target, A anchors.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from prompt_transfer.projectors.projector import Projector, Space
from prompt_transfer.projectors.vocabulary import fit_ridge, shared_tokens
from prompt_transfer.prompts.prompt import Backbone
from prompt_transfer.utils.errors import UserError


class ClosedForm(Projector):
    """Projector fitted only to the embeddings of two backbones.

    Attributes:
        facts: results of the fit, for the metadata of its file; empty if loaded from a file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, str] = {}

    @abstractmethod
    def fit(self, source: Backbone, target: Backbone) -> ClosedForm:
        """Fit the map from `source` to `target`; returns itself.

        Raises:
            UserError: the vocabularies share too few tokens.
        """


class LeastSquares(ClosedForm):
    """Least-squares map from the source's to the target's embeddings of shared tokens, applied to prompt tokens.

    Source: v2v-lin of Lester et al. (2022).

    Args:
        ridge: penalty, as a fraction of the embeddings' mean square; null selects the best one on held-out tokens.
        center: subtract the mean of each embedding table first.
        top_k: number of shared tokens to use; 0 for all.
        skip: number of leading shared tokens to exclude.
    """

    named_options = ("ridge", "center", "top_k", "skip")
    weight: Tensor
    bias: Tensor

    def __init__(self, ridge: float | None = None, center: bool = False, top_k: int = 0, skip: int = 0) -> None:
        super().__init__()
        if (ridge is not None and ridge < 0) or top_k < 0 or skip < 0:
            raise UserError(f"projector {type(self).__name__}: ridge, top_k and skip must be 0 or more")
        self.ridge, self.center, self.top_k, self.skip = ridge, center, top_k, skip

    def allocate(self, source: Space, target: Space) -> None:
        self.register_buffer("weight", torch.empty(source.hidden_size, target.hidden_size))
        self.register_buffer("bias", torch.empty(target.hidden_size))

    def fit(self, source: Backbone, target: Backbone) -> LeastSquares:
        tokens = shared_tokens(source, target, self.top_k, self.skip)
        found = fit_ridge(tokens.source, tokens.target, self.ridge, self.center)
        self.register_buffer("weight", found.affine.weight)
        self.register_buffer("bias", found.affine.bias)
        self.facts = {
            "shared_tokens": str(len(tokens)),
            "fitted_ridge": repr(found.ridge),
            "held_out_error": f"{found.error:.4f}",
        }
        return self

    def forward(self, prompts: Tensor) -> Tensor:
        return prompts.float() @ self.weight + self.bias


class LinearCombination(LeastSquares):
    """Minimum-norm linear combination of the source's embeddings, applied to the target's embeddings.

    Source: lin-comb of Lester et al. (2022). It uses the solver of LeastSquares (see `vocabulary.fit_ridge` for the
    equivalence), by default without penalty.

    Args:
        ridge, center, top_k, skip: see LeastSquares.
    """

    def __init__(self, ridge: float | None = 0.0, center: bool = False, top_k: int = 0, skip: int = 0) -> None:
        super().__init__(ridge, center, top_k, skip)


class Relative(ClosedForm):
    """Search for target vectors with the same cosines to shared tokens as the source's prompt tokens.

    Source: Wu et al. (ICLR 2024). A prompt token is represented by its cosines to `anchors` shared tokens, or only to
    the `nearest` ones. The search finds x in the target's space that minimises 1 - cos(its cosines, the wanted
    cosines). x is standardized to the mean and standard deviation of the target's whole embedding table, so results
    have the scale of embeddings. The search starts at the least-squares map, because directions that no anchor spans
    never change. It stops when the loss has not decreased by the fraction `tolerance` for `patience` steps. No labels
    are used.

    Args:
        anchors: A, the number of leading shared tokens; 0 for all.
        nearest: number of anchors used per prompt token, well above H; 0 for all.
        learning_rate: learning rate of Adam.
        max_steps: maximum number of search steps.
        patience: number of steps without improvement before stopping.
        tolerance: smallest relative decrease of the loss that counts as improvement.
    """

    named_options = ("anchors", "nearest", "learning_rate", "max_steps", "patience", "tolerance")
    weight: Tensor
    bias: Tensor
    source_anchors: Tensor
    target_anchors: Tensor
    moments: Tensor

    def __init__(
        self,
        anchors: int = 4000,
        nearest: int = 0,
        learning_rate: float = 5e-3,
        max_steps: int = 2000,
        patience: int = 50,
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__()
        if min(anchors, nearest) < 0 or min(learning_rate, max_steps, patience) <= 0 or tolerance < 0:
            raise UserError(
                "projector Relative: anchors, nearest and tolerance must be 0 or more, all other options above 0"
            )
        self.anchors, self.nearest, self.learning_rate = anchors, nearest, learning_rate
        self.max_steps, self.patience, self.tolerance = max_steps, patience, tolerance
        self.steps = 0

    def allocate(self, source: Space, target: Space) -> None:
        for name, sizes in (
            ("weight", (source.hidden_size, target.hidden_size)),
            ("bias", (target.hidden_size,)),
            ("source_anchors", (self.anchors, source.hidden_size)),
            ("target_anchors", (self.anchors, target.hidden_size)),
            ("moments", (2,)),
        ):
            self.register_buffer(name, torch.empty(*sizes))

    def fit(self, source: Backbone, target: Backbone) -> Relative:
        tokens = shared_tokens(source, target)
        found = fit_ridge(tokens.source, tokens.target)
        few = slice(None, self.anchors or None)
        numbers = target.embedding_weight.float()
        for name, value in (
            ("weight", found.affine.weight),
            ("bias", found.affine.bias),
            ("source_anchors", functional.normalize(tokens.source[few], dim=1)),
            ("target_anchors", functional.normalize(tokens.target[few], dim=1)),
            ("moments", torch.stack([numbers.mean(), numbers.std()]).cpu()),
        ):
            self.register_buffer(name, value)
        # The file records the actual number of anchors.
        self.anchors = len(self.source_anchors)
        # Only the least-squares start has a held-out error: the search runs for every prompt.
        self.facts = {"shared_tokens": str(len(tokens)), "held_out_error_of_start": f"{found.error:.4f}"}
        return self

    def forward(self, prompts: Tensor) -> Tensor:
        rows = prompts.float().flatten(0, 1)
        wanted = functional.normalize(rows, dim=1) @ self.source_anchors.T
        kept = torch.ones_like(wanted)
        if 0 < self.nearest < wanted.shape[1]:
            places = wanted.topk(self.nearest, dim=1).indices
            kept = torch.zeros_like(wanted).scatter(1, places, 1.0)
        with torch.inference_mode(False), torch.enable_grad():
            found = self._search(rows @ self.weight + self.bias, (wanted * kept).clone(), kept.clone())
        return found.view(*prompts.shape[:2], -1)

    def _search(self, start: Tensor, wanted: Tensor, kept: Tensor) -> Tensor:
        point = start.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([point], lr=self.learning_rate)
        best, waited, result = float("inf"), 0, self._standardized(point).detach()
        for step in range(1, self.max_steps + 1):
            self.steps = step
            now = self._standardized(point)
            cosines = functional.normalize(now, dim=1) @ self.target_anchors.T
            loss = (1 - functional.cosine_similarity(cosines * kept, wanted, dim=1)).mean()
            value = loss.item()
            if value < best * (1 - self.tolerance):
                best, waited, result = value, 0, now.detach().clone()
            else:
                waited += 1
                if waited >= self.patience:
                    break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return result

    def _standardized(self, rows: Tensor) -> Tensor:
        """Standardize each vector to the mean and standard deviation of the target's embeddings."""
        mean, std = self.moments
        centred = rows - rows.mean(dim=1, keepdim=True)
        return centred / centred.std(dim=1, keepdim=True) * std + mean
