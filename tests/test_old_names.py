"""Import paths of earlier versions resolve to the current modules without importing any twice."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import prompt_transfer
from prompt_transfer.utils.old_names import FORMER, MODULES, PACKAGES, new_name

ALIASES = sorted(
    {
        **{f"prompt_transfer.{old}": f"prompt_transfer.{new}" for old, new in MODULES.items()},
        **{
            f"prompt_transfer.hub.{name}": f"prompt_transfer.api.{name}"
            for name in ("arguments", "prompt_hub", "returns", "runs", "scores", "store")
        },
    }.items()
)
# Names in stored configurations and scripts, and where they are defined today.
CLASSES = [
    ("prompt_transfer.data.corpus.CorpusDataModule", "prompt_transfer.pretraining.corpus"),
    (
        "prompt_transfer.modules.backbone_pretraining.BackbonePretraining",
        "prompt_transfer.pretraining.backbone_pretraining",
    ),
    ("prompt_transfer.modules.prompt_tuning.PromptTuning", "prompt_transfer.modules.prompt_tuning"),
    (
        "prompt_transfer.modules.cross_model_projector.CrossModelProjector",
        "prompt_transfer.modules.cross_model_projector",
    ),
    ("prompt_transfer.data.datamodule.TaskDataModule", "prompt_transfer.data.datamodule"),
    ("prompt_transfer.callbacks.export.PromptExport", "prompt_transfer.callbacks.export"),
    ("prompt_transfer.callbacks.stopping.StopEach", "prompt_transfer.callbacks.stopping"),
    ("prompt_transfer.prompts.initializers.FromPrompt", "prompt_transfer.prompts.initializers"),
    ("prompt_transfer.prompts.reparameterizations.LowRank", "prompt_transfer.prompts.reparameterizations"),
    ("prompt_transfer.projectors.projector.MLP", "prompt_transfer.projectors.projector"),
    ("prompt_transfer.projectors.task_vector.TaskVector", "prompt_transfer.projectors.task_vector"),
    ("prompt_transfer.hub.prompt_hub.PromptHub", "prompt_transfer.api.prompt_hub"),
    ("prompt_transfer.errors.UserError", "prompt_transfer.utils.errors"),
    ("prompt_transfer.tasks.get_task", "prompt_transfer.tasks.registry"),
    ("prompt_transfer.tasks.Task", "prompt_transfer.tasks.task"),
    ("prompt_transfer.studies.transfer.TransferStudy", "prompt_transfer.studies.transfer.study"),
    ("prompt_transfer.studies.projection.ProjectionStudy", "prompt_transfer.studies.projection.study"),
    ("prompt_transfer.studies.recommend.recommend", "prompt_transfer.studies.recommend.study"),
    ("prompt_transfer.studies.sweep.read_plan", "prompt_transfer.studies.sweep.plan"),
    ("prompt_transfer.studies.masking.mask", "prompt_transfer.studies.neurons.masking"),
    ("prompt_transfer.analysis.indicators.euclidean_concat", "prompt_transfer.analysis.indicators"),
]


@pytest.mark.parametrize(("old", "new"), ALIASES)
def test_an_old_path_is_an_alias_of_the_new_module(old: str, new: str) -> None:
    assert new_name(old) == new
    module = importlib.import_module(old)
    assert module is importlib.import_module(new)
    assert module.__name__ == new
    assert module.__spec__ is not None
    assert module.__spec__.name == new


@pytest.mark.parametrize(("path", "home"), CLASSES)
def test_class_names_in_old_configurations_and_scripts_resolve(path: str, home: str) -> None:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert found is getattr(importlib.import_module(home), name)
    assert found.__module__ == home


def test_old_modules_are_attributes_of_their_packages() -> None:
    code = (
        "from prompt_transfer import errors, tasks; from prompt_transfer.hub import arguments; "
        "from prompt_transfer.tasks import get_task, registry; import prompt_transfer.hub as hub; "
        "from prompt_transfer.studies.transfer import TransferStudy, matrix; "
        "print(errors.__name__, tasks.get_task is registry.get_task is get_task, arguments.__name__, "
        "hub.arguments is arguments)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["prompt_transfer.utils.errors", "True", "prompt_transfer.api.arguments", "True"]


def test_old_pickles_load() -> None:
    assert pickle.loads(b"cprompt_transfer.task\nHubSource\n.").__module__ == "prompt_transfer.tasks.task"


def test_no_old_name_hides_a_current_module() -> None:
    package = Path(prompt_transfer.__file__).parent
    for old in (*MODULES, *PACKAGES):
        place = package.joinpath(*old.split("."))
        assert not place.with_suffix(".py").exists(), f"{old} is a module again"
        assert not (place / "__init__.py").exists(), f"{old} is a package again"
    for room, module in FORMER.items():
        assert module.startswith(f"{room}.")


def test_a_leftover_folder_of_an_old_package_is_ignored(tmp_path: Path) -> None:
    left = tmp_path / "hub" / "__pycache__"
    left.mkdir(parents=True)
    code = (
        f"import prompt_transfer; prompt_transfer.__path__.append({str(tmp_path)!r}); "
        "from prompt_transfer.hub.prompt_hub import PromptHub; print(PromptHub.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["prompt_transfer.api.prompt_hub"]


@pytest.mark.parametrize("name", ["eror", "hub.nothing", "tasks.nothing", "studies.nothing"])
def test_unknown_modules_are_missing(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"prompt_transfer.{name}")
    with pytest.raises(AttributeError):
        importlib.import_module("prompt_transfer.tasks").nothing  # noqa: B018


def test_the_package_has_its_version() -> None:
    from prompt_transfer.version import __version__

    assert prompt_transfer.__version__ == __version__
