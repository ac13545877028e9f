"""W&B and MLflow options of a run, and removal of secrets from logged configurations."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prompt_transfer.utils.errors import without_secrets

PROJECT = "prompt-transfer"
HIDDEN = "[hidden]"
# Matches `token` and `hub_token`, not `max_tokens` or `tokenizer`.
_SECRET_NAME = re.compile(r"(^|[_.-])(token|secret|passw(or)?d|api_?key|access_?key|private_?key|credentials?)$", re.I)
_SECRET_VALUE = re.compile(r"\b(?:hf_\w{16,}|gh[opsu]_\w{16,}|github_pat_\w{16,}|sk-[\w-]{16,}|wandb_v\d_\w{16,})")


@dataclass
class WandbOptions:
    """W&B settings of a run. Unset ones come from W&B's environment variables.

    Args:
        project: W&B project; default: WANDB_PROJECT, else prompt-transfer.
        entity: W&B user or team; default: WANDB_ENTITY, else the account's default.
        group: study of the run; default: WANDB_RUN_GROUP, else (fit) task and backbone.
        tags: comma-separated tags, added to those of WANDB_TAGS and of the run.
    """

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: str | None = None

    def resolved(self) -> WandbOptions:
        """Return the options with unset values filled in from the environment."""
        tags = [self.tags or "", os.environ.get("WANDB_TAGS", "")]
        return WandbOptions(
            self.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            self.entity or os.environ.get("WANDB_ENTITY"),
            self.group or os.environ.get("WANDB_RUN_GROUP"),
            ",".join(filter(None, tags)) or None,
        )


@dataclass
class MlflowOptions:
    """MLflow settings of a run. Unset ones come from MLflow's environment variables.

    Args:
        experiment: MLflow experiment; default: MLFLOW_EXPERIMENT_NAME, else prompt-transfer.
        tracking_uri: server or folder; default: MLFLOW_TRACKING_URI, else the folder mlruns.
        group: study of the run; default: (fit) task and backbone.
        tags: comma-separated tags, added to those of the run.
    """

    experiment: str | None = None
    tracking_uri: str | None = None
    group: str | None = None
    tags: str | None = None

    def resolved(self) -> MlflowOptions:
        """Return the options with unset values filled in from the environment."""
        return MlflowOptions(
            self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT,
            self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "mlruns",
            self.group,
            self.tags,
        )


# Logger -> its options, which are `--LOGGER.NAME`.
LOGGERS: dict[str, type[WandbOptions] | type[MlflowOptions]] = {"wandb": WandbOptions, "mlflow": MlflowOptions}
LOGGER_NAMES = {"wandb": "W&B", "mlflow": "MLflow"}


def clean(value: Any, name: str = "") -> Any:
    """Return a copy of nested options as plain values, without secrets.

    Values with a secret's name (`token`, `password`) or form (`hf_...`) become `[hidden]`; other strings pass through
    `without_secrets`.
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
