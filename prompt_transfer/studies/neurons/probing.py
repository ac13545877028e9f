"""`neurons skill` and `neurons probe`: measurements on labelled examples, added to the neuron files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.modules.objectives import Classification, make_objective
from prompt_transfer.neurons import files
from prompt_transfer.neurons.capture import PromptRows
from prompt_transfer.neurons.skill import ClassSums, baselines, predictivity
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.random_prompts import random_prompt
from prompt_transfer.studies.backbones import load_backbone
from prompt_transfer.studies.entries import common_value
from prompt_transfer.studies.neurons.capture import find_prompts, load_targets, prompt_facts
from prompt_transfer.studies.neurons.masks import training_task
from prompt_transfer.studies.passes import row_batches, tensors_of
from prompt_transfer.studies.targets import EvaluationData, Target
from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir
from prompt_transfer.utils.progress import steps


@dataclass
class ProbingStudy:
    """Settings of a probing study.

    Args:
        backbone, prompts, attention, layout, dtype, label_words_policy, accelerator: as in TransferStudy.
        output: folder of the neuron files; their other tensors are kept.
        tasks: YAML files of tasks missing from the registry.
        data: source of the prompts' own tasks and number of examples per split.
    """

    backbone: str
    prompts: str
    output: str
    tasks: Sequence[str] = ()
    data: EvaluationData = field(default_factory=EvaluationData)
    attention: str | None = None
    layout: str | None = None
    dtype: str | None = None
    label_words_policy: str | None = None
    accelerator: str = "auto"


@dataclass(frozen=True)
class ProbingInputs:
    """The checked inputs of a study.

    Attributes:
        folder: folder of the neuron files.
        data: source and number of examples.
        prompts: prompts by name.
        backbone: the backbone, on its device.
        tasks: training tasks of the prompts -> argument of `get_task`.
        policy: policy for label words of several tokens; None: that of the tasks.
    """

    folder: Path
    data: EvaluationData
    prompts: dict[str, Prompt]
    backbone: FrozenBackbone
    tasks: dict[str, str]
    policy: str | None

    def path(self, name: str) -> Path:
        """Return the neuron file of a prompt."""
        return self.folder / f"{name}.safetensors"

    def facts(self, name: str) -> dict[str, str]:
        """Return the facts in which a prompt's neuron file must agree."""
        return prompt_facts(self.backbone, self.prompts[name])

    def targets(self, split: str) -> Iterator[Target]:
        """Load the tasks with the examples of a split, one after the other."""
        for name in self.tasks.values():
            (target,) = load_targets([name], self.data, split, self.backbone, self.prompts)
            if self.policy is not None and not target.task.has_example_scores:
                target = replace(target, task=replace(target.task, label_words_policy=self.policy))
            yield target

    def own(self, task: str) -> dict[str, Prompt]:
        """Return the prompts trained on a task."""
        return {name: prompt for name, prompt in self.prompts.items() if training_task(prompt) == task}

    def add(self, name: str, tensors: Mapping[str, Tensor], **notes: str) -> None:
        """Add tensors to the neuron file of a prompt."""
        files.add(self.path(name), tensors, self.facts(name), notes)


def load(study: ProbingStudy) -> ProbingInputs:
    """Read and check prompts, backbone, tasks and existing neuron files.

    Raises:
        UserError: any of them is invalid or does not fit the others.
    """
    prompts = find_prompts(study.prompts)
    backbone = load_backbone(study.backbone, prompts, study.attention, study.layout, study.dtype, study.accelerator)
    extra = {get_task(name).name: name for name in study.tasks}
    tasks: dict[str, str] = {}
    for prompt in prompts.values():
        task = training_task(prompt)
        if task is not None and (task in extra or task in task_names()):
            tasks[task] = extra.get(task, task)
    if not tasks:
        raise UserError(
            f"no prompt in {study.prompts} was trained on a known task (tasks of your own: --tasks FILE.yaml)"
        )
    if any(prompt.label_embeddings is not None for prompt in prompts.values()):
        warnings.warn("label embeddings of prompts are not used here: classes are scored by label words", stacklevel=2)
    policy = common_value(prompts, "label_words_policy", study.label_words_policy)
    inputs = ProbingInputs(check_writable_dir(study.output), study.data, prompts, backbone, tasks, policy)
    for name in prompts:
        files.check(inputs.path(name), inputs.facts(name))
    return inputs


def skill(study: ProbingStudy) -> list[Path]:
    """Compute the predictivity of every neuron for each prompt's own task, `predictivity` [L, F].

    Thresholds come from training examples, accuracies from validation examples. Neurons are read at the prompt tokens
    if these attend to the text, as in Wang et al. 2022, else at the answer slot.

    Returns:
        The neuron files.

    Raises:
        UserError: inputs that do not fit (see `load`), or no prompt of a classification task.
    """
    inputs = load(study)
    paths = []
    for train, development in zip(inputs.targets("train"), inputs.targets("validation"), strict=True):
        if train.task.has_example_scores:
            continue
        for name, prompt in steps(inputs.own(train.task.name).items(), train.task.name):
            found = skill_of(inputs.backbone, prompt.embeddings, train, development, study.data.max_tokens)
            inputs.add(name, {"predictivity": found})
            paths.append(inputs.path(name))
    if not paths:
        raise UserError("skill neurons need classes: no prompt was trained on a classification task; add one")
    return paths


def best_neurons(paths: Sequence[Path], folder: str | Path) -> list[dict[str, Any]]:
    """Return the best neuron of each file with a predictivity: prompt, accuracy, layer and neuron, both from 0."""
    rows = []
    for path in paths:
        values = files.read(path)[0]["predictivity"]
        layer, neuron = divmod(int(values.argmax()), values.shape[1])
        name = str(path.relative_to(folder).with_suffix(""))
        rows.append({"prompt": name, "accuracy": float(values.max()), "layer": layer, "neuron": neuron})
    return rows


@torch.inference_mode()
def skill_of(
    backbone: FrozenBackbone, prompt: Tensor, train: Target, development: Target, max_tokens: int | None = None
) -> Tensor:
    """Return the predictivity [L, F] of neurons given one prompt [P, H]; see `neurons.skill.predictivity`.

    Raises:
        UserError: a class has no examples.
    """
    layers = len(backbone.ffn_sites())
    bank = backbone.record(prompt.to(backbone.device))

    def summed(target: Target, thresholds: Tensor | None) -> ClassSums:
        sums = ClassSums(target.task.num_classes, layers, thresholds)
        with PromptRows(backbone, sums.add):
            for rows in row_batches(backbone, target, len(prompt), 1, max_tokens):
                batch = tensors_of(backbone, target, rows)
                sums.next(batch["labels"])
                backbone.answer_states(bank, batch)
        if (sums.counts == 0).any():
            raise UserError(
                f"{target.task.name} has classes without rows on {target.split}: use more rows (--data.limit_eval)"
            )
        return sums

    return predictivity(summed(development, baselines(summed(train, None)))).cpu()


def probe(study: ProbingStudy) -> list[Path]:
    """Compute the inputs of label-based indicators for every prompt: `fisher`, `gradient` and `leep/TASK`.

    All use training examples. `fisher` [P, H] is the mean over examples of the squared gradient of
    log p(label | example, prompt) at the prompt. `gradient` [P, H] is the gradient of the mean loss of the prompt's
    task at random prompt 1 of the backbone, the same for all tasks. `leep/TASK` [1] is LEEP of the prompt and its own
    label words on a task's examples.

    Returns:
        The neuron files.

    Raises:
        UserError: inputs that do not fit (see `load`).
    """
    inputs = load(study)
    backbone, data = inputs.backbone, study.data
    start = {
        length: random_prompt(backbone, (length, backbone.hidden_size), 1)
        for length in {len(prompt.embeddings) for prompt in inputs.prompts.values()}
    }
    targets = list(inputs.targets("train"))
    by_name = {target.task.name: target for target in targets}
    for target in targets:
        shared: dict[int, Tensor] = {}
        for name, prompt in steps(inputs.own(target.task.name).items(), target.task.name):
            length = len(prompt.embeddings)
            if length not in shared:
                shared[length] = gradients(backbone, start[length], target, data.max_tokens).mean
            found = {"fisher": gradients(backbone, prompt.embeddings, target, data.max_tokens).squares}
            found["gradient"] = shared[length]
            if not target.task.has_example_scores:
                found |= {
                    f"leep/{other.task.name}": torch.tensor(
                        [leep(backbone, prompt.embeddings, by_name[target.task.name], other, data.max_tokens)]
                    )
                    for other in targets
                    if not other.task.has_example_scores
                }
            inputs.add(name, found, sample=f"{target.split}, {len(target)} rows")
    return [inputs.path(name) for task in by_name for name in inputs.own(task)]


@dataclass(frozen=True)
class Gradients:
    """Per-example loss gradients at a prompt: their mean and the mean of their squares, [P, H] on the CPU."""

    mean: Tensor
    squares: Tensor


def gradients(backbone: FrozenBackbone, prompt: Tensor, target: Target, max_tokens: int | None = None) -> Gradients:
    """Return the gradients of -log p(answer | example, prompt), in nats, at the prompt [P, H]."""
    device = backbone.device
    objective = make_objective(backbone, [target.task]).to(device)
    total, squares = (torch.zeros_like(prompt, device=device) for _ in range(2))
    for rows in row_batches(backbone, target, len(prompt), 1, max_tokens):
        # One copy of the prompt per example gives per-example gradients in one backward pass.
        copies = prompt.to(device).repeat(len(rows), 1, 1).requires_grad_()
        batch = tensors_of(backbone, target, rows) | {"prompt_ids": torch.arange(len(rows), device=device)}
        (found,) = torch.autograd.grad(objective.losses(copies, batch).sum(), copies)
        total += found.sum(dim=0)
        squares += found.square().sum(dim=0)
    return Gradients((total / len(target)).cpu(), (squares / len(target)).cpu())


@torch.inference_mode()
def leep(
    backbone: FrozenBackbone, prompt: Tensor, source: Target, target: Target, max_tokens: int | None = None
) -> float:
    """Return LEEP, in nats, of a source prompt [P, H] and its task's label words on labelled target examples.

    Let q(z | x) be the probability of source label z for example x. p(y | z) is estimated on these examples from the
    sums of q; LEEP is the mean of log sum_z p(y | z) q(z | x). 0 is perfect; an uninformative source gives minus the
    entropy of the labels. Source: Nguyen et al. 2020.
    """
    device = backbone.device
    objective = make_objective(backbone, [source.task]).to(device)
    assert isinstance(objective, Classification)
    bank = backbone.record(prompt.to(device))
    probabilities, labels = [], []
    for rows in row_batches(backbone, target, len(prompt), 1, max_tokens):
        batch: dict[str, Any] = tensors_of(backbone, target, rows)
        probabilities.append(objective.logits(bank, batch).softmax(dim=1).cpu())
        labels.append(batch["labels"].cpu())
    whole = torch.cat(probabilities)
    if not torch.isfinite(whole).all():
        raise UserError(
            f"a prompt of {source.task.name} gives answers to {target.task.name} that are NaN or Inf: remove it, or "
            f"try --dtype float32 (now {backbone.dtype_name})"
        )
    return leep_of(whole, torch.cat(labels))


def leep_of(probabilities: Tensor, labels: Tensor) -> float:
    """Return LEEP from probabilities of source labels [n, Z] and target labels [n]; see `leep`."""
    values = probabilities.double()
    joint = torch.zeros(int(labels.max()) + 1, values.shape[1], dtype=torch.float64).index_add_(0, labels, values)
    given = joint / joint.sum(dim=0).clamp_min(1e-300)
    return float((values * given[labels]).sum(dim=1).log().mean())
