"""`neurons mask`: what a prompt loses when neurons are masked, against random neurons and those of other prompts."""

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
from prompt_transfer.studies.backbones import describe_backbone, load_backbone
from prompt_transfer.studies.entries import common_value, warn_of_other_words
from prompt_transfer.studies.neurons.capture import find_prompts, load_targets
from prompt_transfer.studies.neurons.masks import MaskedEntry, masked_entries, neurons_of
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
    """Which neurons are masked, and what is scored.

    Args:
        backbone, prompts, attention, layout, dtype, label_words_policy, accelerator: as of TransferStudy.
        tasks: target tasks with prompts of their own in the folder.
        output: folder for tables, figure and the answers so far; a study that was stopped goes on there.
        neurons: folder of captured neurons; None: they are captured now.
        by: tensor in these files by which neurons are chosen: `activations`, `predictivity` (of `neurons skill`), ...
        data, split: where the rows come from, and which.
        ratios: shares of neurons, each above 0.
        scope: `layer`: the same share in each layer; `all`: of all neurons together.
        methods: of zero, mean (over the prompts of the folder), noise.
        masks: of own, same_type, different_type, random.
        sources: tasks to take masks from of the same type, and of other types.
        random_seeds: random masks of each size; they have as many neurons in each layer as the own one.
        noise: standard deviation of the noise, in those of the layer's neurons.
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


def mask(study: MaskStudy) -> pd.DataFrame:
    """Score each task's own prompts with all neurons and with masked ones; write table and figure.

    Returns:
        `results.parquet`: one row a task, own prompt and mask: `mask` (none, own, same_type, different_type, random),
        `mask_source` (the prompt whose neurons they are), `mask_seed`, `ratio`, `method`, `masked` (neurons), `value`
        with its interval over rows, `unmasked` (the score with all neurons), `drop` (unmasked - value) and `majority`.

    Raises:
        UserError: anything that does not fit, before any score is computed.
    """
    prompts = find_prompts(study.prompts)
    backbone = load_backbone(study.backbone, prompts, study.attention, study.layout, study.dtype, study.accelerator)
    policy = common_value(prompts, "label_words_policy", study.label_words_policy)
    targets = load_targets(study.tasks, study.data, study.split, backbone, prompts)
    if policy is not None:
        targets = [target if target.task.is_generation else _with_policy(target, policy) for target in targets]
    warn_of_other_words(prompts, [target.task for target in targets])
    folder = check_writable_dir(study.output)
    neurons = neurons_of(backbone, prompts, study.neurons, study.by)
    types = {target.task.name: target.task.type for target in targets}
    plans = {target.task.name: masked_entries(study, target.task, prompts, neurons, types) for target in targets}
    answers = [AnswerFile.read(folder / ANSWERS, target, describe_backbone(backbone)) for target in targets]
    effects = _Effects(backbone, list(neurons[1].values()), study)
    rows: list[dict[str, Any]] = []
    with progress() as bar:
        everything = bar.add_task("scoring", total=sum(map(len, plans.values())))
        for target, file in zip(targets, answers, strict=True):
            bar.update(everything, description=target.task.name)
            for entry in plans[target.task.name]:
                effects.score(entry, target, file)
                bar.advance(everything)
            rows += _rows(target, plans[target.task.name], file, {"backbone": study.backbone, **_common(backbone)})
            # Every finished task is in the table at once, also when the rest never comes.
            frame = _table(rows)
            results.write(frame, folder / "results.parquet")
    summary = summarize(frame)
    results.write(summary, folder / "summary.csv")
    plots.save(neuron_plots.masking_curve(summary), folder / "masking.png")
    config = asdict(study) | {key: list(getattr(study, key)) for key in ("tasks", "ratios", "methods", "masks")}
    write_text_atomic(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_provenance(folder, "neurons mask", config, digests_of(targets), goes_on=True)
    return frame


def _with_policy(target: Target, policy: str) -> Target:
    return replace(target, task=replace(target.task, label_words_policy=policy))


def _common(backbone: FrozenBackbone) -> dict[str, str]:
    return {key: value for key, value in describe_backbone(backbone).items() if key in ("layout", "attention", "dtype")}


class _Effects:
    """Scores entries with their masks on; each method has what it puts in place of neurons."""

    def __init__(self, backbone: FrozenBackbone, activations: Sequence[Tensor], study: MaskStudy) -> None:
        self.backbone, self.study = backbone, study
        self.means = sum(activations[1:], activations[0]) / len(activations)
        self.deviation = layer_deviation(activations) * study.noise

    def score(self, entry: MaskedEntry, target: Target, file: AnswerFile) -> None:
        """Fill in the answers of an entry that are missing."""
        missing = np.isnan(file.matrix([entry]))
        if not missing.any():
            return
        options: dict[str, Any] = {"method": entry.method}
        if entry.method == "mean":
            options["means"] = self.means
        elif entry.method == "noise":
            options |= {"deviation": self.deviation, "seed": entry.mask_seed or 0}
        with NeuronMask(self.backbone, entry.mask, **options):
            # Inside, so that prompts that are recorded are masked too.
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
    """Print what masking costs, in points; `frame` is that of `mask`."""
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
    title = "points lost, mean over tasks; own - random: what own neurons cost more than random ones"
    results.show(rows, title, data=summary)
    print(f"table and figure in {folder}")
