"""`neurons`: capture, compare, mask and probe activated neurons."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any

from prompt_transfer.commands.messages import quiet, show_warning
from prompt_transfer.commands.parsing import program, subcommand
from prompt_transfer.studies.data import EvaluationData, check_folders
from prompt_transfer.studies.neurons.settings import CaptureStudy, MaskStudy, ProbingStudy
from prompt_transfer.utils import results
from prompt_transfer.utils.distributed import torchrun_rank
from prompt_transfer.utils.fields import Defaults
from prompt_transfer.utils.files import exclusive_lock

FEW = Defaults(data=EvaluationData(limit_eval=200))
MANY = Defaults(data=EvaluationData(limit_eval=500))


def capture(study: Annotated[CaptureStudy, FEW]) -> None:
    """capture the neurons that every prompt of a folder activates, without data or over the inputs of tasks

    Writes one file per prompt, with the same relative path: `activations`, `before` (the activation function) and, for
    gated FFNs, `gate`, each [layers, neurons], at the answer slot after the prompt alone; with tasks also `mean` and
    `active` (the share of inputs) over their inputs.
    """
    check_folders(study.prompts)
    from prompt_transfer.studies.neurons import capture as capturing

    # Only the first process of torchrun writes.
    with nullcontext() if torchrun_rank().rank else exclusive_lock(study.output):
        paths = capturing.capture(study)
    if paths:
        print(f"neurons of {len(paths)} prompts")
        # Two prompts are a single pair, too few for the correlations of `compare`.
        more = "compare" if len(paths) > 2 else f"mask --backbone {study.backbone} --tasks TASKS"
        print(f"next: {program()} neurons {more} --prompts {study.prompts} --neurons {study.output} --output DIR")
        print(study.output)


def mask(study: Annotated[MaskStudy, MANY]) -> None:
    """measure the loss of score when a prompt's most activated neurons are masked, compared with other masks

    Writes results.parquet (one row per prompt and mask), summary.csv and masking.png. An interrupted command resumes
    with the missing cells when run again.
    """
    check_folders(study.prompts)
    from prompt_transfer.studies.neurons import masking

    with exclusive_lock(study.output):
        frame = masking.mask(study)
    masking.show(frame, study.output)


def skill(study: Annotated[ProbingStudy, MANY]) -> None:
    """measure how well each neuron alone separates the classes of the prompt's task (skill neurons)

    Adds `predictivity` [layers, neurons] to the files of neurons: thresholds fitted on training examples, accuracies on
    validation examples. Used by `neurons mask --by predictivity` and by `analyze indicators` for ON on skill neurons.
    """
    check_folders(study.prompts)
    from prompt_transfer.studies.neurons import probing

    with exclusive_lock(study.output):
        best = probing.best_neurons(probing.skill(study), study.output)
    results.show(best, "the most predictive neuron of each prompt, accuracy on validation examples")
    print(f"predictivity of all neurons in {study.output}")


def probe(study: Annotated[ProbingStudy, FEW]) -> None:
    """compute inputs of indicators that need labels: Fisher information, gradients, LEEP

    Adds `fisher`, `gradient` and `leep/TASK` to the files of neurons, from training examples of the prompts' tasks.
    """
    check_folders(study.prompts)
    from prompt_transfer.studies.neurons import probing

    with exclusive_lock(study.output):
        print(f"probed {len(probing.probe(study))} prompts on labelled examples")
    print(study.output)


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
    from prompt_transfer.studies.neurons.comparison import compare as run_study

    run_study(prompts, neurons, output, backbone)


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
