"""Where W&B keeps a run, and what of an option never goes there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prompt_transfer.utils.errors import without_secrets

PROJECT = "prompt-transfer"
HIDDEN = "[hidden]"
# `max_tokens` and `tokenizer` are no secrets, `token` and `hub_token` are.
_SECRET_NAME = re.compile(r"(^|[_.-])(token|secret|passw(or)?d|api_?key|access_?key|private_?key|credentials?)$", re.I)
_SECRET_VALUE = re.compile(r"\b(?:hf_\w{16,}|gh[opsu]_\w{16,}|github_pat_\w{16,}|sk-[\w-]{16,}|wandb_v\d_\w{16,})")


@dataclass
class WandbOptions:
    """Where W&B keeps the run; what is not given is taken from W&B's own environment variables.

    Args:
        project: default: WANDB_PROJECT, else prompt-transfer.
        entity: user or team; default: WANDB_ENTITY, else that of the account.
        group: the study that the run belongs to; default: WANDB_RUN_GROUP; of fit else task and backbone.
        tags: more tags, separated by commas, beside those of WANDB_TAGS and of the run.
    """

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: str | None = None

    def resolved(self) -> WandbOptions:
        """With what the environment says in place of what was not given."""
        tags = [self.tags or "", os.environ.get("WANDB_TAGS", "")]
        return WandbOptions(
            self.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            self.entity or os.environ.get("WANDB_ENTITY"),
            self.group or os.environ.get("WANDB_RUN_GROUP"),
            ",".join(filter(None, tags)) or None,
        )


def clean(value: Any, name: str = "") -> Any:
    """A copy of nested options as plain values, without secrets.

    What is named like one (`token`, `password`) or looks like one (`hf_...`) is replaced by `[hidden]`; the rest is
    what `without_secrets` leaves.
    """
    if isinstance(value, Mapping):
        return {str(key): clean(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [clean(inner, name) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    if str(value) and _SECRET_NAME.search(name):
        return HIDDEN
    return _SECRET_VALUE.sub(HIDDEN, without_secrets(str(value)))
