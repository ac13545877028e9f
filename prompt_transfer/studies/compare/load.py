"""Loading a comparison: backbone, data and settings, all checked before anything is trained."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_transfer.backbones.family import Family
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.lora import LoraAdapter
from prompt_transfer.data.own import choose_tasks
from prompt_transfer.modules.objectives import make_objective
from prompt_transfer.modules.optimization import OptimizationConfig
from prompt_transfer.studies.backbones import choose_device, describe_backbone
from prompt_transfer.studies.compare.methods import METHODS
from prompt_transfer.studies.targets import Target, load_target
from prompt_transfer.utils.errors import SettingsChangedError, UserError
from prompt_transfer.utils.files import write_text_atomic
from prompt_transfer.utils.provenance import write_provenance

if TYPE_CHECKING:
    from prompt_transfer.studies.compare.study import CompareStudy

SETTINGS = "settings.json"


@dataclass(frozen=True)
class CompareInputs:
    """The checked inputs of a comparison.

    Attributes:
        folder: output folder.
        target: the test examples.
        rates: learning rate of each method, None for those that have none.
    """

    folder: Path
    target: Target
    rates: dict[str, float | None]


def load(study: CompareStudy) -> CompareInputs:
    """Read and check everything that a comparison needs.

    Raises:
        UserError: backbone, task, data or options are invalid or do not fit together.
        SettingsChangedError: the folder has results of other settings.
    """
    folder, (tasks, own_rows) = Path(study.output), choose_tasks(study.task, study.data.columns)
    task = tasks[0].with_policy(study.label_words_policy)
    OptimizationConfig(schedule=study.schedule, warmup_steps=study.warmup_steps)
    device = choose_device(study.accelerator)
    backbone = FrozenBackbone(study.backbone, **study.backbone_options)
    names = study.method_names
    encoder = backbone.encoder(study.prompt_length)
    data = study.data.module(study.task, study.data.seed).connect(encoder)
    if task.is_generation and "linear_probe" in names:
        raise UserError(f"{task.name} has no classes for a linear probe: leave linear_probe out of --methods")
    make_objective(backbone, [one.with_policy(study.label_words_policy) for one in data.tasks])
    data.prepare_data()
    data.setup("fit")
    target = load_target(task, study.data, study.data.word_set, "test", encoder, own=own_rows)
    described = describe_backbone(backbone)
    if "lora" in names:
        # Last, since it changes the backbone, which is not needed any more.
        LoraAdapter(backbone, study.lora, seed=0)
    rates = {name: study.rates.get(name) or _default_rate(study, name, backbone.family) for name in names}
    common = {
        **described,
        **target.facts,
        "examples": {**data.digests()[task.name], "test": target.table.content(0)},
        "prompt_length": study.prompt_length,
        "max_steps": study.max_steps,
        "val_check_interval": study.val_check_interval,
        "batch_size": study.data.batch_size,
        "schedule": study.schedule,
        "warmup_steps": study.warmup_steps,
    }
    own = {name: _own_settings(study, name, rates[name]) for name in names}
    refuse_other_settings(folder, common, own)
    write_provenance(
        folder, "compare", asdict(study), {task.name: common["examples"]}, goes_on=True, device=str(device)
    )
    return CompareInputs(folder, target, rates)


def _default_rate(study: CompareStudy, name: str, family: Family) -> float | None:
    method = METHODS[name]
    if method.make is None:
        return None
    # A method without a rate of its own is made once, which also checks that the backbone supports it.
    return method.rate(family) or method.make(study, None).default_learning_rate


def _own_settings(study: CompareStudy, method: str, rate: float | None) -> dict[str, Any]:
    if METHODS[method].make is None:
        return {"features": study.features}
    found: dict[str, Any] = {"learning_rates": rate, "grid": study.grid}
    return found | {f"lora.{key}": value for key, value in asdict(study.lora).items()} if method == "lora" else found


def refuse_other_settings(folder: Path, common: dict[str, Any], own: dict[str, dict[str, Any]]) -> None:
    """Write the settings to `settings.json`, with those of methods that are there already.

    Args:
        folder: output folder.
        common: settings of all methods.
        own: method -> settings.

    Raises:
        SettingsChangedError: the folder has results of other settings.
        UserError: the file is damaged.
    """
    path, known = folder / SETTINGS, {}
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            before, methods = known["common"], known["methods"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} is damaged: give another --output, or remove that folder") from error
        now = json.loads(json.dumps(common))
        changed = [_change(key, before.get(key), now.get(key)) for key in now if before.get(key) != now.get(key)]
        for name in [name for name in own if name in methods]:
            changed += [
                _change(f"{key} of {name}", methods[name].get(key), value)
                for key, value in own[name].items()
                if methods[name].get(key) != value
            ]
        if changed:
            raise SettingsChangedError(
                f"{folder} holds results of other settings ({', '.join(changed[:4])}): give another --output, or "
                "remove that folder"
            )
        own = {**methods, **own}
    write_text_atomic(path, json.dumps({"common": common, "methods": own}, indent=2) + "\n")


def _change(name: str, before: Any, now: Any) -> str:
    """Describe a changed setting; long values by name only."""
    plain = all(isinstance(value, str | int | float | None) and len(str(value)) < 30 for value in (before, now))
    return f"{name} {before}, now {now}" if plain else name
