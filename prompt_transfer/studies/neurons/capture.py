"""`neurons capture`: captures the neurons of every prompt of a folder, one file per prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.data.tokens import named_rows
from prompt_transfer.neurons import files
from prompt_transfer.neurons.capture import NeuronCapture, capture_prompts
from prompt_transfer.prompts.listing import readable_prompts
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.backbones import describe_backbone, load_backbone
from prompt_transfer.studies.data import check_folders
from prompt_transfer.studies.entries import common_value, with_formats
from prompt_transfer.studies.neurons.settings import CaptureStudy
from prompt_transfer.studies.passes import batches_with_prompts
from prompt_transfer.studies.targets import EvaluationData, Target, load_target
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.distributed import torchrun_rank
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir
from prompt_transfer.utils.progress import progress


def capture(study: CaptureStudy) -> list[Path]:
    """Capture the prompts alone in one batch, then with each task's examples in one pass; write one file per prompt.

    Processes started by torchrun share the examples; the first one writes.

    Returns:
        The files; an empty list in all but the first process.

    Raises:
        UserError: a prompt, task or folder cannot be used, before anything is computed.
    """
    rank, world = torchrun_rank()
    inputs = load(study, rank)
    tensors = score(study, inputs, rank, world)
    return report(inputs, tensors) if rank == 0 else []


@dataclass(frozen=True)
class CaptureInputs:
    """The checked inputs of a capture.

    Attributes:
        folder: output folder.
        backbone: the backbone, on its device.
        prompts: N prompts by name.
        targets: tasks that provide inputs; may be empty.
    """

    folder: Path
    backbone: FrozenBackbone
    prompts: dict[str, Prompt]
    targets: list[Target]

    def path(self, name: str) -> Path:
        """Return the neuron file of a prompt."""
        return self.folder / f"{name}.safetensors"


def load(study: CaptureStudy, rank: int = 0) -> CaptureInputs:
    """Read and check prompts, backbone, existing neuron files and tasks.

    Raises:
        UserError: any of them is invalid or does not fit the others.
    """
    prompts = find_prompts(study.prompts)
    backbone = load_backbone(
        study.backbone, prompts, study.attention, study.layout, study.dtype, study.accelerator, rank
    )
    folder = check_writable_dir(study.output)
    for name, prompt in prompts.items():
        files.check(folder / f"{name}.safetensors", prompt_facts(backbone, prompt))
    targets = load_targets(study.tasks, study.data, study.split, backbone, prompts)
    return CaptureInputs(folder, backbone, prompts, targets)


def score(study: CaptureStudy, inputs: CaptureInputs, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Capture the neurons of all prompts, alone and with the inputs of the tasks: name -> [N, L, F].

    Args:
        study: the settings.
        inputs: loaded inputs.
        rank, world: processes share the examples of the tasks.
    """
    backbone, names = inputs.backbone, list(inputs.prompts)
    prompts = [prompt.values for prompt in inputs.prompts.values()]
    found = capture_prompts(backbone, prompts, names)
    if not inputs.targets:
        return found
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo" if backbone.device.type == "cpu" else "nccl")
    try:
        return found | over_inputs(backbone, prompts, inputs.targets, study.data.max_tokens, rank, world, names)
    finally:
        if world > 1:
            torch.distributed.destroy_process_group()


def report(inputs: CaptureInputs, tensors: Mapping[str, Tensor]) -> list[Path]:
    """Write one neuron file per prompt; return the files."""
    notes = {f"inputs/{target.task.name}": f"{target.split}, {len(target)} rows" for target in inputs.targets}
    for number, (name, prompt) in enumerate(inputs.prompts.items()):
        mine = {key: values[number] for key, values in tensors.items()}
        files.add(inputs.path(name), mine, prompt_facts(inputs.backbone, prompt), notes)
    return [inputs.path(name) for name in inputs.prompts]


@torch.inference_mode()
def over_inputs(
    backbone: FrozenBackbone,
    prompts: Sequence[Tensor],
    targets: Sequence[Target],
    max_tokens: int | None = None,
    rank: int = 0,
    world: int = 1,
    names: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Return the mean of each neuron and the share of inputs that activate it, at the answer slot of real inputs.

    Args:
        prompts: N prompts of either method.
        targets: tasks that provide the inputs.
        max_tokens: positions of one forward pass; None: a default for the device.
        rank, world: processes share the examples of a task; sums are combined by one all-reduce per task.
        names: names of the prompts, for messages.

    Raises:
        UserError: a neuron is NaN or Inf; the message names prompt and examples.

    Returns:
        `mean/TASK`, `active/TASK`, and `mean`, `active` over all tasks with equal weights: name -> float32 [N, L, F]
        on the CPU.
    """
    found: dict[str, Tensor] = {}
    lengths = [len(prompt) for prompt in prompts]
    for target in targets:
        captures = {}
        with progress(rank == 0) as bar:
            task = bar.add_task(target.task.name, total=len(target) * len(prompts) / world)
            for length in dict.fromkeys(lengths):
                mine = [number for number, own in enumerate(lengths) if own == length]
                capture = NeuronCapture(backbone, len(mine), every_kind=False)
                some = [prompts[number] for number in mine]
                inputs = (backbone, some, target, max_tokens, rank, world)
                with capture:
                    for bank, batch in batches_with_prompts(*inputs):
                        backbone.answer_states(bank, batch)
                        bar.advance(task, len(batch["prompt_ids"]))
                capture.all_reduce()
                own_names = [names[number] if names else str(number) for number in mine]
                capture.refuse_broken(own_names, partial(_rows_of, inputs, target.task))
                captures[tuple(mine)] = capture.means()
        places = torch.tensor([number for mine in captures for number in mine]).argsort()
        for name, key in (("mean", "activations"), ("active", "active")):
            found[f"{name}/{target.task.name}"] = torch.cat([means[key] for means in captures.values()])[places]
    for name in ("mean", "active"):
        found[name] = torch.stack([found[f"{name}/{target.task.name}"] for target in targets]).mean(dim=0)
    return found


def _rows_of(inputs: tuple[Any, ...], task: Task, nth: int) -> str:
    """Return the examples of the `nth` batch of `batches_with_prompts`, for messages."""
    _, batch = next(islice(batches_with_prompts(*inputs), nth, None))
    return named_rows(batch["ids"].unique().tolist(), [task.name])


# Shared by all neuron studies ---------------------------------------------------------------------------------------


def find_prompts(folder: str | Path) -> dict[str, Prompt]:
    """Return all prompts below `folder`, sorted, by relative path without suffix.

    Skips the copy that a run of several prompts makes of its best one.

    Raises:
        UserError: the folder is missing or holds no prompt, or a file cannot be read.
    """
    check_folders(folder)
    paths = [Path(row["path"]) for row in readable_prompts(folder)]
    found = {str(path.relative_to(folder).with_suffix("")): Prompt.load(path) for path in paths}
    if not found:
        raise UserError(f"no prompt file in {folder}; `fit` makes them")
    return found


def prompt_facts(backbone: FrozenBackbone, prompt: Prompt) -> dict[str, str]:
    """Return the facts in which a neuron file must agree with its prompt and backbone."""
    return {
        **describe_backbone(backbone),
        "prompt": files.digest(prompt.values),
        "task": prompt.metadata.get("task", ""),
    }


def load_targets(
    tasks: Sequence[str], data: EvaluationData, split: str, backbone: FrozenBackbone, prompts: Mapping[str, Prompt]
) -> list[Target]:
    """Load the tasks with the label words that the prompts were trained with.

    Raises:
        UserError: a task is unknown or named twice, or its data are invalid.
    """
    if not tasks:  # The prompts alone have no format.
        return []
    known = [get_task(name) for name in tasks]
    if len({task.name for task in known}) < len(known):
        raise UserError("--tasks names a task twice")
    words = common_value(dict(prompts), "data_label_words", data.label_words) or "default"
    data = with_formats(dict(prompts), data)
    encoder = backbone.encoder(max(prompt.length for prompt in prompts.values()))
    return [load_target(task, data, words, split, encoder) for task in known]
