"""`neurons skill`, `neurons probe` and `neurons compare` from prompt files to tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_transfer import P, backbone_of
from test_transfer import _cache as _cache
from test_transfer import prompts as prompts
from test_transfer import tasks as tasks
from torch import Tensor

from prompt_transfer.analysis import neuron_plots
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.modules.objectives import make_objective
from prompt_transfer.neurons.capture import PromptRows
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.studies.neurons.probing import ProbingStudy, gradients, leep_of, probe, skill, skill_of
from prompt_transfer.studies.passes import tensors_of
from prompt_transfer.studies.targets import EvaluationData, Target, load_target
from prompt_transfer.studies.transfer.indicators import analyze
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError

DATA = EvaluationData("local", max_tokens=200)


def target_of(task: str, split: str, backbone: FrozenBackbone) -> Target:
    return load_target(get_task(task), DATA, "default", split, backbone.encoder(P + 2))


def batches(backbone: FrozenBackbone, target: Target) -> list[dict[str, Tensor]]:
    """Collate each row as its own batch."""
    return [tensors_of(backbone, target, np.array([row])) for row in range(len(target))]


@pytest.mark.parametrize("attention", ["full", "shared"])
def test_predictivity_equals_a_loop_over_rows(attention: str, tiny_roberta: Path, tasks: list[str]) -> None:
    backbone = backbone_of(tiny_roberta, attention)
    prompt = random_prompt(backbone, (P, 32), 1)
    train, development = (target_of(tasks[0], split, backbone) for split in ("train", "validation"))

    def neurons(target: Target) -> tuple[Tensor, Tensor]:
        """Return neurons [n, L, P', F] and labels [n]."""
        rows: list[list[Tensor]] = []
        with PromptRows(backbone, lambda layer, found: rows[-1].append(found[0])), torch.no_grad():
            for batch in batches(backbone, target):
                rows.append([])
                backbone.answer_states(prompt, batch)
        return torch.stack([torch.stack(row) for row in rows]), torch.tensor(target.table.labels)

    values, labels = neurons(train)
    assert values.shape[2] == (P if attention == "full" else 1)
    threshold = (values[labels == 1].mean(dim=0) + values[labels == 0].mean(dim=0)) / 2
    values, labels = neurons(development)
    above = (values > threshold).float()
    accuracy = (above[labels == 1].mean(dim=0) + 1 - above[labels == 0].mean(dim=0)) / 2
    expected = ((accuracy - 0.5).abs() + 0.5).amax(dim=1)
    found = skill_of(backbone, prompt, train, development, 200)
    # A neuron within rounding of its threshold may go either way.
    assert ((found - expected).abs() > 1e-5).float().mean() < 0.01
    assert float(found.max()) > 0.6


@pytest.mark.parametrize("attention", ["full", "shared"])
def test_gradients_equal_those_of_single_rows(attention: str, tiny_roberta: Path, tasks: list[str]) -> None:
    backbone = backbone_of(tiny_roberta, attention)
    target = target_of(tasks[0], "train", backbone)
    objective = make_objective(backbone, [target.task])
    prompt = random_prompt(backbone, (P, 32), 1).requires_grad_()
    each = torch.stack(
        [torch.autograd.grad(objective.losses(prompt, batch).sum(), prompt)[0] for batch in batches(backbone, target)]
    )
    found = gradients(backbone, prompt.detach(), target, 200)
    torch.testing.assert_close(found.mean, each.mean(dim=0), atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(found.squares, each.square().mean(dim=0), atol=1e-6, rtol=1e-3)


def probing(backbone: Path, prompts: Path, tasks: list[str], output: Path) -> ProbingStudy:
    return ProbingStudy(str(backbone), str(prompts), str(output), tasks, DATA, accelerator="cpu")


def test_from_prompts_to_all_indicators(
    prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The folder must have prompts of one length; those of the pair task are longer.
    for path in prompts.glob("pairs-*/prompt.safetensors"):
        prompt = Prompt.load(path)
        assert prompt.initial is not None
        Prompt(prompt.embeddings[:P], prompt.metadata, prompt.initial[:P]).save(path)
    neurons = tmp_path / "neurons"
    command = ["--backbone", str(tiny_roberta), "--prompts", str(prompts), "--output", str(neurons)]
    rows = ["--tasks", ",".join(tasks), "--data.source", "local"]
    for verb in ("capture", "skill", "probe"):
        assert main(["neurons", verb, *command, *rows]) == 0
    tensors = load_file(neurons / "films-0.safetensors")
    shapes = {name: tuple(values.shape) for name, values in tensors.items()}
    assert {
        "activations": (2, 64),
        "predictivity": (2, 64),
        "fisher": (P, 32),
        "gradient": (P, 32),
    }.items() <= shapes.items()
    assert {f"leep/{task}" for task in ("films", "rooms", "pairs")} <= set(shapes)
    # The gradients of both seeds are taken at one prompt, the Fisher information at each seed's own.
    other = load_file(neurons / "films-1.safetensors")
    assert torch.equal(tensors["gradient"], other["gradient"])
    assert not torch.equal(tensors["fisher"], other["fisher"])
    backbone = backbone_of(tiny_roberta)
    target = target_of(tasks[2], "train", backbone)
    objective = make_objective(backbone, [get_task(tasks[0])])
    prompt = Prompt.load(prompts / "films-0.safetensors").embeddings
    with torch.no_grad():
        said = torch.cat([objective.logits(prompt, batch).softmax(dim=1) for batch in batches(backbone, target)])  # type: ignore[attr-defined]
    expected = leep_of(said, torch.tensor(target.table.labels))
    assert float(tensors["leep/pairs"]) == pytest.approx(expected, abs=1e-5)

    pairs, _ = analyze(prompts, tmp_path / "analysis", neurons=neurons, resamples=5)
    found = set(pairs["indicator"])
    assert {"neuron_overlap_inputs", "neuron_overlap_target_inputs", "neuron_overlap_skill"} <= found
    assert {"fisher_cosine", "gradient_cosine", "leep"} <= found
    cell = pairs[
        (pairs.indicator == "leep") & (pairs.target_prompt == "pairs-0/prompt") & (pairs.source_prompt == "films-0")
    ]
    assert float(cell["value"].iloc[0]) == pytest.approx(expected, abs=1e-5)

    capsys.readouterr()
    compared = ["neurons", "compare", "--prompts", str(prompts), "--neurons", str(neurons)]
    assert main([*compared, "--output", str(tmp_path / "on")]) == 0
    assert "prompts of one task: 0." in capsys.readouterr().out
    names = {"overlap.parquet", "overlap.csv", "overlap.png", "overlap_clustered.png", "activations.png", "layers.png"}
    names |= {"starts.csv"} | {name.replace(".png", ".txt") for name in names if name.endswith(".png")}
    assert {path.name for path in (tmp_path / "on").iterdir()} == names
    table = pd.read_parquet(tmp_path / "on" / "overlap.parquet")
    assert set(table["indicator"]) == {"neuron_overlap", "neuron_overlap_per_layer/00", "neuron_overlap_per_layer/01"}
    square = pd.read_csv(tmp_path / "on" / "overlap.csv", index_col=0)
    cells = table[(table.indicator == "neuron_overlap") & (table.target == "films") & (table.source == "rooms")]
    assert len(cells) == 4
    assert square.loc["films", "rooms"] == pytest.approx(cells["value"].mean())


def test_masks_of_skill_neurons(prompts: Path, tiny_roberta: Path, tasks: list[str], tmp_path: Path) -> None:
    neurons = str(tmp_path / "neurons")
    base = ["--backbone", str(tiny_roberta), "--prompts", str(prompts), "--data.source", "local"]
    assert main(["neurons", "capture", *base, "--output", neurons]) == 0
    assert main(["neurons", "skill", *base, "--output", neurons, "--tasks", ",".join(tasks)]) == 0
    more = ["--tasks", tasks[0], "--neurons", neurons, "--by", "predictivity", "--output", str(tmp_path / "mask")]
    assert main(["neurons", "mask", *base, *more, "--ratios", "[0.25]", "--masks", "[own,random]"]) == 0
    frame = pd.read_parquet(tmp_path / "mask" / "results.parquet")
    assert set(frame["mask"]) == {"none", "own", "random"}


@pytest.mark.parametrize("study", [skill, probe])
def test_prompts_of_no_known_task_are_refused(study: Any, prompts: Path, tiny_roberta: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="known task"):
        study(probing(tiny_roberta, prompts, [], tmp_path / "out"))


def test_the_clustered_matrix_keeps_what_is_alike_together() -> None:
    square = pd.DataFrame(0.2, list("abcd"), list("abcd"))
    square.loc["a", "c"] = square.loc["c", "a"] = 0.9
    square.loc["b", "d"] = square.loc["d", "b"] = 0.8
    square = square.mask(np.eye(4, dtype=bool), 1.0)
    ax = neuron_plots.overlap_dendrogram(square, ["x", "y", "x", "y"])
    order = [label.get_text() for label in ax.get_yticklabels()]
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset("ac"), frozenset("bd")}
    colours = {label.get_text(): label.get_color() for label in ax.get_yticklabels()}
    assert colours["a"] == colours["c"] != colours["b"] == colours["d"]


def test_the_heatmap_counts_active_neurons() -> None:
    neurons = np.array([[[1.0, 1, -1, -1]], [[1, -1, 1, -1]]])
    ax = neuron_plots.activation_heatmap(neurons, ["a", "b"], bins=4)
    mesh = ax.collections[0].get_array()
    assert mesh is not None
    # Neurons active in both come first, those active in neither last.
    assert np.asarray(mesh).reshape(2, 4).tolist() == [[1, 1, 0, 0], [1, 0, 1, 0]]
