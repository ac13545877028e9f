"""The methods that can be compared: a row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from prompt_transfer.backbones.family import Family
from prompt_transfer.backbones.lora import require_peft
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.modules.trained import TrainedModule
from prompt_transfer.modules.weight_tuning import FineTuning, LoraTuning
from prompt_transfer.utils.errors import UserError, install_command

if TYPE_CHECKING:
    from prompt_transfer.studies.compare.study import CompareStudy

# Untrained prompts, the baseline that every comparison contains.
RANDOM = "random_prompt"
MAJORITY = "majority"


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        title: name in figures.
        make: (study, learning rate) -> the module to train; None: not trained by gradients.
        rate: family -> default learning rate; None: the module's `default_learning_rate`.
        check: raises UserError if the method cannot be used.
    """

    title: str
    make: Callable[[CompareStudy, float | None], TrainedModule] | None
    rate: Callable[[Family], float | None] = lambda family: None
    check: Callable[[], None] = lambda: None


def _prompt(study: CompareStudy, rate: float | None) -> TrainedModule:
    return PromptTuning(study.backbone, study.prompt_length, learning_rate=rate, **study.module_options)


def _deep_prompt(study: CompareStudy, rate: float | None) -> TrainedModule:
    options = {**study.module_options, "method": "deep_prompt"}
    return PromptTuning(study.backbone, study.prompt_length, learning_rate=rate, **options)


def _lora(study: CompareStudy, rate: float | None) -> TrainedModule:
    options = study.module_options
    return LoraTuning(study.backbone, study.prompt_length, study.lora, learning_rate=rate, **options)


def _fine_tuning(study: CompareStudy, rate: float | None) -> TrainedModule:
    return FineTuning(study.backbone, study.prompt_length, learning_rate=rate, **study.module_options)


def _require_sklearn() -> None:
    if find_spec("sklearn") is None:
        raise UserError(f"linear_probe needs the package scikit-learn: {install_command('compare')}")


METHODS: dict[str, Method] = {
    "prompt": Method("prompt", _prompt, lambda family: family.learning_rate),
    "deep_prompt": Method("deep prompt", _deep_prompt),
    "lora": Method("LoRA", _lora, lambda family: LoraTuning.default_rate, require_peft),
    "fine_tuning": Method("fine-tuning", _fine_tuning, lambda family: FineTuning.default_rate),
    "linear_probe": Method("linear probe", None, check=_require_sklearn),
}
TITLES = {**{name: method.title for name, method in METHODS.items()}, RANDOM: "random prompt", MAJORITY: "majority"}


def check_methods(names: Sequence[str]) -> None:
    """Raise UserError if a method is unknown, given twice, or cannot be used."""
    if not names or len(set(names)) < len(names):
        raise UserError(f"--methods needs methods, each once: {', '.join(METHODS)}")
    for name in names:
        if name not in METHODS:
            raise UserError(f"unknown method {name!r}: choose of {', '.join(METHODS)}")
        METHODS[name].check()
