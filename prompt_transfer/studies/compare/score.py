"""Training and scoring the missing cells of a comparison, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.seed import isolate_rng

from prompt_transfer.studies.compare.cell import run_cell
from prompt_transfer.studies.compare.plan import Cell
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.studies.compare.load import CompareInputs
    from prompt_transfer.studies.compare.study import CompareStudy


def score(
    study: CompareStudy, inputs: CompareInputs, cells: Sequence[Cell], prepare: Callable[[], None] | None
) -> dict[str, str]:
    """Compute the cells that are not done yet.

    Args:
        study: the settings.
        inputs: loaded inputs.
        cells: cells to compute.
        prepare: called first in every new process.

    Returns:
        Name of each failed cell -> reason.
    """
    missing, failed = [cell for cell in cells if cell.read(study.output) is None], {}
    if cells and len(missing) < len(cells):
        print(f"{len(cells) - len(missing)} of {len(cells)} runs are already done", flush=True)
    for number, cell in enumerate(missing, start=1):
        started = time.monotonic()
        try:
            (_in_this_process if study.same_process else _in_new_process)(study, cell, prepare)
        except UserError as error:
            failed[cell.name] = str(error)
        done = cell.read(study.output)
        told = failed.get(cell.name) or (f"validation {done['validation']:.3f}" if done else "not done")
        print(f"[{number}/{len(missing)}] {cell.name}: {told}, {time.monotonic() - started:.0f} s", flush=True)
    return failed


def _in_this_process(study: CompareStudy, cell: Cell, prepare: Callable[[], None] | None) -> None:
    with isolate_rng():
        run_cell(study, cell)


def _in_new_process(study: CompareStudy, cell: Cell, prepare: Callable[[], None] | None) -> None:
    # Spawn, not fork: threads of torch and tokenizers, and CUDA, do not survive a fork.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(study, cell, prepare, sender), daemon=True)
    process.start()
    sender.close()
    reason = ""
    try:
        # Ends without a message when the process dies.
        with suppress(EOFError):
            reason = receiver.recv()
        process.join()
    finally:
        process.terminate()
        process.join()
        receiver.close()
    if reason:
        raise UserError(reason)
    if cell.read(study.output) is None:
        why = "perhaps for lack of memory" if process.exitcode == -9 else "its last lines above say why"
        raise UserError(f"its process ended with code {process.exitcode}, {why}; run the same command to retry")


def _work(study: CompareStudy, cell: Cell, prepare: Callable[[], None] | None, sender: Any) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # Standard output belongs to the parent's tables (`--json`).
    os.dup2(2, 1)
    if prepare is not None:
        prepare()
    try:
        run_cell(study, cell, measure_memory=True)
        sender.send("")
    except UserError as error:
        sender.send(str(error))
    except KeyboardInterrupt:
        os._exit(130)  # the parent reports the interrupt


def _exit_with_parent() -> None:
    """End this process when its parent is killed: it would interfere with the resumed study."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
