"""Soft prompts for frozen language models: train them, move them, measure what decides whether that works.

The names below load on first use, so that `import prompt_transfer` (and `prompt-transfer --help`) costs no torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_transfer.backbones.frozen import FrozenBackbone
    from prompt_transfer.data.datamodule import TaskDataModule
    from prompt_transfer.errors import UserError
    from prompt_transfer.hub.arguments import PromptTrainingArguments
    from prompt_transfer.hub.prompt_hub import PromptHub
    from prompt_transfer.modules.cross_model_projector import CrossModelProjector
    from prompt_transfer.modules.prompt_tuning import PromptTuning
    from prompt_transfer.prompts.prompt import Prompt

__version__ = "0.1.0"

__all__ = [
    "CrossModelProjector",
    "FrozenBackbone",
    "Prompt",
    "PromptHub",
    "PromptTrainingArguments",
    "PromptTuning",
    "TaskDataModule",
    "UserError",
    "__version__",
]

_HOMES = {
    "CrossModelProjector": "prompt_transfer.modules.cross_model_projector",
    "FrozenBackbone": "prompt_transfer.backbones.frozen",
    "Prompt": "prompt_transfer.prompts.prompt",
    "PromptHub": "prompt_transfer.hub.prompt_hub",
    "PromptTrainingArguments": "prompt_transfer.hub.arguments",
    "PromptTuning": "prompt_transfer.modules.prompt_tuning",
    "TaskDataModule": "prompt_transfer.data.datamodule",
    "UserError": "prompt_transfer.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ImportError as error:
        # So Python calls a folder of plain files that it took for a library.
        folder = Path(f"{error.name}").absolute()
        if "(unknown location)" not in str(error) or not folder.is_dir():
            raise
        raise ImportError(f"Python takes the folder {folder} for the library {error.name}: rename it") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
