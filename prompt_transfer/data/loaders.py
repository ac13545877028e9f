"""The DataLoader of a dataset of batches, and checks of the options around it."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Sampler

from prompt_transfer.data.batches import BatchDataset, identity_collate, round_up
from prompt_transfer.data.tokens import TokenTable
from prompt_transfer.utils.errors import UserError


def batch_loader(
    batches: BatchDataset, sampler: Sampler[Any], num_workers: int, seed: int, *, single: bool = False
) -> DataLoader[dict[str, Any]]:
    """Return a loader of the sampler's batches.

    Args:
        batches: dataset of batches.
        sampler: sampler of whole batches (`BatchRows`).
        num_workers: worker processes; 0 builds batches in this process.
        seed: seed of the workers' random numbers.
        single: True for predict, where Lightning wraps batch samplers.
    """
    if num_workers:
        # Workers do not tokenize; without this variable tokenizers warn at every fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # In predict Lightning wraps batch samplers (and warns of unknown ones), but not samplers.
    which: dict[str, Any] = {"sampler": sampler, "batch_size": None} if single else {"batch_sampler": sampler}
    return DataLoader(
        batches,
        **which,
        collate_fn=identity_collate,  # type: ignore[arg-type]  # samplers give whole batches
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # A loader draws a worker seed at each iteration; a generator of its own leaves the global RNG alone.
        generator=torch.Generator().manual_seed(seed),
    )


def check_numbers(least: int, **options: int | None) -> None:
    """Raise UserError if an option of the data is below `least`; None is skipped."""
    for name, value in options.items():
        if value is not None and value < least:
            raise UserError(f"--data.{name} must be {least} or more, not {value}")


def check_budget(table: TokenTable, extra: int, max_tokens: int | None, pad_multiple: int) -> None:
    """Raise UserError if the longest row, with `extra` positions besides its text, exceeds `max_tokens`."""
    longest = int(round_up(table.lengths.max(initial=0), pad_multiple)) + extra
    options = int(((round_up(table.lengths, pad_multiple) + extra) * table.copies).max(initial=0))
    if max_tokens is not None and table.options is not None and options > max_tokens:
        raise UserError(
            f"--data.max_tokens {max_tokens} does not hold one example, whose options take {options} positions "
            f"together; use {options} or more"
        )
    if max_tokens is not None and longest > max_tokens:
        targets = f", of them {table.longest_target} of target" if table.longest_target else ""
        raise UserError(
            f"--data.max_tokens {max_tokens} does not hold one example: the longest has {longest - extra} "
            f"positions of text and {extra} of prompt and answer slot{targets}; use {longest} or more"
        )


def check_order(saved: dict[str, Any] | None, order: dict[str, Any]) -> None:
    """Raise UserError if a checkpoint's training batches came in another order than those of this run."""
    if saved is not None and saved != order:
        changed = [name for name, value in order.items() if value != saved.get(name)]
        raise UserError(
            f"cannot resume from the checkpoint: the training data changed ({', '.join(changed)}); restore the data "
            "and options of that run, or start a new run"
        )


def check_trainer(trainer: L.Trainer | None, stage: str | None) -> None:
    """Raise UserError if options of the trainer would change the batches."""
    if trainer is None:
        return
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise UserError(
            "with several processes set --trainer.use_distributed_sampler false: the data module divides the rows "
            "itself, and Lightning would replace its sampler"
        )
    if stage == "fit" and trainer.accumulate_grad_batches != 1:
        raise UserError(
            f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches}: --data.batch_size counts the "
            "examples of an optimizer step already; to save memory set --data.max_tokens"
        )
