"""Settings of the neuron studies, the options of `neurons`; importing them loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from prompt_transfer.analysis.mask_kinds import KINDS
from prompt_transfer.neurons.choices import METHODS, SCOPES
from prompt_transfer.studies.data import EvaluationData
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.fields import NAMES, Option


@dataclass
class CaptureStudy:
    """Settings of a capture, the options of `neurons capture`.

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

    backbone: str
    prompts: str
    output: str
    tasks: Annotated[Sequence[str], NAMES] = ()
    data: EvaluationData = field(default_factory=EvaluationData)
    split: str = "validation"
    attention: str | None = None
    layout: str | None = None
    dtype: str | None = None
    accelerator: str = "auto"


@dataclass
class MaskStudy:
    """Settings of a masking study, the options of `neurons mask`.

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

    Raises:
        UserError: a value is invalid.
    """

    backbone: str
    prompts: str
    tasks: Annotated[Sequence[str], NAMES]
    output: str
    neurons: str | None = None
    by: str = "activations"
    data: EvaluationData = field(default_factory=EvaluationData)
    split: str = "test"
    ratios: Annotated[Sequence[float], Option(type=list[float])] = (0.05, 0.1, 0.2, 0.4)
    scope: str = "layer"
    methods: Annotated[Sequence[str], Option(type=list[str])] = ("zero",)
    masks: Annotated[Sequence[str], Option(type=list[str])] = KINDS
    sources: int = 2
    random_seeds: int = 3
    noise: float = 1.0
    attention: str | None = None
    layout: str | None = None
    dtype: str | None = None
    label_words_policy: str | None = None
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        for name, values, allowed in (
            ("methods", self.methods, METHODS),
            ("masks", self.masks, KINDS),
            ("scope", [self.scope], SCOPES),
            ("split", [self.split], ("validation", "test")),
        ):
            if not values or not set(values) <= set(allowed):
                raise UserError(f"--{name} is {', '.join(values) or 'empty'}: choose of {', '.join(allowed)}")
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise UserError(f"--ratios is {self.ratios}: give shares of neurons above 0, up to 1")
        if not self.tasks:
            raise UserError("--tasks needs target tasks")
        if self.sources < 1 or self.random_seeds < 1 or self.noise <= 0:
            raise UserError("--sources and --random_seeds must be 1 or more, --noise above 0")


@dataclass
class ProbingStudy:
    """Settings of a probing study, the options of `neurons skill` and `neurons probe`.

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

    backbone: str
    prompts: str
    output: str
    tasks: Annotated[Sequence[str], NAMES] = ()
    data: EvaluationData = field(default_factory=EvaluationData)
    attention: str | None = None
    layout: str | None = None
    dtype: str | None = None
    label_words_policy: str | None = None
    accelerator: str = "auto"
