"""`analyze indicators`: how well indicators predict transfer, from prompt files and a transfer matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from prompt_transfer.analysis import captions, indicator_plots, plots
from prompt_transfer.analysis.correlation import MIN_TASKS, correlations
from prompt_transfer.analysis.indicators import INDICATORS, compute
from prompt_transfer.analysis.statistics import MIN_PAIRS, MIN_SOURCES, relative
from prompt_transfer.prompts.prompt import UNKNOWN
from prompt_transfer.studies.inputs import PromptSet, load_prompts, read_matrix
from prompt_transfer.studies.neuron_inputs import read_neurons
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir
from prompt_transfer.utils.progress import steps

RANKED_BY = "spearman_per_target"
_NEED_WORDS = {
    "initial": "initial prompts in all prompt files",
    "neurons": "--neurons",
    "label_words": "label words in the prompt files",
    "data_sizes": "train_rows in all prompt files",
    "active": "activation shares in the neuron files (neurons capture --tasks)",
    "task_active": "activation shares per task in the neuron files (neurons capture --tasks)",
    "predictivity": "predictivity in the neuron files (neurons skill)",
    "fisher": "gradients in the neuron files (neurons probe)",
    "leep": "LEEP in the neuron files (neurons probe)",
}


# Optional tensors of neuron files, in addition to the activations.
_FROM_FILES = ("active", "task_active", "predictivity", "fisher", "leep")


def analyze(
    prompts: str | Path,
    output: str | Path,
    matrix: str | Path | None = None,
    neurons: str | Path | None = None,
    backbone: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute all indicators that the inputs allow, write tables and figures to `output`, and print the ranking.

    Args:
        prompts, backbone: see `load_prompts`.
        output: folder for `indicators.parquet`, `correlations.csv`, `similarity.png` and `ranking.png`; with a matrix
            also `scatter.png`, with neurons also `layers.png`.
        matrix: see `read_matrix`.
        neurons: see `read_neurons`.
        resamples, seed: settings of bootstrap and permutation test.

    Returns:
        The tables of `indicators.parquet` and `correlations.csv`.

    Raises:
        UserError: inputs cannot be read or do not match.
    """
    if resamples < 1:
        raise UserError(f"--resamples {resamples}: give at least 1, better 1000")
    inputs = load(prompts, matrix, neurons, backbone)
    folder = check_writable_dir(output)
    matrices, table = score(inputs, resamples, seed)
    return report(inputs, matrices, table, folder)


@dataclass(frozen=True)
class IndicatorInputs:
    """The checked inputs of an analysis.

    Attributes:
        found: N prompts.
        values: inputs of the indicators, by the names in `analysis.indicators.Indicator.needs`.
        transfer: relative scores between the T tasks `[T, T]`; None without a matrix.
        notes: skipped prompts, tasks and indicators, and why.
    """

    found: PromptSet
    values: dict[str, Any]
    transfer: np.ndarray | None
    notes: list[str]

    @property
    def types(self) -> dict[str, str]:
        """Type of each of the T tasks, in order of first appearance."""
        return dict(zip(self.found.tasks, self.found.types, strict=True))


def load(
    prompts: str | Path,
    matrix: str | Path | None = None,
    neurons: str | Path | None = None,
    backbone: str | None = None,
) -> IndicatorInputs:
    """Read and check prompts, neurons and transfer matrix; arguments as in `analyze`.

    Raises:
        UserError: inputs cannot be read or do not match.
    """
    found = load_prompts(prompts, backbone)
    values: dict[str, Any] = {
        "prompts": found.embeddings,
        "initial": found.initial,
        "label_words": found.label_words,
        "data_sizes": found.data_sizes,
        **({} if neurons is None else read_neurons(neurons, found)),
    }
    tasks = list(dict.fromkeys(found.tasks))
    scores, notes = (None, []) if matrix is None else _scores(read_matrix(matrix), tasks, matrix)
    transfer = None if scores is None else relative(scores)
    return IndicatorInputs(found, values, transfer, [*found.notes, *notes, *_missing(values)])


def score(inputs: IndicatorInputs, resamples: int, seed: int) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Compute all indicators `[N, N]` that the inputs allow, and their statistics."""
    matrices: dict[str, np.ndarray] = {}
    for name in steps(INDICATORS, "indicators"):
        matrices |= compute(inputs.values, [name])
    by_task = {name: mean_over_prompts(values, inputs.found.tasks) for name, values in matrices.items()}
    # Tasks of unknown type count as different from each other.
    kinds = [kind if kind != UNKNOWN else f"{UNKNOWN}: {task}" for task, kind in inputs.types.items()]
    tables = [
        correlations({name: values}, kinds, inputs.transfer, resamples, seed)
        for name, values in steps(by_task.items(), "intervals")
    ]
    return matrices, pd.concat(tables, ignore_index=True)


def report(
    inputs: IndicatorInputs, matrices: Mapping[str, np.ndarray], table: pd.DataFrame, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write tables and figures and print the ranking; return the table of pairs and the statistics."""
    pairs = pair_table(matrices, inputs.found)
    results.write(pairs, folder / "indicators.parquet")
    results.write(table, folder / "correlations.csv")
    _draw(folder, pairs, table, inputs, matrices)
    _print(folder, table, inputs.found, inputs.notes)
    return pairs, table


def pair_table(matrices: Mapping[str, np.ndarray], prompts: PromptSet) -> pd.DataFrame:
    """Return a tidy table with one row per indicator and pair of prompts; `source` and `target` are tasks.

    Returns:
        Columns indicator, source, target, value, source_type, target_type, source_prompt, target_prompt.
    """
    number = len(prompts.names)
    target, source = (grid.ravel() for grid in np.mgrid[:number, :number])
    parts = []
    for name, values in matrices.items():
        columns: dict[str, Any] = {"indicator": name}
        for key, kinds in (("", prompts.tasks), ("_type", prompts.types), ("_prompt", prompts.names)):
            # Categories: a study of 500 prompts has a quarter of a million pairs.
            columns[f"source{key}"] = pd.Categorical(np.asarray(kinds, dtype=object)[source])
            columns[f"target{key}"] = pd.Categorical(np.asarray(kinds, dtype=object)[target])
        parts.append(pd.DataFrame(columns | {"value": np.asarray(values, dtype=float).ravel()}))
    order = ["indicator", "source", "target", "value", "source_type", "target_type", "source_prompt", "target_prompt"]
    return pd.concat(parts, ignore_index=True)[order]


def mean_over_prompts(matrix: np.ndarray, tasks: Sequence[str]) -> np.ndarray:
    """Average a matrix between prompts `[N, N]` to one between tasks `[T, T]`, in order of first appearance.

    A prompt's pair with itself counts only if it is the only prompt of its task; NaN marks a missing pair.
    """
    names = list(dict.fromkeys(tasks))
    member = np.array([[task == name for task in tasks] for name in names], dtype=float)
    weights = np.where(np.isnan(matrix), 0.0, 1.0)
    several = [list(tasks).count(task) > 1 for task in tasks]
    weights[np.diag_indices(len(tasks))] *= [0.0 if many else 1.0 for many in several]
    sums, counts = member @ (weights * np.nan_to_num(matrix)) @ member.T, member @ weights @ member.T
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def square_of_tasks(matrix: np.ndarray, tasks: Sequence[str]) -> pd.DataFrame:
    """Return `mean_over_prompts` for a figure: NaN on the diagonal of tasks with a single prompt."""
    names = list(dict.fromkeys(tasks))
    values = mean_over_prompts(matrix, tasks)
    alone = [place for place, name in enumerate(names) if list(tasks).count(name) == 1]
    values[alone, alone] = np.nan
    return pd.DataFrame(values, pd.Index(names, name="task"), names)


def _scores(matrix: pd.DataFrame, tasks: list[str], path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Return the matrix for these tasks, NaN where it lacks a row or column, and notes about absent tasks."""
    shared = [task for task in tasks if task in matrix.index and task in matrix.columns]
    if len(shared) < MIN_TASKS:
        there = [str(task) for task in matrix.index if task in matrix.columns]
        raise UserError(
            f"{path} has scores between {', '.join(there[:15]) or 'no tasks'}, the prompts are of "
            f"{', '.join(tasks[:15])}: {len(shared)} in common, {MIN_TASKS} or more are needed; make a matrix of these "
            "prompts with `prompt-transfer transfer`"
        )
    absent = [task for task in tasks if task not in shared]
    notes = [f"not in the transfer matrix: {', '.join(absent)}"] if absent else []
    return matrix.reindex(index=tasks, columns=tasks).to_numpy(dtype=float), notes


def _missing(inputs: Mapping[str, Any]) -> list[str]:
    notes = []
    for need, words in _NEED_WORDS.items():
        names = [name for name, row in INDICATORS.items() if need in row.needs]
        if need in _FROM_FILES and inputs.get("neurons") is None:
            continue  # one note about --neurons is enough
        if inputs.get(need) is None:
            notes.append(f"left out for lack of {words}: {', '.join(names)}")
    return notes


def _draw(
    folder: Path,
    pairs: pd.DataFrame,
    table: pd.DataFrame,
    inputs: IndicatorInputs,
    matrices: Mapping[str, np.ndarray],
) -> None:
    types, transfer = inputs.types, inputs.transfer
    whole = _whole(table)
    by = ranked_by(whole)
    best = _best(whole, by)
    shown = "neuron_overlap" if "neuron_overlap" in set(whole["indicator"]) else best["embeddings"]
    square = square_of_tasks(matrices[shown], inputs.found.tasks)
    label = indicator_plots.readable_name(shown)
    ax = indicator_plots.similarity_matrix(square, list(types.values()), label)
    plots.save(ax, folder / "similarity.png", captions.SIMILARITY.format(name=label))
    plots.save(indicator_plots.indicator_ranking(whole, by), folder / "ranking.png", captions.RANKING)
    if table["indicator"].str.startswith("neuron_overlap_per_layer/").any():
        plots.save(indicator_plots.layer_curve(table, by), folder / "layers.png", captions.INDICATOR_LAYERS)
    if transfer is not None:
        draw_scatter(folder, pairs, table, pd.DataFrame(transfer, index=list(types), columns=list(types)))


def _best(whole: pd.DataFrame, by: str) -> dict[str, str]:
    """Return the best indicator of each group by a statistic."""
    ranked = whole[whole["statistic"] == by].sort_values("value", ascending=False)["indicator"]
    return {INDICATORS[name].group: name for name in reversed(list(ranked))}


def draw_scatter(folder: Path, pairs: pd.DataFrame, table: pd.DataFrame, transfer: pd.DataFrame) -> None:
    """Draw `scatter.png`: the best indicator of each group, one panel each, with one mark per pair of tasks.

    Args:
        folder: folder of the figure.
        pairs: table of `pair_table`.
        table: statistics of the indicators.
        transfer: relative scores, targets in rows and sources in columns.
    """
    whole = _whole(table)
    best = _best(whole, ranked_by(whole))
    chosen = [best[group] for group in ("embeddings", "neurons", "labels", "confounder") if group in best]
    size = (0.6 + 2.2 * len(chosen), 2.8)
    figure, axes = plt.subplots(1, len(chosen), figsize=size, layout="constrained", sharey=True, squeeze=False)
    scored = transfer.rename_axis("target").reset_index().melt("target", var_name="source", value_name="transfer")
    keys = ["target", "source", "target_type", "source_type"]
    rho = table[table["statistic"] == "spearman_pooled"].set_index("indicator")["value"]
    for name, ax in zip(chosen, axes[0], strict=True):
        mine = pairs[pairs["indicator"] == name].astype(dict.fromkeys(keys, str))
        means = mine.groupby(keys)["value"].mean().reset_index().merge(scored, on=["target", "source"])
        indicator_plots.indicator_against_transfer(means, rho[name], ax)
        ax.set_xlabel(indicator_plots.readable_name(name), fontsize=9)
        ax.get_legend().remove()
    # Above the panels, so the legend hides no dots.
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8, handletextpad=0.2)
    plots.save(axes[0][0], folder / "scatter.png", captions.SCATTER)


def ranked_by(table: pd.DataFrame) -> str:
    """Return the statistic that ranks indicators: per target, else over all pairs, else AUC, whichever has a value."""
    known = set(table.dropna(subset=["value"])["statistic"])
    return next((name for name in (RANKED_BY, "spearman_pooled") if name in known), "same_type_auc")


def _whole(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without single layers: the best of many layers is more likely to be good by chance."""
    return table[~table["indicator"].str.contains("/")]


def _print(folder: Path, table: pd.DataFrame, prompts: PromptSet, notes: list[str]) -> None:
    whole = _whole(table)
    value = whole.pivot(index="indicator", columns="statistic", values="value")
    spread = whole.set_index(["indicator", "statistic"])
    by = ranked_by(whole)
    rows: list[dict[str, Any]] = []
    for name in value[by].sort_values(ascending=False, na_position="last").index:
        found: Any = spread.loc[(name, by), ["low", "high", "p_value"]]
        low, high, p_value = found
        mark = " *" if INDICATORS[name].group == "confounder" else ""
        row = {"indicator": f"{name}{mark}", _SHORT[by]: value.loc[name, by]}
        row |= {"95 %": results.interval(low, high, 2), "p": p_value}
        row |= {short: value.loc[name, label] for label, short in _SHORT.items() if label in value and label != by}
        rows.append(row)
    tasks, backbone = len(set(prompts.tasks)), prompts.prompts[0].metadata.get("backbone", UNKNOWN)
    ranked = indicator_plots.STATISTIC_LABELS[by]
    title = f"{len(prompts.names)} prompts of {tasks} tasks on {backbone}, by {ranked}"
    everything: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    results.show(rows, title, data=everything, spare=("neighbour", "nDCG", "pooled"))
    print("* confounder: ignores the behaviour of prompts; an indicator must beat it")
    print("; ".join(f"{short}: {_MEANING[short]}" for label, short in _SHORT.items() if label in value))
    for note in [*notes, *_undefined(value)]:
        print(f"note: {note}")
    print(f"tables and figures in {folder}")


def _undefined(value: pd.DataFrame) -> list[str]:
    """Return why columns of the ranking have no value."""
    empty = [name for name in _SHORT if name in value and value[name].isna().all()]
    reasons = {
        "spearman_per_target": f"fewer than {MIN_SOURCES} sources per target",
        "spearman_pooled": f"fewer than {MIN_PAIRS} pairs",
    }
    return [f"no value for {_SHORT[name]}: {reasons.get(name, 'too few tasks or types')}" for name in empty]


_SHORT = {
    "spearman_per_target": "per target",
    "spearman_pooled": "pooled",
    "ndcg": "nDCG",
    "regret_at_1": "Regret@1",
    "same_type_auc": "AUC",
    "nearest_neighbour": "neighbour",
}
_MEANING = {
    "per target": "rank correlation with transfer, mean over targets",
    "pooled": "the same over all pairs",
    "nDCG": "of the sources in the indicator's order",
    "Regret@1": "loss of its first choice",
    "AUC": "whether pairs of one type rank first",
    "neighbour": "share of tasks whose nearest task has their type",
}
