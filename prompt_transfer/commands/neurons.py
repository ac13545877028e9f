"""`neurons`: capture and mask what a prompt activates, and compare prompts by it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from prompt_transfer.commands.lightning import quiet, show_warning
from prompt_transfer.commands.parsing import program, split_list, subcommand
from prompt_transfer.studies.targets import EvaluationData
from prompt_transfer.utils import results
from prompt_transfer.utils.distributed import torchrun_rank
from prompt_transfer.utils.files import exclusive_lock

FEW = EvaluationData(limit_eval=200)
MANY = EvaluationData(limit_eval=500)


def capture(
    backbone: str,
    prompts: str,
    output: str,
    tasks: str | None = None,
    data: EvaluationData = FEW,
    split: str = "validation",
    attention: str | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    accelerator: str = "auto",
) -> None:
    """the neurons of every prompt of a folder, without any data or over real inputs

    Leaves a file a prompt, PATH.safetensors for the prompt PATH.safetensors below the folder: `activations`, `before`
    (the activation function), for gated FFNs `gate`, each [layers, neurons], at the answer slot behind the prompt
    alone; with tasks `mean` and `active` (the share of inputs) over their inputs.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a hub id.
        prompts: folder with prompt files, at any depth.
        output: folder for the files; what it holds under other names stays.
        tasks: also over real inputs of these tasks, separated by commas: names, or paths of YAML files.
        data: where the rows come from and how many of each task.
        split: of the tasks; labels are not used.
        attention: full or shared; default: as the prompts were trained.
        layout: default: as the prompts were trained.
        dtype: float32, bfloat16 or float16, of the backbone's weights; default: that of the prompts.
        accelerator: auto, cpu or cuda.
    """
    from prompt_transfer.studies.neurons.capture import CaptureStudy
    from prompt_transfer.studies.neurons.capture import capture as study

    options = CaptureStudy(
        backbone, prompts, output, split_list(tasks), data, split, attention, layout, dtype, accelerator
    )
    # Of several processes that torchrun started the first one writes.
    with nullcontext() if torchrun_rank().rank else exclusive_lock(output):
        paths = study(options)
    if paths:
        print(f"neurons of {len(paths)} prompts")
        # A comparison correlates over pairs of prompts, and two prompts are one pair.
        more = "compare" if len(paths) > 2 else f"mask --backbone {backbone} --tasks TASKS"
        print(f"next: {program()} neurons {more} --prompts {prompts} --neurons {output} --output DIR")
        print(output)


def mask(
    backbone: str,
    prompts: str,
    tasks: str,
    output: str,
    neurons: str | None = None,
    by: str = "activations",
    data: EvaluationData = MANY,
    split: str = "test",
    ratios: list[float] = [0.05, 0.1, 0.2, 0.4],  # noqa: B006
    scope: str = "layer",
    methods: list[str] = ["zero"],  # noqa: B006
    masks: list[str] = ["own", "same_type", "different_type", "random"],  # noqa: B006
    sources: int = 2,
    random_seeds: int = 3,
    noise: float = 1.0,
    attention: str | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    label_words_policy: str | None = None,
    accelerator: str = "auto",
) -> None:
    """what prompts lose without their most activated neurons, beside random ones and those of other tasks

    Leaves results.parquet (a row a prompt and mask), summary.csv and masking.png. Stopped at any point, the same
    command goes on with what is missing.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a hub id.
        prompts: folder with prompt files, at any depth.
        tasks: tasks with prompts of their own there, separated by commas: names, or paths of YAML files.
        output: folder for tables, figure and the answers so far.
        neurons: folder of captured neurons; default: they are captured now.
        by: tensor in these files by which neurons are chosen, the highest first.
        data: where the rows come from and how many of each task.
        split: test or validation.
        ratios: shares of the neurons that are masked.
        scope: layer (the same share in each) or all (of all layers together).
        methods: zero, mean (that of the folder's prompts), noise.
        masks: whose neurons: own, same_type, different_type, random.
        sources: tasks to take masks from, of the same type and of other types.
        random_seeds: random masks of each size, as large in each layer as the own one.
        noise: its standard deviation, in those of the neurons of the layer.
        attention: full or shared; default: as the prompts were trained.
        layout: default: as the prompts were trained.
        dtype: float32, bfloat16 or float16, of the backbone's weights; default: that of the prompts.
        label_words_policy: for label words of several tokens.
        accelerator: auto, cpu or cuda.
    """
    from prompt_transfer.studies.neurons import masking

    study = masking.MaskStudy(
        backbone, prompts, split_list(tasks), output, neurons, by, data, split, ratios, scope, methods, masks, sources,
        random_seeds, noise, attention, layout, dtype, label_words_policy, accelerator,
    )  # fmt: skip
    with exclusive_lock(output):
        frame = masking.mask(study)
    masking.show(frame, output)


def skill(
    backbone: str,
    prompts: str,
    output: str,
    tasks: str | None = None,
    data: EvaluationData = MANY,
    attention: str | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    label_words_policy: str | None = None,
    accelerator: str = "auto",
) -> None:
    """how well each neuron alone tells the classes of the prompt's own task apart

    Adds `predictivity` [layers, neurons] to the files of neurons: thresholds from training rows, accuracies from
    development rows. `neurons mask` takes it with the option by, `analyze indicators` for ON on skill neurons.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a hub id.
        prompts: folder with prompt files, at any depth.
        output: folder of the files of neurons; what they hold under other names stays.
        tasks: YAML files of tasks of your own that prompts were trained on, separated by commas.
        data: where the rows come from and how many of each split.
        attention: full or shared; default: as the prompts were trained.
        layout: default: as the prompts were trained.
        dtype: float32, bfloat16 or float16, of the backbone's weights; default: that of the prompts.
        label_words_policy: for label words of several tokens.
        accelerator: auto, cpu or cuda.
    """
    from prompt_transfer.studies.neurons import probing

    study = probing.ProbingStudy(
        backbone, prompts, output, split_list(tasks), data, attention, layout, dtype, label_words_policy, accelerator
    )
    with exclusive_lock(output):
        best = probing.best_neurons(probing.skill(study), output)
    results.show(best, "the neuron of each prompt that tells most by itself, accuracy on development rows")
    print(f"predictivity of all neurons in {output}")


def probe(
    backbone: str,
    prompts: str,
    output: str,
    tasks: str | None = None,
    data: EvaluationData = FEW,
    attention: str | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    label_words_policy: str | None = None,
    accelerator: str = "auto",
) -> None:
    """what indicators that need labels are made of: Fisher information, gradients, LEEP

    Adds `fisher`, `gradient` and `leep/TASK` to the files of neurons, from training rows of the prompts' own tasks.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a hub id.
        prompts: folder with prompt files, at any depth.
        output: folder of the files of neurons; what they hold under other names stays.
        tasks: YAML files of tasks of your own that prompts were trained on, separated by commas.
        data: where the rows come from and how many of each task.
        attention: full or shared; default: as the prompts were trained.
        layout: default: as the prompts were trained.
        dtype: float32, bfloat16 or float16, of the backbone's weights; default: that of the prompts.
        label_words_policy: for label words of several tokens.
        accelerator: auto, cpu or cuda.
    """
    from prompt_transfer.studies.neurons import probing

    study = probing.ProbingStudy(
        backbone, prompts, output, split_list(tasks), data, attention, layout, dtype, label_words_policy, accelerator
    )
    with exclusive_lock(output):
        print(f"labelled rows behind {len(probing.probe(study))} prompts")
    print(output)


def compare(prompts: str, neurons: str, output: str, backbone: str | None = None) -> None:
    """overlap of activated neurons (ON) between prompts, by task type and layer

    Leaves overlap.parquet (a row a pair of prompts and layer), overlap.csv, overlap.png, overlap_clustered.png,
    activations.png and layers.png.

    Args:
        prompts: folder of prompt files for one backbone; several of a task (seeds) are averaged.
        neurons: folder of captured neurons; a file lies there as its prompt does in the folder of prompts.
        output: folder for tables and figures.
        backbone: take only the prompts for this backbone, by the name in their files.
    """
    from prompt_transfer.studies.neurons.comparison import compare as study

    study(prompts, neurons, output, backbone)


SUBCOMMANDS: dict[str, Callable[..., Any]] = {
    "capture": capture,
    "compare": compare,
    "mask": mask,
    "skill": skill,
    "probe": probe,
}


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer neurons`."""
    quiet()
    warnings.showwarning = show_warning
    subcommand(command, SUBCOMMANDS, arguments)
