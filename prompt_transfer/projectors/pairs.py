"""Training prompts of a projector: source prompts by task, paired with target prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.prompts.listing import readable_prompts
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt
from prompt_transfer.prompts.tensor_file import sizes
from prompt_transfer.utils.errors import UserError

# Metadata of prompts that were not trained on their task.
MADE = ("random", "projected", "arithmetic")


@dataclass(frozen=True)
class PromptsByTask:
    """K trained single-task prompts of one backbone and shape.

    Attributes:
        prompts: the prompts, sorted by path.
        numbers: task -> indices of its prompts.
    """

    prompts: list[Prompt]
    numbers: dict[str, list[int]]

    @property
    def embeddings(self) -> Tensor:
        """All prompts, float32 `[K, P, H]`."""
        return torch.stack([prompt.embeddings for prompt in self.prompts])

    def backbone(self, name: str | None = None) -> FrozenBackbone:
        """Load the prompts' backbone in the mode of their training.

        Args:
            name: overrides the backbone in their metadata.

        Raises:
            UserError: no backbone is named, or it does not fit the prompts.
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
        """The paths of the prompts."""
        return [str(prompt.path) for prompt in self.prompts]

    def need(self, tasks: Sequence[str], side: str) -> None:
        """Check that every task has a prompt.

        Args:
            tasks: names of tasks.
            side: whose prompts these are (`source`, `target`), for the message.

        Raises:
            UserError: names the tasks with and without a prompt.
        """
        missing = [task for task in tasks if task not in self.numbers]
        if missing:
            raise UserError(
                f"no {side} prompt was trained on {', '.join(missing)}: there are prompts for "
                f"{', '.join(sorted(self.numbers)) or 'no task'}"
            )

    def common_start(self, numbers: Sequence[int], kind: str) -> Tensor:
        """Return the common initial prompt `[P, H]` of some prompts.

        Args:
            numbers: indices of the prompts.
            kind: name of the projector, for the message.

        Raises:
            UserError: a prompt has no initial prompt, or the initial prompts differ.
        """
        first, *others = [self.prompts[number] for number in numbers]
        why = f"projector {kind} needs prompts with a common initial prompt, but"
        if first.initial is None:
            raise UserError(f"{why} {first.path} holds none: use prompts that `fit` trained")
        for other in others:
            if other.initial is None or not torch.equal(other.initial, first.initial):
                raise UserError(
                    f"{why} those of {first.path} and {other.path} differ: train the source prompts with one "
                    "--seed_everything and --model.init"
                )
        return first.initial

    def partners(self, others: PromptsByTask, numbers: Sequence[int]) -> list[int]:
        """Return the index of the other backbone's prompt of the same task, and of the same seed if possible, for each
        of these prompts."""
        found = []
        for number in numbers:
            facts = self.prompts[number].metadata
            of_task = others.numbers[facts["task"]]
            seed = facts.get("seed", "")
            same = [other for other in of_task if seed and others.prompts[other].metadata.get("seed") == seed]
            found.append((same or of_task)[0])
        return found


def load_by_task(paths: Sequence[str], option: str) -> PromptsByTask:
    """Load prompts from files, run folders, and folders that contain them at any depth.

    Prompts that were not trained on a single task (random, projected, arithmetic, of several tasks) are skipped.

    Args:
        paths: files and folders.
        option: the option that gave the paths, for messages.

    Raises:
        UserError: no prompt, an unreadable file, or prompts of several backbones or shapes.
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
    # A prompt found below several paths counts once.
    distinct: dict[bytes, Prompt] = {}
    for prompt in prompts:
        key = prompt.metadata["task"].encode() + prompt.embeddings.numpy().tobytes()
        distinct.setdefault(key, prompt)
    prompts = list(distinct.values())
    if not prompts:
        raise UserError(f"{option} {', '.join(map(str, paths))}: found no prompt trained on a single task")
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
            raise UserError(f"{both} are prompts of {names[0]} and {names[1]}: give prompts of one backbone")
        shapes = [sizes(one.embeddings.shape) for one in (first, prompt)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{both} are {shapes[0]} and {shapes[1]}: give prompts of one shape")
