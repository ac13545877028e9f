"""Options of a study's data and accelerator; importing them loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prompt_transfer.data.special_tokens import SpecialTokens, check_special_tokens
from prompt_transfer.utils.errors import UserError


@dataclass
class TargetData:
    """Data source of the target tasks.

    Args:
        source: hub, local or builtin; null is local for tasks whose YAML file names a folder, else builtin.
        root: folder that holds <task>/<split>.parquet, .jsonl or .csv for source local.
        max_length: maximum tokens of a text; null: the task's own limit.
        max_tokens: positions of one forward pass; null: a default for the device.
        label_words: default or paper; null: those the prompts were trained with.
        seed: seed of the subset and of a validation split cut from train.
        cache_dir: folder for tokenized examples.
        revision: revision of the hub repository; null: the one in the registry.
        special_tokens: keep the backbone's special tokens in texts, such as </s>, or split them into ordinary tokens.
        template: words around the texts, or question: the task's question in words; null: those given to the prompts'
            training, else the task's own.
        chat_template: wrap the texts in the tokenizer's chat template; null: as in the prompts' training.
    """

    source: Literal["hub", "local", "builtin"] | None = None
    root: str | None = None
    max_length: int | None = None
    max_tokens: int | None = None
    label_words: Literal["default", "paper"] | None = None
    seed: int = 0
    cache_dir: str | None = None
    revision: str | None = None
    special_tokens: SpecialTokens = "keep"
    template: str | None = None
    chat_template: bool | None = None

    def check(self) -> None:
        """Raise UserError if a number is out of range."""
        for name in ("limit_eval", "max_length", "max_tokens"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise UserError(f"--data.{name} must be 1 or more, not {value}")
        if self.seed < 0:
            raise UserError("--data.seed must be 0 or more")
        check_special_tokens(self.special_tokens)


@dataclass
class EvaluationData(TargetData):
    """Data source of the target tasks and the number of examples.

    Args:
        limit_eval: examples per task, a random subset by seed; null for all.
    """

    limit_eval: int | None = 2000


def check_accelerator(name: str) -> None:
    """Raise UserError if the accelerator is unknown."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--accelerator is {name!r}: choose auto, cpu or cuda")


def check_folders(folders: str | Path | Sequence[str | Path]) -> None:
    """Raise UserError if a folder of prompts is missing."""
    for folder in [folders] if isinstance(folders, str | Path) else folders:
        if not Path(folder).is_dir():
            raise UserError(f"no such folder: {folder}; give the folder that holds the prompt files with --prompts")
