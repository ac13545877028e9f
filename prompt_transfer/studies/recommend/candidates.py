"""What `prompts recommend` is asked for, and the prompts that it can recommend, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.studies.backbones import backbone_options, check_accelerator
from prompt_transfer.studies.entries import (
    check_all,
    common_value,
    make_entries,
    warn_of_other_words,
)
from prompt_transfer.studies.inputs import load_prompts, read_matrix
from prompt_transfer.studies.targets import TargetData
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import prove_writable_dir

SEEDS_OF_A_JUDGEMENT = 5


@dataclass
class RecommendStudy:
    """What is ranked and how.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a hub id.
        prompts: folder with prompt files, at any depth.
        tasks: target tasks: names, or paths of YAML files.
        output: folder for the tables and the prompts of targets that are made.
        data: where the rows of the targets come from.
        target: what the sources are compared with: `auto` (the target's own prompts in the folder, else a short-tuned
            one), `tuned`, `none`, or a prompt file.
        steps: of the short tuning.
        sample: labelled rows of the target's training split that all sources are scored on; 0: none.
        sample_seeds: samples; the first one recommends, all are judged. None: 5 with a matrix, else 1.
        neurons: see `prompt_transfer.studies.neuron_inputs.read_neurons`.
        matrix: a transfer matrix by which the rankings are judged.
        by: the ranking that recommends; None: see `prompt_transfer.studies.recommend.study.PREFERRED`.
        dtype: of the backbone's weights; None: that of the prompts.
        accelerator: auto, cpu or cuda.
        seed: of the short tuning's start and of the samples.
    """

    backbone: str
    prompts: str
    tasks: Sequence[str]
    output: str
    data: TargetData = field(default_factory=TargetData)
    target: str = "auto"
    steps: int = 100
    sample: int = 32
    sample_seeds: int | None = None
    neurons: str | None = None
    matrix: str | None = None
    by: str | None = None
    dtype: str | None = None
    accelerator: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        self.sample_seeds = self.sample_seeds or (SEEDS_OF_A_JUDGEMENT if self.matrix else 1)
        check_accelerator(self.accelerator)
        self.data.check()
        for name, least in (("steps", 1), ("sample_seeds", 1), ("sample", 0), ("seed", 0)):
            if (given := getattr(self, name)) < least:
                raise UserError(f"--{name} is {given}: give {least} or more")
        if not self.tasks:
            raise UserError("--task needs a target task")
        if self.target not in ("auto", "tuned", "none") and len(self.tasks) > 1:
            raise UserError(f"--target {self.target} is the prompt of one task: give one --task")


class Sources:
    """The prompts of the folder, the backbone and the targets, read and checked.

    Raises:
        UserError: anything that does not fit, before anything is computed.
    """

    def __init__(self, study: RecommendStudy) -> None:
        self.study = study
        if Path(study.output).resolve().is_relative_to(Path(study.prompts).resolve()):
            raise UserError(
                f"--output {study.output} lies in --prompts {study.prompts}: prompts that are made there would be "
                "taken for sources; give a folder outside"
            )
        remedy = (
            f"those of one backbone can be recommended: put the prompts for {study.backbone} into a folder of theirs"
        )
        self.found = load_prompts(study.prompts, at_least=1, remedy=remedy)
        named = dict(zip(self.found.names, self.found.prompts, strict=True))
        self.tasks = [get_task(name) for name in study.tasks]
        self.targets = [task.name for task in self.tasks]
        if len(set(self.targets)) < len(self.targets):
            raise UserError("--task names a target task twice")
        self.matrix = None if study.matrix is None else read_matrix(study.matrix)
        if self.matrix is not None and not set(self.targets) & set(self.matrix.index):
            raise UserError(
                f"{study.matrix} has rows for {', '.join(map(str, self.matrix.index))}, none for "
                f"{', '.join(self.targets)}: without --matrix the sources are ranked, but no ranking is judged"
            )
        self.policy = common_value(named, "label_words_policy")
        self.words = study.data.label_words or common_value(named, "data_label_words") or "default"
        prove_writable_dir(study.output)
        self.folder = Path(study.output)
        # The module's backbone serves for everything, so that it is loaded once.
        self.module = PromptTuning(
            study.backbone,
            prompt_length=len(self.found.prompts[0].embeddings),
            label_words_policy=self.policy,
            **backbone_options(named, dtype=study.dtype),
        )
        self.backbone = self.module.backbone
        check_all(named, self.backbone)
        entries = {entry.name: entry for entry in make_entries(named, self.backbone, 0)}
        self.entries = [entries[name] for name in self.found.names]
        # A source is a column of a transfer matrix: the task of a trained prompt, else the name of what was made of it.
        self.sources = [entry.source for entry in self.entries]
        self.own = np.array(
            [[e.kind == "trained" and e.source == name for e in self.entries] for name in self.targets], dtype=bool
        )
        for name, own in zip(self.targets, self.own, strict=True):
            if own.all():
                raise UserError(f"{study.prompts} holds prompts of {name} alone: there is nothing to recommend for it")
        self.tasks = [task.paper_variant() if self.words == "paper" else task for task in self.tasks]
        warn_of_other_words(named, self.tasks)

    @property
    def number(self) -> int:
        """N, prompts of the folder."""
        return len(self.entries)
