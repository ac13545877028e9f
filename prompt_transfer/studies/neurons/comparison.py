"""`neurons compare`: overlap of activated neurons (ON) between the prompts of a folder, as tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prompt_transfer.analysis import captions, indicator_plots, neuron_plots, plots
from prompt_transfer.analysis.indicators import neuron_overlap, neuron_overlap_per_layer
from prompt_transfer.analysis.style import task_labels
from prompt_transfer.prompts.prompt import UNKNOWN
from prompt_transfer.studies.inputs import PromptSet, load_prompts
from prompt_transfer.studies.neuron_inputs import read_neurons
from prompt_transfer.studies.transfer.indicators import mean_over_prompts, pair_table, square_of_tasks
from prompt_transfer.utils import results
from prompt_transfer.utils.files import check_writable_dir

SAME_TASK, SAME, DIFFERENT = "same task", "same type", "different type"


def compare_neurons(
    prompts: str | Path, neurons: str | Path, output: str | Path, backbone: str | None = None
) -> pd.DataFrame:
    """Compute ON of all pairs of prompts; write tables and figures.

    Args:
        prompts, backbone: see `load_prompts`; the prompts determine the task of each neuron file.
        neurons: see `read_neurons`.
        output: folder for `overlap.parquet` (one row per pair of prompts, for each layer and for all layers),
            `overlap.csv` (tasks in rows and columns), `overlap.png` (by task type), `overlap_clustered.png` (with a
            dendrogram), `activations.png`, `layers.png`, and `starts.csv` (see `start_table`) if the prompt files hold
            the initializations.

    Returns:
        The table of pairs: indicator `neuron_overlap` for all layers, `neuron_overlap_per_layer/00`, ... for each.

    Raises:
        UserError: inputs cannot be read or do not match.
    """
    found, activations = load(prompts, neurons, backbone)
    folder = check_writable_dir(output)
    whole, layers = score(activations)
    return report(found, activations, whole, layers, folder)


# The name in earlier versions.
compare = compare_neurons


def load(prompts: str | Path, neurons: str | Path, backbone: str | None = None) -> tuple[PromptSet, np.ndarray]:
    """Read and check prompts and their activations [N, L, F]; arguments as in `compare_neurons`.

    Raises:
        UserError: inputs cannot be read or do not match.
    """
    found = load_prompts(prompts, backbone)
    return found, read_neurons(neurons, found)["neurons"]


def score(activations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ON over all layers [N, N] and per layer [L, N, N]."""
    return neuron_overlap(activations), neuron_overlap_per_layer(activations)


def report(
    found: PromptSet, activations: np.ndarray, whole: np.ndarray, layers: np.ndarray, folder: Path
) -> pd.DataFrame:
    """Write tables and figures and print the means; return the table of pairs."""
    parts = {f"neuron_overlap_per_layer/{number:02d}": matrix for number, matrix in enumerate(layers)}
    pairs = pair_table({"neuron_overlap": whole, **parts}, found)
    results.write(pairs, folder / "overlap.parquet")
    tasks = list(dict.fromkeys(found.tasks))
    types = dict(zip(found.tasks, found.types, strict=True))
    square = pd.DataFrame(mean_over_prompts(whole, found.tasks), pd.Index(tasks, name="task"), tasks)
    results.write(square.reset_index(), folder / "overlap.csv")
    by_layer = layer_table(layers, found)
    drawn, kinds = square_of_tasks(whole, found.tasks), [types[task] for task in tasks]
    figures = {
        "overlap": (indicator_plots.similarity_matrix(drawn, kinds, "ON"), captions.OVERLAP),
        "overlap_clustered": (neuron_plots.overlap_dendrogram(drawn, kinds), captions.OVERLAP_CLUSTERED),
        "activations": (neuron_plots.activation_heatmap(activations, prompt_labels(found)), captions.ACTIVATIONS),
        "layers": (neuron_plots.overlap_by_layer(by_layer), captions.OVERLAP_LAYERS),
    }
    for name, (ax, caption) in figures.items():
        plots.save(ax, folder / f"{name}.png", caption)
    starts = start_table(whole, found)
    if len(starts):
        results.write(starts, folder / "starts.csv")
    _print(folder, whole, by_layer, found, starts)
    return pairs


def prompt_labels(prompts: PromptSet) -> list[str]:
    """Return the task of each prompt, with its seed if a task has several; file names where these are not unique."""
    labels = task_labels(prompts.tasks)
    if len(set(labels)) < len(labels):
        seeds = [prompt.metadata.get("seed", UNKNOWN) for prompt in prompts.prompts]
        labels = [f"{label}, seed {seed}" for label, seed in zip(labels, seeds, strict=True)]
    return labels if len(set(labels)) == len(labels) else short_names(prompts.names)


def short_names(names: Sequence[str]) -> list[str]:
    """Drop the path components that all names share at the same position."""
    parts = [name.split("/") for name in names]
    if len(parts) < 2 or len({len(path) for path in parts}) > 1:
        return list(names)
    distinct = [place for place, words in enumerate(zip(*parts, strict=True)) if len(set(words)) > 1]
    return ["/".join(path[place] for place in distinct) for path in parts]


def layer_table(layers: np.ndarray, prompts: PromptSet) -> pd.DataFrame:
    """Return ON of pairs of different tasks per layer, [L, N, N] -> columns layer, value, pair, target, source.

    Prompts of a task are averaged; each pair of tasks occurs once. Tasks of unknown type match no other type.
    """
    tasks = list(dict.fromkeys(prompts.tasks))
    types = dict(zip(prompts.tasks, prompts.types, strict=True))
    rows: list[dict[str, Any]] = []
    for layer, matrix in enumerate(layers):
        means = mean_over_prompts(matrix, prompts.tasks)
        for left, right in zip(*np.triu_indices(len(tasks), 1), strict=True):
            same = types[tasks[left]] == types[tasks[right]] != UNKNOWN
            row = {"layer": layer, "value": means[left, right], "pair": SAME if same else DIFFERENT}
            rows.append(row | {"target": tasks[left], "source": tasks[right]})
    return pd.DataFrame(rows)


def start_table(whole: np.ndarray, prompts: PromptSet) -> pd.DataFrame:
    """Return mean ON by relation of the tasks and by whether two prompts share their initialization.

    A shared initialization raises ON regardless of training, so compare only pairs with the same kind of start.

    Args:
        whole: ON [N, N] over all layers.
        prompts: the N prompts.

    Returns:
        Columns pair ("same task", "same type", "different type"), start (shared, separate), value (mean ON), pairs;
        empty if a prompt file does not hold the initialization.
    """
    columns = ["pair", "start", "value", "pairs"]
    initial = prompts.initial
    if initial is None:
        return pd.DataFrame(columns=columns)
    rows = []
    for one, other in zip(*np.triu_indices(len(prompts.tasks), 1), strict=True):
        same = prompts.types[one] == prompts.types[other] != UNKNOWN
        kind = SAME_TASK if prompts.tasks[one] == prompts.tasks[other] else SAME if same else DIFFERENT
        start = "shared" if bool((initial[one] == initial[other]).all()) else "separate"
        rows.append({"pair": kind, "start": start, "value": float(whole[one, other])})
    found = pd.DataFrame(rows).groupby(["pair", "start"])["value"].agg(value="mean", pairs="size")
    order = [(pair, start) for pair in (SAME_TASK, SAME, DIFFERENT) for start in ("shared", "separate")]
    return found.loc[[key for key in order if key in found.index]].reset_index()[columns]


def _print(folder: Path, whole: np.ndarray, layers: pd.DataFrame, prompts: PromptSet, starts: pd.DataFrame) -> None:
    means = layers.groupby(["layer", "pair"])["value"].mean().unstack("pair").reindex(columns=[SAME, DIFFERENT])
    rows: list[dict[str, Any]] = [
        {"layer": str(layer), **{str(key): float(value) for key, value in row.items()}}
        for layer, row in means.iterrows()
    ]
    tasks = np.asarray(prompts.tasks)
    own = (tasks[:, None] == tasks) & ~np.eye(len(tasks), dtype=bool)
    results.show(rows, title=f"ON of {len(prompts.names)} prompts, mean over pairs of tasks")
    if own.any():
        print(f"all layers, prompts of one task: {whole[own].mean():.3f}")
    if starts["start"].nunique() > 1:
        lines = [{str(key): value for key, value in row.items()} for row in starts.to_dict("records")]
        results.show(lines, title="ON, all layers, by initialization: a shared start raises ON regardless of training")
    print(f"tables and figures in {folder}")
