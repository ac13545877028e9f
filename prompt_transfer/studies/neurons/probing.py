"""`neurons skill` and `neurons probe`: what labelled examples say of prompts, into the files of neurons."""

from __future__ import annotations

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
    """Which prompts are looked at, with what data.

    Args:
        backbone, prompts, attention, layout, dtype, label_words_policy, accelerator: as of TransferStudy.
        output: folder of the files of neurons; what they hold under other names stays.
        tasks: YAML files of tasks that are not in the registry.
        data: where the rows of the prompts' own tasks come from and how many of each split.
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


class ProbingRun:
    """A study whose prompts, backbone and tasks have been read and checked.

    Args:
        study: what to do.

    Raises:
        UserError: anything that does not fit, before anything is computed.
    """

    def __init__(self, study: ProbingStudy) -> None:
        self.study = study
        self.prompts = find_prompts(study.prompts)
        self.backbone = load_backbone(
            study.backbone, self.prompts, study.attention, study.layout, study.dtype, study.accelerator
        )
        extra = {get_task(name).name: name for name in study.tasks}
        # Task -> what `get_task` takes, of all tasks that prompts were trained on.
        self.tasks: dict[str, str] = {}
        for prompt in self.prompts.values():
            task = training_task(prompt)
            if task is not None and (task in extra or task in task_names()):
                self.tasks[task] = extra.get(task, task)
        if not self.tasks:
            raise UserError(
                f"no prompt in {study.prompts} was trained on a known task (tasks of your own: --tasks FILE.yaml)"
            )
        self.policy = common_value(self.prompts, "label_words_policy", study.label_words_policy)
        self.folder = check_writable_dir(study.output)
        for name in self.prompts:
            files.check(self.path(name), self.facts(name))

    def path(self, name: str) -> Path:
        """The file of a prompt."""
        return self.folder / f"{name}.safetensors"

    def facts(self, name: str) -> dict[str, str]:
        """What the file must agree in."""
        return prompt_facts(self.backbone, self.prompts[name])

    def targets(self, split: str) -> Iterator[Target]:
        """The tasks with rows of a split, one after the other."""
        for name in self.tasks.values():
            (target,) = load_targets([name], self.study.data, split, self.backbone, self.prompts)
            if self.policy is not None and not target.task.is_generation:
                target = replace(target, task=replace(target.task, label_words_policy=self.policy))
            yield target

    def own(self, task: str) -> dict[str, Prompt]:
        """The prompts that were trained on a task."""
        return {name: prompt for name, prompt in self.prompts.items() if training_task(prompt) == task}

    def add(self, name: str, tensors: Mapping[str, Tensor], **notes: str) -> None:
        """Put tensors into the file of a prompt."""
        files.add(self.path(name), tensors, self.facts(name), notes)


def skill(study: ProbingStudy) -> list[Path]:
    """Predictivity of every neuron for the own task of every prompt, `predictivity` [L, F].

    Thresholds come from training rows, accuracies from development rows. Neurons are looked at on the prompt rows where
    these see the text, as Wang et al. do, else at the answer slot.

    Returns:
        The files.

    Raises:
        UserError: see `ProbingRun`; also no prompt of a classification task.
    """
    ready = ProbingRun(study)
    paths = []
    for train, development in zip(ready.targets("train"), ready.targets("validation"), strict=True):
        if train.task.is_generation:
            continue
        for name, prompt in steps(ready.own(train.task.name).items(), train.task.name):
            found = skill_of(ready.backbone, prompt.embeddings, train, development, study.data.max_tokens)
            ready.add(name, {"predictivity": found})
            paths.append(ready.path(name))
    if not paths:
        raise UserError("skill neurons need classes: no prompt here was trained on a task that has any")
    return paths


def best_neurons(paths: Sequence[Path], folder: str | Path) -> list[dict[str, Any]]:
    """Of each file with a predictivity: prompt, accuracy, layer and neuron (from 0) of its best neuron."""
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
    """Predictivity [L, F] of the neurons behind one prompt [P, H]; see `neurons.skill.predictivity`.

    Raises:
        UserError: a class without rows.
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
    """What indicators that need labels are made of, for every prompt: `fisher`, `gradient` and `leep/TASK`.

    All on training rows. `fisher` [P, H] is the mean over rows of the squared gradient of log p(label | row, prompt) at
    the prompt. `gradient` [P, H] is the gradient of the mean loss of the prompt's task at one prompt that is the same
    for all: random prompt 1 of the backbone. `leep/TASK` [1] is LEEP of the prompt and its own label words on the rows
    of a task.

    Returns:
        The files.

    Raises:
        UserError: see `ProbingRun`.
    """
    ready = ProbingRun(study)
    backbone, data = ready.backbone, study.data
    start = {
        length: random_prompt(backbone, (length, backbone.hidden_size), 1)
        for length in {len(prompt.embeddings) for prompt in ready.prompts.values()}
    }
    targets = list(ready.targets("train"))
    by_name = {target.task.name: target for target in targets}
    for target in targets:
        shared: dict[int, Tensor] = {}
        for name, prompt in steps(ready.own(target.task.name).items(), target.task.name):
            length = len(prompt.embeddings)
            if length not in shared:
                shared[length] = gradients(backbone, start[length], target, data.max_tokens).mean
            found = {"fisher": gradients(backbone, prompt.embeddings, target, data.max_tokens).squares}
            found["gradient"] = shared[length]
            if not target.task.is_generation:
                found |= {
                    f"leep/{other.task.name}": torch.tensor(
                        [leep(backbone, prompt.embeddings, by_name[target.task.name], other, data.max_tokens)]
                    )
                    for other in targets
                    if not other.task.is_generation
                }
            ready.add(name, found, sample=f"{target.split}, {len(target)} rows")
    return [ready.path(name) for task in by_name for name in ready.own(task)]


@dataclass(frozen=True)
class Gradients:
    """Of the loss of single examples at a prompt: their mean, and the mean of their squares, [P, H] on the CPU."""

    mean: Tensor
    squares: Tensor


def gradients(backbone: FrozenBackbone, prompt: Tensor, target: Target, max_tokens: int | None = None) -> Gradients:
    """Gradients of -log p(answer | row, prompt) in nats at the prompt [P, H]."""
    device = backbone.device
    objective = make_objective(backbone, [target.task]).to(device)
    total, squares = (torch.zeros_like(prompt, device=device) for _ in range(2))
    for rows in row_batches(backbone, target, len(prompt), 1, max_tokens):
        # A copy of the prompt an example, so that each has a gradient of its own.
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
    """LEEP of a source prompt [P, H] with its own task's label words on the labelled rows of a target task, in nats.

    With q(z | x) the probability of the source's label z for row x: p(y | z) is estimated on these rows from the sums
    of q, and LEEP is the mean over rows of log sum_z p(y | z) q(z | x). 0 is perfect, minus the entropy of the labels
    is what a source gives that says nothing. Source: Nguyen et al. 2020.
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
            f"a prompt of {source.task.name} gives answers to {target.task.name} that are NaN or Inf: take it out, or "
            f"try --dtype float32 (it is {backbone.dtype_name})"
        )
    return leep_of(whole, torch.cat(labels))


def leep_of(probabilities: Tensor, labels: Tensor) -> float:
    """LEEP of probabilities of source labels [n, Z] and labels of the target [n]; see `leep`."""
    values = probabilities.double()
    joint = torch.zeros(int(labels.max()) + 1, values.shape[1], dtype=torch.float64).index_add_(0, labels, values)
    given = joint / joint.sum(dim=0).clamp_min(1e-300)
    return float((values * given[labels]).sum(dim=1).log().mean())
