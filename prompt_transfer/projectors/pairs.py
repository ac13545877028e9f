"""The prompts that a projector is trained on: those of the source by task, and those of the target beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt, readable_prompts
from prompt_transfer.prompts.tensor_file import sizes
from prompt_transfer.utils.errors import UserError

# Marks of prompts that were not trained on the task that their metadata name.
MADE = ("random", "projected", "arithmetic")


@dataclass(frozen=True)
class PromptsByTask:
    """K trained prompts of one backbone and shape, of one task each.

    Attributes:
        prompts: in the order of their paths.
        numbers: task -> the numbers of its prompts.
    """

    prompts: list[Prompt]
    numbers: dict[str, list[int]]

    @property
    def embeddings(self) -> Tensor:
        """All of them, float32 [K, P, H]."""
        return torch.stack([prompt.embeddings for prompt in self.prompts])

    def backbone(self, name: str | None = None) -> FrozenBackbone:
        """Their backbone, used as they were trained.

        Args:
            name: in place of the one that they name.

        Raises:
            UserError: they do not name it, or it is another one.
        """
        first = self.prompts[0]
        known = {key: value for key, value in first.metadata.items() if value and value != UNKNOWN}
        name = name or known.get("backbone")
        if name is None:
            raise UserError(f"{first.path} does not name its backbone: give it (--model.source_backbone of fit)")
        mode = {key: known[key] for key in ("layout", "attention", "dtype", "head", "revision") if key in known}
        backbone = FrozenBackbone(name, **mode)
        first.check(backbone)
        return backbone

    @property
    def names(self) -> list[str]:
        """Their paths."""
        return [str(prompt.path) for prompt in self.prompts]

    def need(self, tasks: Sequence[str], what: str) -> None:
        """Make sure that there is a prompt for each task.

        Raises:
            UserError: names the tasks without one, and those that have one.
        """
        missing = [task for task in tasks if task not in self.numbers]
        if missing:
            raise UserError(
                f"no {what} prompt was trained on {', '.join(missing)}: there are prompts for "
                f"{', '.join(sorted(self.numbers)) or 'no task'}"
            )

    def common_start(self, numbers: Sequence[int], kind: str) -> Tensor:
        """What all of these prompts began with, [P, H].

        Args:
            numbers: of the prompts.
            kind: of the projector that asks, for the message.

        Raises:
            UserError: one does not hold its start, or two began differently.
        """
        first, *others = [self.prompts[number] for number in numbers]
        why = f"projector {kind} maps what prompts have learned since one start, and"
        if first.initial is None:
            raise UserError(f"{why} {first.path} does not hold what it began with")
        for other in others:
            if other.initial is None or not torch.equal(other.initial, first.initial):
                raise UserError(
                    f"{why} {first.path} and {other.path} began with other numbers: train the source prompts with one "
                    "--seed_everything and --model.init"
                )
        return first.initial

    def partners(self, others: PromptsByTask, numbers: Sequence[int]) -> list[int]:
        """For some of these prompts the other backbone's prompt of the same task: that of the same seed where there is
        one, else the first."""
        found = []
        for number in numbers:
            facts = self.prompts[number].metadata
            of_task = others.numbers[facts["task"]]
            seed = facts.get("seed", "")
            same = [other for other in of_task if seed and others.prompts[other].metadata.get("seed") == seed]
            found.append((same or of_task)[0])
        return found


def load_by_task(paths: Sequence[str], option: str) -> PromptsByTask:
    """Prompts of files, of run folders, and of folders that hold them at any depth.

    Prompts that were not trained on one task (random, projected, sums, of several tasks) are left out.

    Args:
        paths: what to read.
        option: that named them, for messages.

    Raises:
        UserError: nothing there, a file that cannot be read, or prompts of several backbones or shapes.
    """
    found: list[Prompt] = []
    for path in paths:
        if Path(path).is_file() or not Path(path).exists():
            found.append(Prompt.load(path))
            continue
        found += [Prompt.load(row["path"]) for row in readable_prompts(path)]
    prompts = [
        prompt
        for prompt in found
        if all(prompt.metadata.get(mark, "false") == "false" for mark in MADE)
        and prompt.metadata.get("task")
        and "," not in prompt.metadata["task"]
    ]
    # A prompt that lies below two of the paths counts once.
    distinct: dict[bytes, Prompt] = {}
    for prompt in prompts:
        key = prompt.metadata["task"].encode() + prompt.embeddings.numpy().tobytes()
        distinct.setdefault(key, prompt)
    prompts = list(distinct.values())
    if not prompts:
        raise UserError(f"{option} {', '.join(map(str, paths))}: no prompt there that was trained on one task")
    _check_together(prompts, option)
    numbers: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        numbers.setdefault(prompt.metadata["task"], []).append(number)
    return PromptsByTask(prompts, numbers)


def _check_together(prompts: Sequence[Prompt], option: str) -> None:
    first = prompts[0]
    for prompt in prompts[1:]:
        both = f"{option}: {first.path} and {prompt.path}"
        prints = [one.metadata.get("fingerprint") or UNKNOWN for one in (first, prompt)]
        names = [one.metadata.get("backbone") or UNKNOWN for one in (first, prompt)]
        other = prints[0] != prints[1] if UNKNOWN not in prints else UNKNOWN not in names and names[0] != names[1]
        if other:
            raise UserError(f"{both} are prompts of {names[0]} and {names[1]}: give those of one backbone")
        shapes = [sizes(one.embeddings.shape) for one in (first, prompt)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{both} are {shapes[0]} and {shapes[1]}: a projector is trained on prompts of one shape")
