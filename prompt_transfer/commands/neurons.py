"""`neurons`: capture, compare, mask and probe activated neurons."""

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
    """capture the neurons that every prompt of a folder activates, without data or over the inputs of tasks

    Writes one file per prompt, with the same relative path: `activations`, `before` (the activation function) and, for
    gated FFNs, `gate`, each [layers, neurons], at the answer slot after the prompt alone; with tasks also `mean` and
    `active` (the share of inputs) over their inputs.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a Hub id.
        prompts: folder with prompt files, at any depth.
        output: folder for the files; other tensors in existing files are kept.
        tasks: also capture over the inputs of these tasks, comma-separated names or paths of YAML files.
        data: source and number of examples per task.
        split: split of the tasks; labels are not used.
        attention: full or shared; default: the prompts' attention.
        layout: layout; default: the prompts' layout.
        dtype: dtype of the backbone's weights: float32, bfloat16 or float16 (fp32, bf16, fp16); default: the prompts'.
        accelerator: auto, cpu or cuda.
    """
    from prompt_transfer.studies.neurons.capture import CaptureStudy
    from prompt_transfer.studies.neurons.capture import capture as study

    options = CaptureStudy(
        backbone=backbone,
        prompts=prompts,
        output=output,
        tasks=split_list(tasks),
        data=data,
        split=split,
        attention=attention,
        layout=layout,
        dtype=dtype,
        accelerator=accelerator,
    )
    # Only the first process of torchrun writes.
    with nullcontext() if torchrun_rank().rank else exclusive_lock(output):
        paths = study(options)
    if paths:
        print(f"neurons of {len(paths)} prompts")
        # Two prompts are a single pair, too few for the correlations of `compare`.
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
    """measure the loss of score when a prompt's most activated neurons are masked, compared with other masks

    Writes results.parquet (one row per prompt and mask), summary.csv and masking.png. An interrupted command resumes
    with the missing cells when run again.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a Hub id.
        prompts: folder with prompt files, at any depth.
        tasks: tasks with prompts in the folder, comma-separated names or paths of YAML files.
        output: folder for tables, figure and intermediate results.
        neurons: folder of captured neurons; default: capture them now.
        by: tensor in these files that ranks neurons, highest first.
        data: source and number of examples per task.
        split: test or validation.
        ratios: shares of neurons to mask.
        scope: layer (the same share of each layer) or all (a share of all layers together).
        methods: replacement values: zero, mean (over the folder's prompts) or noise.
        masks: neurons to mask: own, same_type, different_type or random.
        sources: number of other tasks to take masks from, of the same type and of other types.
        random_seeds: number of random masks of each size, with the layer sizes of the prompt's own mask.
        noise: standard deviation of the noise, relative to that of the layer's neurons.
        attention: full or shared; default: the prompts' attention.
        layout: layout; default: the prompts' layout.
        dtype: dtype of the backbone's weights: float32, bfloat16 or float16 (fp32, bf16, fp16); default: the prompts'.
        label_words_policy: treatment of label words of several tokens; default: the prompts' policy.
        accelerator: auto, cpu or cuda.
    """
    from prompt_transfer.studies.neurons import masking

    study = masking.MaskStudy(
        backbone=backbone,
        prompts=prompts,
        tasks=split_list(tasks),
        output=output,
        neurons=neurons,
        by=by,
        data=data,
        split=split,
        ratios=ratios,
        scope=scope,
        methods=methods,
        masks=masks,
        sources=sources,
        random_seeds=random_seeds,
        noise=noise,
        attention=attention,
        layout=layout,
        dtype=dtype,
        label_words_policy=label_words_policy,
        accelerator=accelerator,
    )
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
    """measure how well each neuron alone separates the classes of the prompt's task (skill neurons)

    Adds `predictivity` [layers, neurons] to the files of neurons: thresholds fitted on training examples, accuracies on
    validation examples. Used by `neurons mask --by predictivity` and by `analyze indicators` for ON on skill neurons.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a Hub id.
        prompts: folder with prompt files, at any depth.
        output: folder of the files of neurons; other tensors in existing files are kept.
        tasks: comma-separated YAML files of the prompts' tasks outside the registry.
        data: source and number of examples per split.
        attention: full or shared; default: the prompts' attention.
        layout: layout; default: the prompts' layout.
        dtype: dtype of the backbone's weights: float32, bfloat16 or float16 (fp32, bf16, fp16); default: the prompts'.
        label_words_policy: treatment of label words of several tokens; default: the prompts' policy.
        accelerator: auto, cpu or cuda.
    """
    from prompt_transfer.studies.neurons import probing

    study = probing.ProbingStudy(
        backbone=backbone,
        prompts=prompts,
        output=output,
        tasks=split_list(tasks),
        data=data,
        attention=attention,
        layout=layout,
        dtype=dtype,
        label_words_policy=label_words_policy,
        accelerator=accelerator,
    )
    with exclusive_lock(output):
        best = probing.best_neurons(probing.skill(study), output)
    results.show(best, "the most predictive neuron of each prompt, accuracy on validation examples")
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
    """compute inputs of indicators that need labels: Fisher information, gradients, LEEP

    Adds `fisher`, `gradient` and `leep/TASK` to the files of neurons, from training examples of the prompts' tasks.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a Hub id.
        prompts: folder with prompt files, at any depth.
        output: folder of the files of neurons; other tensors in existing files are kept.
        tasks: comma-separated YAML files of the prompts' tasks outside the registry.
        data: source and number of examples per task.
        attention: full or shared; default: the prompts' attention.
        layout: layout; default: the prompts' layout.
        dtype: dtype of the backbone's weights: float32, bfloat16 or float16 (fp32, bf16, fp16); default: the prompts'.
        label_words_policy: treatment of label words of several tokens; default: the prompts' policy.
        accelerator: auto, cpu or cuda.
    """
    from prompt_transfer.studies.neurons import probing

    study = probing.ProbingStudy(
        backbone=backbone,
        prompts=prompts,
        output=output,
        tasks=split_list(tasks),
        data=data,
        attention=attention,
        layout=layout,
        dtype=dtype,
        label_words_policy=label_words_policy,
        accelerator=accelerator,
    )
    with exclusive_lock(output):
        print(f"probed {len(probing.probe(study))} prompts on labelled examples")
    print(output)


def compare(prompts: str, neurons: str, output: str, backbone: str | None = None) -> None:
    """compute the overlap of activated neurons (ON) between prompts, by task type and layer

    Writes overlap.parquet (one row per pair of prompts and layer), overlap.csv, overlap.png, overlap_clustered.png,
    activations.png and layers.png.

    Args:
        prompts: folder with prompt files of one backbone; prompts of one task (seeds) are averaged.
        neurons: folder of captured neurons, with the layout of the prompts folder.
        output: folder for tables and figures.
        backbone: use only prompts of this backbone.
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
