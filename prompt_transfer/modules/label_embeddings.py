"""Trained label embeddings: LM-head rows of the classes of a run's tasks.

Shape letters: N prompts, K tasks, C classes, H' width of the LM head's input.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.label_rows import head_rows
from prompt_transfer.modules.objectives import Classification, Objective
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError


def initial_rows(objective: Objective, backbone: FrozenBackbone) -> Tensor:
    """Return the LM-head rows of the classes [K, C, H'], the mean of the rows of a class's words.

    Raises:
        UserError: the tasks have no single-token label words, or the backbone's LM head is not known.
    """
    if not isinstance(objective, Classification):
        task = objective.tasks[0]
        form = "is multiple choice" if task.is_choice else "generates text"
        raise UserError(
            f"--model.label_embeddings needs classes with label words, but {task.name} {form}: leave it out"
        )
    if objective.sequences is not None:
        raise UserError(
            "--model.label_embeddings needs classes with label words at one answer slot: use another "
            "--model.label_words_policy than sequence, or leave it out"
        )
    rows, _ = head_rows(backbone, objective.token_ids)
    return objective.word_weights.to(rows.device) @ rows


def flat_rows(rows: Tensor, tasks: Sequence[Task]) -> Tensor:
    """Return the rows of all classes, task by task, [sum of classes, H'], for a prompt file."""
    return torch.cat([rows[number, : task.num_classes] for number, task in enumerate(tasks)])


def stored_rows(prompts: Sequence[Prompt | None], tasks: Sequence[Task], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the label embeddings of prompt files for some tasks, and where there are any.

    Args:
        prompts: N prompts, None for those without a file.
        tasks: K tasks.
        like: a tensor [K, C, H'] of the shape and device to return.

    Returns:
        [N, K, C, H'], and a mask [N, K].
    """
    rows = like.new_zeros(len(prompts), *like.shape)
    known = torch.zeros(len(prompts), len(tasks), dtype=torch.bool, device=like.device)
    for number, prompt in enumerate(prompts):
        for index, task in enumerate(tasks):
            own = None if prompt is None else prompt.labels_for(task.name, task.stored_words)
            if own is None:
                continue
            if own.shape[1] != like.shape[2]:
                raise UserError(
                    f"the label embeddings of {prompt.path if prompt else ''} are {own.shape[1]} wide, the LM head of "
                    f"this backbone {like.shape[2]}: use the backbone of the prompt's training"
                )
            rows[number, index, : task.num_classes] = own.to(like)
            known[number, index] = True
    return rows, known


def warn_of_unused(prompt: Prompt, name: str, tasks: Sequence[Task]) -> None:
    """Warn if a prompt's label embeddings do not apply to a task, which is then scored by its label words."""
    if prompt.label_embeddings is None:
        return
    other = [task.name for task in tasks if prompt.labels_for(task.name, task.stored_words) is None]
    if other:
        warnings.warn(
            f"the label embeddings of {name} were trained for other label words than those of {', '.join(other)}: they "
            "are not used there, the LM head's own rows are",
            stacklevel=2,
        )
