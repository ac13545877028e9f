"""The transfer matrix: N prompts on M tasks of one backbone, each task's rows in one pass, resumable."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from prompt_transfer.analysis import plots
from prompt_transfer.analysis.heatmaps import transfer_heatmap
from prompt_transfer.analysis.matrix import Matrix, from_results, to_table
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.studies.backbones import backbone_options, check_accelerator, choose_device, describe_backbone
from prompt_transfer.studies.entries import (
    check_all,
    common_value,
    make_entries,
    read_folder,
    warn_of_other_words,
)
from prompt_transfer.studies.scoring import MAX_TOKENS, AnswerFile, Batch, Scorer
from prompt_transfer.studies.targets import EvaluationData, Target, digests_of, load_target, warn_of_shared_rows
from prompt_transfer.studies.transfer.table import check_names, is_own, target_rows, tidy
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils import results
from prompt_transfer.utils.distributed import torchrun_rank
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir, exclusive_lock, write_text_atomic
from prompt_transfer.utils.progress import progress
from prompt_transfer.utils.provenance import write_provenance

ANSWERS = "answers"


@dataclass
class TransferStudy:
    """What is scored and how.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a hub id.
        prompts: folder with prompt files, at any depth; or several.
        tasks: target tasks: names, or paths of YAML files.
        output: folder for tables, figures and the answers so far; a study that was stopped goes on there.
        data: where the rows come from and how many.
        split: test or validation.
        random_prompts: how many prompts to draw of each kind: embeddings of tokens, and numbers of U[0, 1).
        attention, layout: None: those of the prompts; else only prompts that were trained so are scored.
        dtype: of the backbone's weights; None: that of the prompts.
        label_words_policy: for label words of several tokens; None: that of the prompts, or of the tasks.
        accelerator: auto, cpu or cuda.
        devices: processes; each takes a share of every task's rows.
    """

    backbone: str
    prompts: str | Sequence[str]
    tasks: Sequence[str]
    output: str
    data: EvaluationData = field(default_factory=EvaluationData)
    split: str = "test"
    random_prompts: int = 3
    attention: str | None = None
    layout: str | None = None
    dtype: str | None = None
    label_words_policy: str | None = None
    accelerator: str = "auto"
    devices: int = 1

    def __post_init__(self) -> None:
        if self.split not in ("test", "validation"):
            raise UserError(f"--split is {self.split!r}: choose test or validation")
        if self.random_prompts < 0 or self.devices < 1:
            raise UserError("--random_prompts must be 0 or more, --devices 1 or more")
        check_accelerator(self.accelerator)
        self.data.check()


class TransferRun:
    """A study whose prompts, backbone, tasks and data have been read and checked.

    Args:
        study: what to do.
        rank: number of this process.

    Raises:
        UserError: anything that does not fit, before any score is computed.
    """

    def __init__(self, study: TransferStudy, rank: int = 0) -> None:
        self.study, self.rank = study, rank
        tasks = [get_task(name) for name in study.tasks]
        names = [task.name for task in tasks]
        if not tasks or len(set(names)) < len(names):
            raise UserError("--tasks needs target tasks, each once")
        prompts = read_folder(study.prompts, study.attention, study.layout)
        options = backbone_options(prompts, study.attention, study.layout, study.dtype)
        self.folder = check_writable_dir(study.output)
        self.backbone = FrozenBackbone(study.backbone, **options)
        check_all(prompts, self.backbone)
        self.entries = make_entries(prompts, self.backbone, study.random_prompts)
        check_names(self.entries)
        policy = common_value(prompts, "label_words_policy", study.label_words_policy)
        tasks = [task.with_policy(policy) for task in tasks]
        words = common_value(prompts, "data_label_words", study.data.label_words) or "default"
        encoder = self.backbone.encoder(max(len(entry.embeddings) for entry in self.entries))
        # The first process alone warns.
        with_keys = rank == 0 and len(tasks) > 1
        self.targets = [load_target(task, study.data, words, study.split, encoder, with_keys) for task in tasks]
        self._rows: dict[str, list[dict[str, Any]]] = {}
        if rank == 0:
            warn_of_other_words(prompts, [target.task for target in self.targets])
            self._warn_of_targets_without_own()
            sources = {entry.source for entry in self.entries if entry.kind == "trained"}
            warn_of_shared_rows(self.targets, sources)
        self.files = [AnswerFile(self.folder / ANSWERS, target, self.facts(), rank) for target in self.targets]
        # What a prompt answers depends on its numbers alone, so equal ones are scored once.
        self.distinct = list({entry.digest: entry for entry in self.entries}.values())

    def facts(self) -> dict[str, str]:
        """What decides all answers beside prompt and task."""
        return describe_backbone(self.backbone)

    def compute(self, world: int) -> None:
        """Score this process's share of what is missing."""
        device = choose_device(self.study.accelerator, self.rank)
        self.backbone.to(device)
        scorer = Scorer(self.backbone, self.distinct)
        max_tokens = self.study.data.max_tokens or MAX_TOKENS[device.type]
        work = []
        for target, file in zip(self.targets, self.files, strict=True):
            missing = np.isnan(file.matrix(self.distinct))
            work.append(scorer.batches(target, missing, max_tokens)[self.rank :: world])
        positions = [
            [_positions(batch, target, scorer.extra(target)) for batch in batches]
            for target, batches in zip(self.targets, work, strict=True)
        ]
        with progress(self.rank == 0) as bar:
            everything = bar.add_task("scoring", total=sum(map(sum, positions)))
            for target, file, batches, costs in zip(self.targets, self.files, work, positions, strict=True):
                bar.update(everything, description=target.task.name)
                for cost in file.fill(self.distinct, scorer.answers(target, batches), costs):
                    bar.advance(everything, cost)
                    _stop_without_parent()
                if world == 1:
                    # Every finished task is in the table at once, also when the rest never comes.
                    self.write_results()

    def write_results(self) -> pd.DataFrame:
        """`results.parquet`: the tasks whose answers are complete."""
        facts = {key: value for key, value in self.facts().items() if key in ("layout", "attention", "dtype")}
        common = {"backbone": self.study.backbone, **facts}
        for target, file in zip(self.targets, self.files, strict=True):
            answers = file.matrix(self.entries)
            if target.task.name not in self._rows and not np.isnan(answers).any():
                self._rows[target.task.name] = target_rows(target, self.entries, answers, common)
        order = [target.task.name for target in self.targets if target.task.name in self._rows]
        types = {target.task.name: target.task.type for target in self.targets}
        frame = tidy([row for name in order for row in self._rows[name]], types)
        results.write(frame, self.folder / "results.parquet")
        return frame

    def finish(self) -> pd.DataFrame:
        """Put the answers of all processes together; tables and figures."""
        self.files = [AnswerFile(self.folder / ANSWERS, target, self.facts()) for target in self.targets]
        for file in self.files:
            paths = file.paths()
            file.save()
            for path in paths:
                if path.name != f"{file.name}.0.npz":
                    path.unlink()
        unfinished = [file.target.task.name for file in self.files if np.isnan(file.matrix(self.entries)).any()]
        if unfinished:
            raise UserError(
                f"scores are missing on {', '.join(unfinished)} (was {self.folder} used by two commands at once?); the "
                "same command goes on with what is missing"
            )
        frame = self.write_results()
        matrix = from_results(frame)
        results.write(to_table(matrix), self.folder / "matrix.csv")
        draw(matrix, self.folder)
        write_text_atomic(self.folder / "config.yaml", yaml.safe_dump(self.config(), sort_keys=False))
        return frame

    def config(self) -> dict[str, Any]:
        """The study as plain values."""
        return asdict(self.study) | {"tasks": list(self.study.tasks)}

    def write_provenance(self) -> None:
        """`provenance.json`; answers of earlier processes stay, and so do those."""
        device = choose_device(self.study.accelerator)
        write_provenance(
            self.folder, "transfer", self.config(), digests_of(self.targets), goes_on=True, device=str(device)
        )

    def _warn_of_targets_without_own(self) -> None:
        names = [target.task.name for target in self.targets]
        without = [name for name in names if not any(is_own(entry, name) for entry in self.entries)]
        if without:
            warnings.warn(
                f"no prompt here was trained on {', '.join(without)}: scores there are not relative to anything "
                "(a prompt of its own below --prompts is what they would be compared with)",
                stacklevel=2,
            )


def draw(matrix: Matrix, folder: Path) -> None:
    """`matrix.png`, ordered by type, and of three targets or more `matrix_clustered.png`."""
    plots.save(transfer_heatmap(matrix), folder / "matrix.png")
    # Two rows have one order.
    if len(matrix.scores) > 2:
        plots.save(transfer_heatmap(matrix, clustered=True), folder / "matrix_clustered.png")


def transfer(study: TransferStudy) -> pd.DataFrame:
    """Score all prompts on all tasks and write the tables and figures.

    Returns:
        The tidy table (`prompt_transfer.studies.transfer.table.target_rows`); in all processes but the first of
        several that torchrun started an empty one.

    Raises:
        UserError: see `TransferRun`; or another process is at work in the output folder.
    """
    rank, world = torchrun_rank()
    with exclusive_lock(study.output) if rank == 0 else nullcontext():
        ready = TransferRun(study, rank)
        if rank == 0:
            ready.write_provenance()
        if world > 1:
            return _with_torchrun(ready, world)
        if study.devices > 1:
            return _with_processes(ready)
        ready.compute(1)
        return ready.finish()


def _with_processes(ready: TransferRun) -> pd.DataFrame:
    """Share the rows with processes that are started here; this one is the first."""
    # Not forked: threads of torch and tokenizers, and CUDA, do not survive that.
    context = multiprocessing.get_context("spawn")
    world, threads = ready.study.devices, torch.get_num_threads()
    readies, go = [context.Event() for _ in range(1, world)], context.Event()
    workers = [
        context.Process(target=_work, args=(ready.study, rank, one, go), daemon=True)
        for rank, one in enumerate(readies, start=1)
    ]
    try:
        for worker in workers:
            worker.start()
        torch.set_num_threads(max(1, threads // world))
        # Nobody writes before all have seen the same answers: the shares are cut from what is missing.
        while not all(one.is_set() for one in readies) and all(worker.is_alive() for worker in workers):
            readies[0].wait(0.1)
        if all(worker.is_alive() for worker in workers):
            go.set()
            ready.compute(world)
            for worker in workers:
                worker.join()
    finally:
        torch.set_num_threads(threads)
        for worker in workers:
            worker.terminate()
            worker.join()
    if any(worker.exitcode for worker in workers):
        raise UserError("a process ended before its share was done; the same command goes on with what is missing")
    return ready.finish()


def _work(study: TransferStudy, rank: int, ready: Any, go: Any) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // study.devices))
    share = TransferRun(study, rank)
    ready.set()
    while not go.wait(1.0):
        _stop_without_parent()
    share.compute(study.devices)


def _stop_without_parent() -> None:
    """End a worker whose first process was killed: it would be in the way of the one that goes on."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        sys.exit(1)


def _with_torchrun(ready: TransferRun, world: int) -> pd.DataFrame:
    import torch.distributed as distributed

    distributed.init_process_group("gloo")
    try:
        # Nobody writes before all have seen the same answers: the shares are cut from what is missing.
        distributed.barrier()
        ready.compute(world)
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
    return ready.finish() if ready.rank == 0 else pd.DataFrame()


def _positions(batch: Batch, target: Target, extra: int) -> int:
    prompts, rows = batch
    return len(prompts) * len(rows) * (int(target.table.lengths[rows].max()) + extra)
