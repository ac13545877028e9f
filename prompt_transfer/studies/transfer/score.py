"""Scoring a transfer study: computes planned batches into the answer files, in one process or several."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from prompt_transfer.studies.transfer.load import TransferInputs, load
from prompt_transfer.studies.transfer.plan import TransferPlan, plan
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.progress import progress

if TYPE_CHECKING:
    from prompt_transfer.studies.transfer.study import TransferStudy


def score(inputs: TransferInputs, planned: TransferPlan, after_target: Callable[[], object] = lambda: None) -> None:
    """Compute the planned batches and save their answers.

    Args:
        inputs: loaded inputs; their answer files are filled.
        planned: this process's share.
        after_target: called after each target.
    """
    distinct = inputs.distinct
    with progress(inputs.rank == 0) as bar:
        everything = bar.add_task("scoring", total=sum(map(sum, planned.costs)))
        shares = zip(inputs.targets, inputs.answers, planned.batches, planned.costs, strict=True)
        for target, file, batches, costs in shares:
            bar.update(everything, description=target.task.name)
            for cost in file.fill(distinct, planned.scorer.answers(target, batches), costs):
                bar.advance(everything, cost)
                _exit_without_parent()
            after_target()


def score_with_workers(study: TransferStudy, inputs: TransferInputs) -> None:
    """Score with `study.devices` processes: this one is the first, the others are started here.

    Raises:
        UserError: a worker failed.
    """
    # Spawn, not fork: threads of torch and tokenizers, and CUDA, do not survive a fork.
    context = multiprocessing.get_context("spawn")
    world, threads = study.devices, torch.get_num_threads()
    loaded, go = [context.Event() for _ in range(1, world)], context.Event()
    workers = [
        context.Process(target=_work, args=(study, rank, one, go), daemon=True)
        for rank, one in enumerate(loaded, start=1)
    ]
    try:
        for worker in workers:
            worker.start()
        torch.set_num_threads(max(1, threads // world))
        # Barrier: every process reads the known answers before any writes, since shares are cut from the missing ones.
        while not all(one.is_set() for one in loaded) and all(worker.is_alive() for worker in workers):
            loaded[0].wait(0.1)
        if all(worker.is_alive() for worker in workers):
            go.set()
            score(inputs, plan(study, inputs, world))
            for worker in workers:
                worker.join()
    finally:
        torch.set_num_threads(threads)
        for worker in workers:
            worker.terminate()
            worker.join()
    if any(worker.exitcode for worker in workers):
        raise UserError("a worker process ended before its share was done; run the same command again to resume")


def _work(study: TransferStudy, rank: int, loaded: Any, go: Any) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // study.devices))
    inputs = load(study, rank)
    loaded.set()
    while not go.wait(1.0):
        _exit_without_parent()
    score(inputs, plan(study, inputs, study.devices))


def _exit_without_parent() -> None:
    """Exit if the parent process was killed: a surviving worker would interfere with the resumed study."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        sys.exit(1)


def score_with_torchrun(study: TransferStudy, inputs: TransferInputs, world: int) -> None:
    """Score this process's share in a group of `world` processes started by torchrun."""
    import torch.distributed as distributed

    distributed.init_process_group("gloo")
    try:
        # Barrier: every process reads the known answers before any writes, since shares are cut from the missing ones.
        distributed.barrier()
        score(inputs, plan(study, inputs, world))
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
