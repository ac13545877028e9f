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
    from prompt_transfer.api import plots, tables
    from prompt_transfer.api.arguments import PromptTrainingArguments
    from prompt_transfer.api.classification import Prediction, classify
    from prompt_transfer.api.prompt_hub import PromptHub
    from prompt_transfer.api.runs import fit
    from prompt_transfer.backbones.frozen import FrozenBackbone
    from prompt_transfer.data.contract import check_batch
    from prompt_transfer.data.datamodule import TaskDataModule
    from prompt_transfer.modules.cross_model_projector import CrossModelProjector
    from prompt_transfer.modules.prompt_tuning import PromptTuning
    from prompt_transfer.projectors.closed_form import LeastSquares
    from prompt_transfer.projectors.file import fit_closed_form
    from prompt_transfer.prompts.prompt import Prompt
    from prompt_transfer.studies.data import EvaluationData
    from prompt_transfer.studies.inspection import confusion, nearest_words
    from prompt_transfer.studies.neurons.capture import capture
    from prompt_transfer.studies.neurons.comparison import compare_neurons
    from prompt_transfer.studies.neurons.masking import mask
    from prompt_transfer.studies.neurons.settings import CaptureStudy, MaskStudy
    from prompt_transfer.studies.projection.study import ProjectionStudy, projection
    from prompt_transfer.studies.transfer.convergence import convergence
    from prompt_transfer.studies.transfer.study import TransferStudy, transfer
    from prompt_transfer.tasks.task import Task
    from prompt_transfer.utils.errors import UserError
    from prompt_transfer.version import __version__

__all__ = [
    "CaptureStudy",
    "CrossModelProjector",
    "EvaluationData",
    "FrozenBackbone",
    "LeastSquares",
    "MaskStudy",
    "Prediction",
    "ProjectionStudy",
    "Prompt",
    "PromptHub",
    "PromptTrainingArguments",
    "PromptTuning",
    "Task",
    "TaskDataModule",
    "TransferStudy",
    "UserError",
    "__version__",
    "capture",
    "check_batch",
    "classify",
    "compare_neurons",
    "confusion",
    "convergence",
    "fit",
    "fit_closed_form",
    "mask",
    "nearest_words",
    "plots",
    "projection",
    "tables",
    "transfer",
]

# Public name -> module that defines it.
_HOMES = {
    "CaptureStudy": "prompt_transfer.studies.neurons.settings",
    "CrossModelProjector": "prompt_transfer.modules.cross_model_projector",
    "EvaluationData": "prompt_transfer.studies.data",
    "FrozenBackbone": "prompt_transfer.backbones.frozen",
    "Prediction": "prompt_transfer.api.classification",
    "LeastSquares": "prompt_transfer.projectors.closed_form",
    "MaskStudy": "prompt_transfer.studies.neurons.settings",
    "ProjectionStudy": "prompt_transfer.studies.projection.study",
    "Prompt": "prompt_transfer.prompts.prompt",
    "PromptHub": "prompt_transfer.api.prompt_hub",
    "PromptTrainingArguments": "prompt_transfer.api.arguments",
    "PromptTuning": "prompt_transfer.modules.prompt_tuning",
    "Task": "prompt_transfer.tasks.task",
    "TaskDataModule": "prompt_transfer.data.datamodule",
    "TransferStudy": "prompt_transfer.studies.transfer.study",
    "UserError": "prompt_transfer.utils.errors",
    "__version__": "prompt_transfer.version",
    "check_batch": "prompt_transfer.data.contract",
    "classify": "prompt_transfer.api.classification",
    "capture": "prompt_transfer.studies.neurons.capture",
    "compare_neurons": "prompt_transfer.studies.neurons.comparison",
    "confusion": "prompt_transfer.studies.inspection",
    "convergence": "prompt_transfer.studies.transfer.convergence",
    "fit": "prompt_transfer.api.runs",
    "fit_closed_form": "prompt_transfer.projectors.file",
    "mask": "prompt_transfer.studies.neurons.masking",
    "nearest_words": "prompt_transfer.studies.inspection",
    "projection": "prompt_transfer.studies.projection.study",
    "transfer": "prompt_transfer.studies.transfer.study",
}
# Public modules.
_MODULES = {"plots": "prompt_transfer.api.plots", "tables": "prompt_transfer.api.tables"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_MODULES.get(name) or _HOMES[name])
        value = module if name in _MODULES else getattr(module, name)
    except ImportError as error:
        # "(unknown location)" marks a namespace package: a plain folder that shadows the library.
        folder = Path(f"{error.name}").absolute()
        if "(unknown location)" not in str(error) or not folder.is_dir():
            raise
        raise ImportError(f"the folder {folder} shadows the library {error.name}: rename it") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})


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
