"""`neurons mask`: the loss of a prompt when neurons are masked, compared with random masks and other prompts' masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from torch import Tensor

from prompt_transfer.analysis import neuron_plots, plots
from prompt_transfer.analysis.masking import KINDS, summarize
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.neurons.mask import METHODS, SCOPES, NeuronMask, layer_deviation
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.backbones import describe_backbone, load_backbone
from prompt_transfer.studies.entries import common_value, warn_of_other_words
from prompt_transfer.studies.neurons.capture import find_prompts, load_targets
from prompt_transfer.studies.neurons.masks import MaskedEntry, Neurons, masked_entries, neurons_of
from prompt_transfer.studies.scoring import MAX_TOKENS, AnswerFile, Scorer
from prompt_transfer.studies.targets import EvaluationData, Target, digests_of
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir, write_text_atomic
from prompt_transfer.utils.progress import progress
from prompt_transfer.utils.provenance import write_provenance

ANSWERS = "answers"


@dataclass
class MaskStudy:
    """Settings of a masking study.

    Args:
        backbone, prompts, attention, layout, dtype, label_words_policy, accelerator: as in TransferStudy.
        tasks: target tasks that have prompts of their own in the folder.
        output: folder for tables, figure and answers; a stopped study resumes there.
        neurons: folder of captured neurons; None: capture them now.
        by: tensor of the neuron files that ranks neurons: `activations`, `predictivity` (of `neurons skill`), ...
        data, split: source, number and split of the examples.
        ratios: shares of neurons to mask, each above 0.
        scope: `layer`: the same share in each layer; `all`: of all neurons together.
        methods: any of zero, mean (over the prompts of the folder), noise.
        masks: any of own, same_type, different_type, random.
        sources: number of tasks to take masks from, of the same type and of other types each.
        random_seeds: random masks per size; they match the own mask's neuron count in each layer.
        noise: standard deviation of the noise, relative to that of the layer's neurons.

    Raises:
        UserError: a value is invalid.
    """

    backbone: str
    prompts: str
    tasks: Sequence[str]
    output: str
    neurons: str | None = None
    by: str = "activations"
    data: EvaluationData = field(default_factory=EvaluationData)
    split: str = "test"
    ratios: Sequence[float] = (0.05, 0.1, 0.2, 0.4)
    scope: str = "layer"
    methods: Sequence[str] = ("zero",)
    masks: Sequence[str] = KINDS
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


@dataclass(frozen=True)
class MaskInputs:
    """The checked inputs of a study.

    Attributes:
        folder: output folder.
        backbone: the backbone, on its device.
        prompts: prompts by name.
        targets: the target tasks.
        neurons: ranking values and activations of every prompt.
        answers: known answers to each target.
    """

    folder: Path
    backbone: FrozenBackbone
    prompts: dict[str, Prompt]
    targets: list[Target]
    neurons: Neurons
    answers: list[AnswerFile]


def mask(study: MaskStudy) -> pd.DataFrame:
    """Score each task's own prompts without masks and with each mask; write tables and a figure.

    Returns:
        `results.parquet`: one row per task, own prompt and mask: `mask` (none, own, same_type, different_type, random),
        `mask_source` (prompt that the mask's neurons belong to), `mask_seed`, `ratio`, `method`, `masked` (neurons),
        `value` with its interval over examples, `unmasked` (score without a mask), `drop` (unmasked - value) and
        `majority`.

    Raises:
        UserError: inputs that do not fit, before any score is computed.
    """
    inputs = load(study)
    planned = plan(study, inputs)
    return report(study, inputs, score(study, inputs, planned))


def load(study: MaskStudy) -> MaskInputs:
    """Read and check prompts, backbone, tasks, neurons and known answers.

    Raises:
        UserError: any of them is invalid or does not fit the others.
    """
    prompts = find_prompts(study.prompts)
    backbone = load_backbone(study.backbone, prompts, study.attention, study.layout, study.dtype, study.accelerator)
    policy = common_value(prompts, "label_words_policy", study.label_words_policy)
    targets = load_targets(study.tasks, study.data, study.split, backbone, prompts)
    if policy is not None:
        targets = [target if target.task.has_example_scores else _with_policy(target, policy) for target in targets]
    warn_of_other_words(prompts, [target.task for target in targets], backbone)
    folder = check_writable_dir(study.output)
    neurons = neurons_of(backbone, prompts, study.neurons, study.by)
    answers = [AnswerFile.read(folder / ANSWERS, target, describe_backbone(backbone)) for target in targets]
    return MaskInputs(folder, backbone, prompts, targets, neurons, answers)


def plan(study: MaskStudy, inputs: MaskInputs) -> list[list[MaskedEntry]]:
    """Return the prompts and masks to score on each target.

    Raises:
        UserError: a target has no prompt of its own.
    """
    types = {target.task.name: target.task.type for target in inputs.targets}
    return [masked_entries(study, target.task, inputs.prompts, inputs.neurons, types) for target in inputs.targets]


def score(study: MaskStudy, inputs: MaskInputs, planned: Sequence[Sequence[MaskedEntry]]) -> pd.DataFrame:
    """Compute the missing answers and return the table, rewritten to `results.parquet` after each target."""
    scorer = _MaskScorer(inputs.backbone, list(inputs.neurons[1].values()), study)
    common = {"backbone": study.backbone, **_common(inputs.backbone)}
    rows: list[dict[str, Any]] = []
    with progress() as bar:
        everything = bar.add_task("scoring", total=sum(map(len, planned)))
        for target, file, entries in zip(inputs.targets, inputs.answers, planned, strict=True):
            bar.update(everything, description=target.task.name)
            for entry in entries:
                scorer.score(entry, target, file)
                bar.advance(everything)
            rows += _rows(target, entries, file, common)
            # Keeps complete targets if the study is stopped.
            frame = _table(rows)
            results.write(frame, inputs.folder / "results.parquet")
    return frame


def report(study: MaskStudy, inputs: MaskInputs, frame: pd.DataFrame) -> pd.DataFrame:
    """Write summary, figure, settings and provenance; return `frame`."""
    summary = summarize(frame)
    results.write(summary, inputs.folder / "summary.csv")
    plots.save(neuron_plots.masking_curve(summary), inputs.folder / "masking.png")
    config = asdict(study) | {key: list(getattr(study, key)) for key in ("tasks", "ratios", "methods", "masks")}
    write_text_atomic(inputs.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_provenance(inputs.folder, "neurons mask", config, digests_of(inputs.targets), goes_on=True)
    return frame


def _with_policy(target: Target, policy: str) -> Target:
    return replace(target, task=replace(target.task, label_words_policy=policy))


def _common(backbone: FrozenBackbone) -> dict[str, str]:
    return {key: value for key, value in describe_backbone(backbone).items() if key in ("layout", "attention", "dtype")}


class _MaskScorer:
    """Scores prompts while neurons are masked, with the replacement values of each method."""

    def __init__(self, backbone: FrozenBackbone, activations: Sequence[Tensor], study: MaskStudy) -> None:
        self.backbone, self.study = backbone, study
        self.means = sum(activations[1:], activations[0]) / len(activations)
        self.deviation = layer_deviation(activations) * study.noise

    def score(self, entry: MaskedEntry, target: Target, file: AnswerFile) -> None:
        """Compute the missing answers of an entry."""
        missing = np.isnan(file.matrix([entry]))
        if not missing.any():
            return
        options: dict[str, Any] = {"method": entry.method}
        if entry.method == "mean":
            options["means"] = self.means
        elif entry.method == "noise":
            options |= {"deviation": self.deviation, "seed": entry.mask_seed or 0}
        with NeuronMask(self.backbone, entry.mask, **options):
            # Inside the mask: the scorer records prompt keys and values, which must be masked too.
            scorer = Scorer(self.backbone, [entry])
            budget = self.study.data.max_tokens or MAX_TOKENS[scorer.device.type]
            batches = scorer.batches(target, missing, budget)
            for _ in file.fill([entry], scorer.answers(target, batches), [0] * len(batches)):
                pass


def _rows(
    target: Target, entries: Sequence[MaskedEntry], file: AnswerFile, common: Mapping[str, Any]
) -> list[dict[str, Any]]:
    found = []
    unmasked: dict[str, float] = {}
    for entry in entries:
        scored = target.scored(file.matrix([entry])[0])
        if entry.kind_of_mask == "none":
            unmasked[entry.name] = scored["value"]
        found.append(
            {
                "task": target.task.name,
                "prompt": entry.name,
                "seed": entry.seed,
                **scored,
                "mask": entry.kind_of_mask,
                "mask_source": entry.mask_source,
                "mask_seed": entry.mask_seed,
                "ratio": entry.ratio,
                "method": entry.method if entry.kind_of_mask != "none" else None,
                "masked": int(entry.mask.sum()),
                "unmasked": unmasked[entry.name],
                "drop": unmasked[entry.name] - scored["value"],
                "majority": target.score(target.baseline),
                "task_type": target.task.type,
                **common,
            }
        )
    return found


def _table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    frame = results.table(rows)
    for column in ("seed", "mask_seed"):
        frame[column] = frame[column].astype("Int64")
    return frame


def show(frame: pd.DataFrame, folder: str | Path) -> None:
    """Print the loss by masking, in points, from the table of `mask`."""
    summary: list[dict[str, Any]] = summarize(frame).to_dict("records")  # type: ignore[assignment]
    rows = [
        {
            "mask": row["mask"],
            "method": row["method"],
            "ratio": row["ratio"],
            "drop": 100 * float(row["drop"]),
            "95 %": results.interval(100 * row["low"], 100 * row["high"], 1),
            "tasks": row["tasks"],
        }
        for row in summary
    ]
    title = "points lost, mean over tasks; own - random: extra loss from masking the prompt's own neurons"
    results.show(rows, title, data=summary)
    print(f"table and figure in {folder}")
