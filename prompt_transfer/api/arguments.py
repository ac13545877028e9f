"""The settings of a hub: what its verbs use where they are not told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

SOURCES = ("hub", "local", "builtin")
# Values of a run's configuration that a hub decides, or that would make several prompts of one run.
OURS = (("model", "backbone"), ("model", "prompts"), ("model", "seeds"), ("model", "learning_rates"), ("data", "task"))


@dataclass
class PromptTrainingArguments:
    """Settings of a `PromptHub`.

    Args:
        output_dir: folder for all that the hub makes; what its verbs need they read from there.
        dataset: the task: a name (`prompt-transfer tasks list`) or the path of a YAML file.
        backbone: a built-in backbone, the folder of a Hugging Face model, or a hub id.
        prompt_len: P, rows of a prompt.
        learning_rate: of prompts; None: that of the backbone's family.
        max_steps: optimizer steps of a prompt, and of a projector.
        eval_steps: steps between two evaluations, the best of which is kept; None: a tenth of the steps.
        batch_size: examples of an optimizer step.
        seed: of a prompt's or projector's start.
        data_source: hub, local or builtin. None: built-in tasks are built in; others come from a folder where
            `data_root` or the task's own file names one, else from the Hugging Face hub.
        data_root: folder that holds <task>/<split>.parquet, .jsonl or .csv.
        max_length: tokens that a text keeps; None: the task's own.
        limit_train, limit_eval: rows of each split that are used, a random subset; None: all.
        random_prompts: of each kind (embeddings of tokens, numbers of U[0, 1)) beside every score, masks of random
            neurons beside every mask, and random source prompts beside every projection.
        projector: MLP, TokenMLP, Linear or TaskVector.
        projector_learning_rate: None: the module's own.
        accelerator: auto, cpu or cuda.
        progress: show bars while something is trained.
        prompt_options: further values of a prompt's run, as in a file for `fit --config`; they win:
            {"model": {"attention": "shared"}}.
        projector_options: the same of a projector's run.

    Raises:
        UserError: a value that cannot be, or an unknown task.
    """

    output_dir: str
    dataset: str
    backbone: str
    prompt_len: int = 100
    learning_rate: float | None = None
    max_steps: int = 1000
    eval_steps: int | None = None
    batch_size: int = 32
    seed: int = 0
    data_source: Literal["hub", "local", "builtin"] | None = None
    data_root: str | None = None
    max_length: int | None = None
    limit_train: int | None = None
    limit_eval: int | None = None
    random_prompts: int = 1
    projector: str = "MLP"
    projector_learning_rate: float | None = None
    accelerator: str = "auto"
    progress: bool = True
    prompt_options: Mapping[str, Any] = field(default_factory=dict)
    projector_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A path is as good as its name.
        self.output_dir, self.dataset, self.backbone = map(str, (self.output_dir, self.dataset, self.backbone))
        self.data_root = None if self.data_root is None else str(self.data_root)
        for name in ("output_dir", "dataset", "backbone"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty")
        for name in ("prompt_len", "max_steps", "batch_size"):
            _check_whole(name, getattr(self, name), 1)
        for name in ("eval_steps", "max_length", "limit_train", "limit_eval"):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), 1)
        _check_whole("seed", self.seed, 0)
        _check_whole("random_prompts", self.random_prompts, 1)
        for name in ("learning_rate", "projector_learning_rate"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value > 0):
                raise UserError(f"{name} is {value!r}: give a number above 0, or None for the default")
        if self.data_source is not None and self.data_source not in SOURCES:
            raise UserError(f"data_source is {self.data_source!r}: choose one of {', '.join(SOURCES)}")
        if self.accelerator not in ("auto", "cpu", "cuda"):
            raise UserError(f"accelerator is {self.accelerator!r}: choose auto, cpu or cuda")
        for name in ("prompt_options", "projector_options"):
            _check_options(name, getattr(self, name))
        get_task(self.dataset)

    def source_of(self, task: Task) -> Literal["hub", "local", "builtin"]:
        """Where the rows of a task come from (see `data_source`)."""
        if task.builtin:
            return "builtin"
        if self.data_source is not None:
            return self.data_source
        return "local" if self.data_root is not None or task.local is not None else "hub"

    def prompt_config(self, backbone: str, task: str) -> dict[str, Any]:
        """The configuration of the run that trains a prompt."""
        model = {"backbone": backbone, "prompt_length": self.prompt_len, "learning_rate": self.learning_rate}
        return _merged(self._config(model, [task]), self.prompt_options)

    def projector_config(self, target: str, tasks: list[str], prompts: list[str]) -> dict[str, Any]:
        """The configuration of the run that trains a projector on the files of source prompts."""
        model = {
            "backbone": target,
            "prompts": prompts,
            "projector": {"class_path": self.projector},
            "learning_rate": self.projector_learning_rate,
        }
        return _merged(self._config(model, tasks), self.projector_options)

    def _config(self, model: dict[str, Any], tasks: list[str]) -> dict[str, Any]:
        sources = {self.source_of(get_task(task)) for task in tasks}
        if len(sources) > 1:
            raise UserError(f"the tasks {', '.join(tasks)} come from {' and '.join(sorted(sources))}: one run has one")
        return {
            "seed_everything": self.seed,
            "model": model,
            "data": {
                "task": tasks[0] if len(tasks) == 1 else tasks,
                "source": sources.pop(),
                "root": self.data_root,
                "batch_size": self.batch_size,
                "max_length": self.max_length,
                "limit_train": self.limit_train,
                "limit_eval": self.limit_eval,
            },
            "trainer": {
                "max_steps": self.max_steps,
                "val_check_interval": self.eval_steps or max(1, self.max_steps // 10),
                "accelerator": self.accelerator,
                "enable_progress_bar": self.progress,
            },
        }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} is {value!r}: give a whole number, {least} or more")


def _check_options(name: str, options: Any) -> None:
    if not isinstance(options, Mapping):
        raise UserError(f'{name} is {options!r}: give a dict like {{"model": {{"attention": "shared"}}}}')
    try:
        yaml.safe_dump(dict(options))
    except yaml.YAMLError as error:
        raise UserError(f"{name} holds what no YAML file can: give numbers, words, lists and dicts") from error
    for section, key in OURS:
        inner = options.get(section)
        if isinstance(inner, Mapping) and key in inner:
            raise UserError(
                f"{name} cannot have {section}.{key}: a verb makes one prompt or projector, of its arguments"
            )


def _merged(config: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The values of both, section by section; those of `options` win."""
    whole = dict(config)
    for key, value in options.items():
        old = whole.get(key)
        whole[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return whole
