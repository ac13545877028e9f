"""Statistics of how well an indicator predicts transfer, one function each.

Matrices are `[..., N, N]`, row = target task, column = source task; leading dimensions (resamples) are kept. NaN marks
a missing pair, which is ignored. The diagonal, a task's own prompt on the task, is ignored unless stated otherwise.
`types` are `[..., N]`: any values, equal for tasks of one type.

"Mean per target" weights every target equally: a statistic is computed per row and averaged, ignoring rows where it is
undefined (the transfer is constant or missing).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import comb
from scipy.stats import kendalltau, rankdata

# A rank correlation of fewer values is not reported: that of two is always 1 or -1.
MIN_SOURCES, MIN_PAIRS = 3, 4


def relative(scores: np.ndarray) -> np.ndarray:
    """Divide scores `[N, N]` by the target's own prompt's, the diagonal; NaN in rows where it is 0 or missing."""
    own = np.diagonal(scores)[:, None]
    return np.divide(scores, own, out=np.full(scores.shape, np.nan), where=own > 0)


def spearman(
    indicator: np.ndarray, transfer: np.ndarray, per_target: bool = False, diagonal: bool = False
) -> np.ndarray:
    """Return Spearman's rho of indicator and transfer, -1 to 1: Pearson's correlation of ranks, mean ranks for ties.

    An indicator with equal values for all sources predicts nothing and gives 0.

    Args:
        indicator, transfer: `[..., N, N]`.
        per_target: average the rho of each row instead of computing one rho over all pairs.
        diagonal: include pairs of a task with itself, which raise the value: a prompt is most similar to itself and
            (almost) always transfers best to its own task.

    Returns:
        NaN for fewer than `MIN_PAIRS` pairs; targets with fewer than `MIN_SOURCES` sources do not count.
    """
    first, second = _enough(*_cells(indicator, transfer, per_target, diagonal), per_target)
    return _mean(_pearson(_ranks(first), _ranks(second)), per_target)


def kendall(
    indicator: np.ndarray, transfer: np.ndarray, per_target: bool = False, diagonal: bool = False
) -> np.ndarray:
    """Return Kendall's tau-b, -1 to 1: concordant minus discordant pairs, corrected for ties.

    Arguments and result as in `spearman`.
    """
    first, second = _enough(*_cells(indicator, transfer, per_target, diagonal), per_target)
    if not per_target:
        return np.array([_tau(*pair) for pair in zip(_flat(first), _flat(second), strict=True)]).reshape(
            first.shape[:-1]
        )
    # Rows are short enough to hold the signs of all differences.
    signs = [np.nan_to_num(np.sign(cells[..., :, None] - cells[..., None, :])) for cells in (first, second)]
    products, ones, others = ((a * b).sum(axis=(-2, -1)) for a, b in (signs, signs[:1] * 2, signs[1:] * 2))
    return _mean(_quotient(products, ones, others), per_target)


def same_type_auc(indicator: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Return the probability that a same-type pair has a higher value than a different-type pair; ties count half.

    0 to 1, 0.5 is chance. Over all pairs of different tasks, in both directions.
    """
    cells, same = _flat_pairs(_without_diagonal(indicator)), _flat_pairs(_same(types))
    there = ~np.isnan(cells)
    ranks = _ranks(cells)
    positive, negative = (there & same).sum(axis=-1), (there & ~same).sum(axis=-1)
    wins = np.where(there & same, ranks, 0).sum(axis=-1) - positive * (positive + 1) / 2
    return _divide(wins, positive * negative)


def nearest_neighbour(indicator: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Return the share of tasks whose nearest neighbour (the source with the highest value) has their type, 0 to 1.

    Tied neighbours count fractionally. Tasks that are the only one of their type are ignored.
    """
    cells, same = _without_diagonal(indicator), _same(types) & ~np.eye(types.shape[-1], dtype=bool)
    there = ~np.isnan(cells)
    filled = np.where(there, cells, -np.inf)
    nearest = there & (filled == filled.max(axis=-1, keepdims=True))
    share = _divide((nearest & same).sum(axis=-1), nearest.sum(axis=-1))
    return _mean(np.where((same & there).any(axis=-1), share, np.nan), True)


def mean_of_types(indicator: np.ndarray, types: np.ndarray, same: bool) -> np.ndarray:
    """Return the mean of the indicator over pairs of different tasks of the same type, or of different types."""
    chosen = _same(types) == same
    return _mean(_flat_pairs(np.where(chosen, _without_diagonal(indicator), np.nan)), True)


def ndcg(indicator: np.ndarray, transfer: np.ndarray) -> np.ndarray:
    """Return nDCG, mean per target: DCG of the sources in the indicator's order / DCG of the best order; 0 to 1.

    DCG = sum over ranks r = 1, 2, ... of gain / log2(r + 1); the gain is the transfer, negative values count as 0.
    Tied sources share the discounts of their ranks, which is the mean over all their orders.
    Source: Järvelin and Kekäläinen 2002; used for choosing source tasks by Vu et al. 2020 and Lin et al. 2024.
    """
    first, second = _cells(indicator, transfer, True, False)
    gains = np.nan_to_num(second).clip(min=0)
    discounts = np.concatenate([[0], np.cumsum(1 / np.log2(np.arange(2, first.shape[-1] + 2)))])

    def gained(order: np.ndarray) -> np.ndarray:
        low, high = _places(order)
        return (gains * (discounts[high] - discounts[low - 1]) / (high - low + 1)).sum(axis=-1)

    return _mean(_divide(gained(first), gained(second)), True)


def regret(indicator: np.ndarray, transfer: np.ndarray, k: int = 1) -> np.ndarray:
    """Return Regret@k, mean per target: the loss from trying only the indicator's first k sources; 0 to 1.

    (best of all - best of the k) / best of all, of the transfer to that target; 0 is perfect. With ties at the k-th
    place this is the mean over all choices among the tied sources. Source: Renggli et al. 2022; used for source tasks
    by Poth et al. 2021.
    """
    first, second = _cells(indicator, transfer, True, False)
    order = np.argsort(-np.nan_to_num(second, nan=-np.inf), axis=-1, kind="stable")
    values = np.take_along_axis(np.nan_to_num(second), order, axis=-1)
    low, high = (np.take_along_axis(places, order, axis=-1) for places in _places(first))
    there = np.take_along_axis(~np.isnan(first), order, axis=-1)
    certain, tied = there & (high <= k), there & (low <= k) & (high > k)
    drawn = np.where(tied.any(axis=-1), k - certain.sum(axis=-1), 0)[..., None]
    number = tied.sum(axis=-1, keepdims=True)
    # From the best source down: the probability that no source so far is among the k.
    passed = np.cumsum(tied, axis=-1)
    none = np.where(np.cumsum(certain, axis=-1) > 0, 0, comb(number - passed, drawn) / comb(number, drawn))
    chances = np.concatenate([np.ones_like(none[..., :1]), none[..., :-1]], axis=-1) - none
    best = values[..., 0]
    # With fewer than k sources the remaining probability belongs to no source.
    return _mean(_divide(best - (chances * values).sum(axis=-1), np.where(best > 0, best, 0)), True)


class Statistic(NamedTuple):
    """A row of the registry.

    Attributes:
        function: function of indicator and transfer, or of indicator and types.
        of: second argument: `transfer` or `types`.
        better: 1 if higher is better, -1 if lower is, 0 if neither.
        tested: whether to compute a permutation p-value.
    """

    function: Callable[..., Any]
    of: str
    better: int = 1
    tested: bool = True


STATISTICS: dict[str, Statistic] = {
    "spearman_per_target": Statistic(functools.partial(spearman, per_target=True), "transfer"),
    "spearman_pooled": Statistic(spearman, "transfer"),
    "spearman_per_target_with_diagonal": Statistic(
        functools.partial(spearman, per_target=True, diagonal=True), "transfer"
    ),
    "spearman_pooled_with_diagonal": Statistic(functools.partial(spearman, diagonal=True), "transfer"),
    # Tau and rho test the same hypothesis, and rho is cheaper.
    "kendall_per_target": Statistic(functools.partial(kendall, per_target=True), "transfer", tested=False),
    "kendall_pooled": Statistic(kendall, "transfer", tested=False),
    "ndcg": Statistic(ndcg, "transfer"),
    "regret_at_1": Statistic(regret, "transfer", better=-1),
    "regret_at_3": Statistic(functools.partial(regret, k=3), "transfer", better=-1),
    "same_type_auc": Statistic(same_type_auc, "types"),
    "nearest_neighbour": Statistic(nearest_neighbour, "types"),
    "mean_same_type": Statistic(functools.partial(mean_of_types, same=True), "types", better=0, tested=False),
    "mean_different_type": Statistic(functools.partial(mean_of_types, same=False), "types", better=0, tested=False),
}


def _without_diagonal(matrix: np.ndarray) -> np.ndarray:
    return np.where(np.eye(matrix.shape[-1], dtype=bool), np.nan, matrix)


def _cells(
    indicator: np.ndarray, transfer: np.ndarray, per_target: bool, diagonal: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as `[..., N, N]`, or as `[..., N * N]` over all pairs; NaN where either is NaN."""
    first, second = np.broadcast_arrays(np.asarray(indicator, dtype=float), np.asarray(transfer, dtype=float))
    missing = np.isnan(first) | np.isnan(second)
    if not diagonal:
        missing = missing | np.eye(first.shape[-1], dtype=bool)
    both = np.where(missing, np.nan, first), np.where(missing, np.nan, second)
    return both if per_target else (_flat_pairs(both[0]), _flat_pairs(both[1]))


def _enough(first: np.ndarray, second: np.ndarray, per_target: bool) -> tuple[np.ndarray, np.ndarray]:
    """Replace rows with too few values for a rank correlation by NaN."""
    few = (~np.isnan(first)).sum(axis=-1, keepdims=True) < (MIN_SOURCES if per_target else MIN_PAIRS)
    return np.where(few, np.nan, first), np.where(few, np.nan, second)


def _same(types: np.ndarray) -> np.ndarray:
    return types[..., :, None] == types[..., None, :]


def _flat_pairs(matrix: np.ndarray) -> np.ndarray:
    return matrix.reshape(*matrix.shape[:-2], -1)


def _flat(cells: np.ndarray) -> np.ndarray:
    return cells.reshape(-1, cells.shape[-1])


def _ranks(cells: np.ndarray) -> np.ndarray:
    """Return ranks from 1 along the last axis, mean ranks for ties; NaN stays NaN."""
    missing = np.isnan(cells)
    return np.where(missing, np.nan, rankdata(np.where(missing, np.inf, cells), axis=-1))


def _places(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last place that a cell can take in descending order, from 1; NaN come last."""
    descending = np.where(np.isnan(cells), np.inf, -cells)
    low, high = (rankdata(descending, method=method, axis=-1).astype(int) for method in ("min", "max"))
    return low, high


def _pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation along the last axis; 0 if only `first` is constant, NaN if `second` is."""
    number = (~np.isnan(first)).sum(axis=-1, keepdims=True)
    centred = [
        np.nan_to_num(cells - _divide(np.nansum(cells, axis=-1, keepdims=True), number)) for cells in (first, second)
    ]
    return _quotient(*((a * b).sum(axis=-1) for a, b in (centred, centred[:1] * 2, centred[1:] * 2)))


def _tau(first: np.ndarray, second: np.ndarray) -> float:
    there = ~np.isnan(first)
    first, second = first[there], second[there]
    if not there.any() or np.ptp(second) == 0:
        return np.nan
    return 0.0 if np.ptp(first) == 0 else float(kendalltau(first, second, method="asymptotic").statistic)


def _quotient(products: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return products / sqrt(first * second); 0 where only `first` is 0, NaN where `second` is."""
    defined = np.where(first > 0, _divide(products, np.sqrt(first * second)), 0)
    return np.where(second > 0, defined, np.nan)


def _divide(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first, second = np.broadcast_arrays(np.asarray(first, dtype=float), np.asarray(second, dtype=float))
    return np.divide(first, second, out=np.full(first.shape, np.nan), where=second != 0)


def _mean(values: np.ndarray, over_last: bool) -> np.ndarray:
    """Return the mean along the last axis ignoring NaN; `values` unchanged unless `over_last`."""
    if not over_last:
        return values
    return _divide(np.nansum(values, axis=-1), (~np.isnan(values)).sum(axis=-1))
