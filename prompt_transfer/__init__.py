"""Training, transfer and analysis of soft prompts for frozen language models.

Public names are imported on first use: `import prompt_transfer` and `prompt-transfer --help` do not load torch.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_transfer.api.arguments import PromptTrainingArguments
    from prompt_transfer.api.classification import Prediction, classify
    from prompt_transfer.api.prompt_hub import PromptHub
    from prompt_transfer.backbones.frozen import FrozenBackbone
    from prompt_transfer.data.contract import check_batch
    from prompt_transfer.data.datamodule import TaskDataModule
    from prompt_transfer.modules.cross_model_projector import CrossModelProjector
    from prompt_transfer.modules.prompt_tuning import PromptTuning
    from prompt_transfer.prompts.prompt import Prompt
    from prompt_transfer.tasks.task import Task
    from prompt_transfer.utils.errors import UserError
    from prompt_transfer.version import __version__

__all__ = [
    "CrossModelProjector",
    "FrozenBackbone",
    "Prediction",
    "Prompt",
    "PromptHub",
    "PromptTrainingArguments",
    "PromptTuning",
    "Task",
    "TaskDataModule",
    "UserError",
    "__version__",
    "check_batch",
    "classify",
]

_HOMES = {
    "CrossModelProjector": "prompt_transfer.modules.cross_model_projector",
    "FrozenBackbone": "prompt_transfer.backbones.frozen",
    "Prediction": "prompt_transfer.api.classification",
    "Prompt": "prompt_transfer.prompts.prompt",
    "PromptHub": "prompt_transfer.api.prompt_hub",
    "PromptTrainingArguments": "prompt_transfer.api.arguments",
    "PromptTuning": "prompt_transfer.modules.prompt_tuning",
    "Task": "prompt_transfer.tasks.task",
    "TaskDataModule": "prompt_transfer.data.datamodule",
    "UserError": "prompt_transfer.utils.errors",
    "__version__": "prompt_transfer.version",
    "check_batch": "prompt_transfer.data.contract",
    "classify": "prompt_transfer.api.classification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ImportError as error:
        # "(unknown location)" marks a namespace package: a plain folder that shadows the library.
        folder = Path(f"{error.name}").absolute()
        if "(unknown location)" not in str(error) or not folder.is_dir():
            raise
        raise ImportError(f"the folder {folder} shadows the library {error.name}: rename it") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _OldNames:
    """An import finder for the module paths of earlier versions."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module in the tables of `utils/old_names.py`."""
        if not name.startswith(f"{__name__}.") or name.startswith(f"{__name__}.utils"):
            return None
        from prompt_transfer.utils.old_names import find_spec

        return find_spec(name)


# First in the path: Python would import a leftover folder of an old package (`__pycache__`) as a namespace package.
sys.meta_path.insert(0, _OldNames)
