"""The settings of a hub: defaults of its methods and options of its runs."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import yaml

from prompt_transfer.api.release2 import translate
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

SOURCES = ("hub", "local", "builtin")
# Options that the hub sets itself, or that would train several prompts in one run.
OURS = (("model", "backbone"), ("model", "prompts"), ("model", "seeds"), ("model", "learning_rates"), ("data", "task"))
DEFAULT_STEPS = 1000
# Evaluate after each pass over the training data.
EACH_EPOCH = {"val_check_interval": 1.0, "check_val_every_n_epoch": 1}


def _with_release2_names(cls: type[Any]) -> type[Any]:
    """Let a class accept the arguments of release 2.0, and raise UserError instead of TypeError."""
    original: Callable[..., None] = cls.__init__

    @functools.wraps(original)
    def accept(self: Any, *given: Any, **named: Any) -> None:
        names = [one.name for one in fields(self)]
        named = translate(named, names)
        try:
            inspect.signature(original).bind(self, *given, **named)
        except TypeError as error:
            raise UserError(f"PromptTrainingArguments: {error}; the first three are {', '.join(names[:3])}") from None
        original(self, *given, **named)

    cls.__init__ = accept
    return cls


@_with_release2_names
@dataclass
class PromptTrainingArguments:
    """Settings of a `PromptHub`.

    The arguments of release 2.0, which are those of transformers' `TrainingArguments`, are accepted too: translated if
    they have an equivalent here, answered with a warning or an error that names it otherwise (docs: Migration).

    Args:
        output_dir: folder of all inputs and outputs of the hub.
        dataset: the default task: a name (`prompt-transfer tasks list`) or a YAML file.
        backbone: the default backbone: a built-in name, a Hugging Face model folder or a hub id.
        prompt_len: P, the number of prompt tokens.
        learning_rate: learning rate of prompts; None uses the default of the backbone's family.
        max_steps: optimizer steps per prompt or projector; None means 1000, or no limit if `num_train_epochs` is given.
        num_train_epochs: passes over the training data; `max_steps` takes precedence.
        eval_steps: steps between evaluations (the best one is kept), or "epoch"; None means a tenth of max_steps, or
            each epoch if `num_train_epochs` sets the length.
        batch_size: examples per optimizer step.
        seed: random seed for initialization and data order.
        data_source: hub, local or builtin. None uses builtin for built-in tasks, local if `data_root`, the variable
            PROMPT_TRANSFER_DATA or the task's file names a folder, else the Hugging Face hub.
        data_root: folder that contains <task>/<split>.parquet, .jsonl or .csv.
        max_length: maximum number of tokens per text; None uses the task's.
        limit_train, limit_eval: size of the random subset of each split to use; None uses all examples.
        shots: few-shot training and validation examples of each class (`--data.shots`); None uses all.
        random_prompts: number of baselines per score: random prompts of each kind (token embeddings, U[0, 1)), masks of
            random neurons, and random source prompts for projections.
        projector: MLP, TokenMLP, Linear or TaskVector.
        projector_learning_rate: learning rate of projectors; None uses the module's default.
        accelerator: auto, cpu or cuda.
        progress: show progress bars during training.
        prompt_options: further options of a prompt's run, nested as in a file for `fit --config`; they take precedence:
            {"model": {"attention": "shared"}}.
        projector_options: the same for a projector's run.

    Raises:
        UserError: an invalid value, an unknown name or an unknown task; also when an attribute is set.
    """

    output_dir: str
    dataset: str
    backbone: str
    prompt_len: int = 100
    learning_rate: float | None = None
    max_steps: int | None = None
    num_train_epochs: int | None = None
    eval_steps: int | Literal["epoch"] | None = None
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
    shots: int | None = None

    def __post_init__(self) -> None:
        # Accept pathlib paths too.
        self.output_dir, self.dataset, self.backbone = map(str, (self.output_dir, self.dataset, self.backbone))
        self.data_root = None if self.data_root is None else str(self.data_root)
        self._check()

    def __setattr__(self, name: str, value: Any) -> None:
        names = [one.name for one in fields(self)]
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            raise UserError(
                f"PromptTrainingArguments has no setting {name!r}{f' (did you mean {close[0]}?)' if close else ''}: "
                "give further options of `fit` as prompt_options"
            )
        complete, before = len(vars(self)) == len(names), vars(self).get(name)
        super().__setattr__(name, value)
        if complete:
            try:
                self._check()
            except UserError:
                super().__setattr__(name, before)
                raise

    def _check(self) -> None:
        for name in ("output_dir", "dataset", "backbone"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty: give a value")
        for name in ("prompt_len", "batch_size"):
            _check_whole(name, getattr(self, name), 1)
        for name in ("max_steps", "num_train_epochs", "eval_steps", "max_length", "limit_train", "limit_eval", "shots"):
            if getattr(self, name) is not None and (name, getattr(self, name)) != ("eval_steps", "epoch"):
                _check_whole(name, getattr(self, name), 1)
        if self.shots is not None and self.limit_train is not None:
            raise UserError("shots and limit_train exclude each other: give one of them")
        _check_whole("seed", self.seed, 0)
        _check_whole("random_prompts", self.random_prompts, 1)
        for name in ("learning_rate", "projector_learning_rate"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < math.inf):
                raise UserError(f"{name} is {value!r}: give a number above 0, or None for the default")
        if self.data_source is not None and self.data_source not in SOURCES:
            raise UserError(f"data_source is {self.data_source!r}: choose one of {', '.join(SOURCES)}")
        if self.accelerator not in ("auto", "cpu", "cuda"):
            raise UserError(f"accelerator is {self.accelerator!r}: choose auto, cpu or cuda")
        for name in ("prompt_options", "projector_options"):
            _check_options(name, getattr(self, name))
        get_task(self.dataset)

    def source_of(self, task: Task) -> Literal["hub", "local", "builtin"]:
        """Return the source of a task's data (see `data_source`)."""
        if task.builtin:
            return "builtin"
        if self.data_source is not None:
            return self.data_source
        known = self.data_root is not None or task.local is not None or os.environ.get("PROMPT_TRANSFER_DATA")
        return "local" if known else "hub"

    def prompt_config(self, backbone: str, task: str) -> dict[str, Any]:
        """Return the options of the run that trains a prompt."""
        model = {"backbone": backbone, "prompt_length": self.prompt_len, "learning_rate": self.learning_rate}
        return _with_rate_in_optimizer(_merged(self._config(model, [task]), self.prompt_options), "learning_rate")

    def projector_config(self, target: str, tasks: list[str], prompts: list[str]) -> dict[str, Any]:
        """Return the options of the run that trains a projector on source prompt files."""
        model = {
            "backbone": target,
            "prompts": prompts,
            "projector": {"class_path": self.projector},
            "learning_rate": self.projector_learning_rate,
        }
        config = _merged(self._config(model, tasks), self.projector_options)
        return _with_rate_in_optimizer(config, "projector_learning_rate")

    def _config(self, model: dict[str, Any], tasks: list[str]) -> dict[str, Any]:
        sources = {self.source_of(get_task(task)) for task in tasks}
        if len(sources) > 1:
            raise UserError(
                f"the tasks {', '.join(tasks)} come from {' and '.join(sorted(sources))}: use tasks of one data source"
            )
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
                # Left out for all examples: runs from before the option existed are reused.
                **({} if self.shots is None else {"shots": self.shots}),
            },
            "trainer": {**self._budget(), "accelerator": self.accelerator, "enable_progress_bar": self.progress},
        }

    def _budget(self) -> dict[str, Any]:
        """Return the trainer's options for the length of a run and its evaluations."""
        if self.max_steps is None and self.num_train_epochs is not None:
            length: dict[str, Any] = {"max_steps": -1, "max_epochs": self.num_train_epochs}
            return length | (EACH_EPOCH if self.eval_steps in (None, "epoch") else self._interval(1))
        steps = self.max_steps or DEFAULT_STEPS
        return {"max_steps": steps, **(EACH_EPOCH if self.eval_steps == "epoch" else self._interval(steps // 10))}

    def _interval(self, default: int) -> dict[str, Any]:
        return {"val_check_interval": self.eval_steps or max(1, default)}


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
        raise UserError(f"{name} cannot be written as YAML: give numbers, strings, lists and dicts") from error
    if "seed_everything" in options:
        raise UserError(f"{name} cannot set seed_everything: give it as the argument seed")
    for section, key in OURS:
        inner = options.get(section)
        if isinstance(inner, Mapping) and key in inner:
            raise UserError(
                f"{name} cannot set {section}.{key}: give it as an argument; one call trains one prompt or projector"
            )


def _with_rate_in_optimizer(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Move the learning rate into the options of a given optimizer."""
    model = config["model"]
    optimizer = model.get("optimizer")
    if optimizer is None:
        return config
    optimizer = {"class_path": optimizer} if isinstance(optimizer, str) else dict(optimizer)
    options = dict(optimizer.get("init_args") or {})
    if "lr" not in options and model["learning_rate"] is None:
        raise UserError(f"an optimizer needs a learning rate: give {name}")
    optimizer["init_args"] = {"lr": model["learning_rate"]} | options
    return {**config, "model": {**model, "learning_rate": None, "optimizer": optimizer}}


def _merged(config: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested options; those of `options` take precedence."""
    whole = dict(config)
    for key, value in options.items():
        old = whole.get(key)
        whole[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return whole
