"""LightningCLI with short options, one-line errors and run folders."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from prompt_transfer.backbones import sharding
from prompt_transfer.backbones.loading import resolve
from prompt_transfer.callbacks.checkpoints import AtomicCheckpointIO
from prompt_transfer.callbacks.logs import RunLog
from prompt_transfer.callbacks.progress import progress_callback
from prompt_transfer.commands.arguments import extract_init_text, find_configs, sets_model_option, take_class
from prompt_transfer.commands.messages import one_line, options_of, quiet, show_warning
from prompt_transfer.commands.own_classes import find_in_working_folder
from prompt_transfer.commands.own_data import complete_data
from prompt_transfer.commands.run_options import LOGGERS, TRAINER_DEFAULTS, run_options
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.cross_model_projector import CrossModelProjector
from prompt_transfer.modules.prompt_ensemble import PromptEnsemble
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.modules.sharded import ShardedStrategy
from prompt_transfer.prompts.initializers import FromPrompt
from prompt_transfer.prompts.prompt import DEEP_PROMPT
from prompt_transfer.tracking.mlflow_run import check_installed
from prompt_transfer.tracking.options import LOGGERS as TRACKERS
from prompt_transfer.utils.errors import UserError, install_command, without_secrets
from prompt_transfer.utils.fields import dtype_name

MODELS: dict[str, type[L.LightningModule]] = {
    "PromptTuning": PromptTuning,
    "PromptEnsemble": PromptEnsemble,
    "CrossModelProjector": CrossModelProjector,
}
DATA: dict[str, type[L.LightningDataModule]] = {"TaskDataModule": TaskDataModule}

# The value of --trainer.strategy for `ShardedStrategy`.
SHARDED = ShardedStrategy.strategy_name
# Files in a run folder.
CONFIG_FILE, RESULTS_FILE = "config.yaml", "results.csv"


@contextmanager
def as_user_error(verb: str, options: Callable[[], Sequence[str]] = tuple) -> Iterator[None]:
    """Convert errors of the parser, Lightning and loggers that the user can fix to UserError.

    Args:
        verb: the command, for messages.
        options: returns its options, for suggestions.
    """
    try:
        yield
    except UserError:
        raise
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            # Lightning exits silently after Ctrl-C.
            raise KeyboardInterrupt from end
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{' '.join(str(error).split())[:150]}; --data.max_tokens splits batches without changing the result, "
            "--model.dtype bfloat16 halves the backbone"
        ) from error
    except ArgumentError as error:
        raise one_line(error, verb, options()) from error
    except (MisconfigurationException, ValueError) as error:
        if "Union subtypes" in str(error):
            raise one_line(error, verb) from error
        raise UserError(f"{' '.join(str(error).split())[:300]} (see prompt-transfer {verb} --help)") from error
    except Exception as error:
        if type(error).__module__.startswith("wandb"):
            hint = "log in with `wandb login`, or set WANDB_MODE=offline"
            raise UserError(f"W&B: {' '.join(str(error).split())[:200]}; {hint}") from error
        raise


def absolute_path(path: str) -> str:
    """Return an absolute path with `~` expanded."""
    return str(Path(path).expanduser().resolve())


def resolve_prompts(options: Namespace) -> None:
    """Make paths in options of `FromPrompt` absolute, and replace a recommendation by the prompts it selects.

    A resumed run then does not depend on the recommendation file.
    """
    if options.recommendation is not None:
        options.recommendation = absolute_path(options.recommendation)
        chosen = FromPrompt(**vars(options))
        options.prompt, options.weights = chosen.prompt, chosen.weights
        options.recommendation = options.by = options.target = None
        options.top = 1
    given = options.prompt
    if given is None:
        return  # reported by the initializer
    files = [given] if isinstance(given, str) and Path(given).exists() else given
    files = files.split(",") if isinstance(files, str) else files
    options.prompt = [absolute_path(str(file).strip()) if str(file).strip() else "" for file in files]


def is_sharded(strategy: Any) -> bool:
    """Return whether a value of --trainer.strategy shards the backbone.

    Raises:
        UserError: it is a strategy of Lightning that would shard the prompt.
    """
    name = strategy if isinstance(strategy, str) else str((strategy or {}).get("class_path", "")).rpartition(".")[2]
    if name in ("FSDPStrategy", "ModelParallelStrategy", "fsdp_cpu_offload"):
        raise UserError(f"--trainer.strategy {name} would shard the prompt too: use --trainer.strategy {SHARDED}")
    return name in (SHARDED, ShardedStrategy.__name__)


class Command(LightningCLI):
    """The parsed options of `fit`, `validate`, `test` or `predict`, with model, data and trainer; runs nothing.

    Args:
        verb: the command, for messages.
        arguments: its command-line arguments.
    """

    def __init__(self, verb: str, arguments: Sequence[str]) -> None:
        self.verb = verb
        model, rest = take_class(list(arguments), "--model", MODELS)
        data, rest = take_class(rest, "--data", DATA)
        rest, self.text = extract_init_text(find_configs(rest))
        several = sets_model_option(rest, ("seeds", "learning_rates"))
        self.attention_given = sets_model_option(rest, ("attention",))
        # A stored configuration has no class name; the option `prompts` identifies a projector.
        if model is PromptTuning and sets_model_option(rest, ("prompts",)):
            model = CrossModelProjector
        if model is CrossModelProjector and verb != "fit":
            raise UserError(
                f"--model CrossModelProjector is an option of fit: {verb} needs a prompt, project one with `prompts "
                "project PROMPT --projector FILE --output FILE`"
            )
        if several and verb != "fit":
            raise UserError(f"--model.seeds and --model.learning_rates are options of fit: leave them out for {verb}")
        # The help of fit includes the options of PromptEnsemble.
        if model is PromptTuning and verb == "fit" and (several or {"-h", "--help"} & set(rest)):
            model = PromptEnsemble
        quiet()
        find_in_working_folder()
        warnings.showwarning = show_warning
        with as_user_error(verb, lambda: options_of(self.parser)):
            super().__init__(
                model,
                data,
                args=rest,
                run=False,
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults=TRAINER_DEFAULTS,
                auto_configure_optimizers=False,
                # Our modules save hyperparameters themselves.
                load_from_checkpoint_support=False,
                parser_kwargs={"exit_on_error": False, "prog": f"prompt-transfer {verb}"},
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for option in run_options(self.verb):
            option.add_to(parser)
        for name, options in TRACKERS.items():
            parser.add_class_arguments(options, name)

    def _set_seed(self) -> None:
        # Lightning prints the seed, which config.yaml records.
        logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
        self.check_seed()
        super()._set_seed()

    def check_seed(self) -> None:
        """Raise UserError if the seed is invalid."""
        seed = self.config.seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise UserError(f"--seed_everything is {seed}: give a number from 0 to {2**32 - 1}")

    def before_instantiate_classes(self) -> None:
        """Check the options and derive options from others."""
        config = self.config
        if config.model.get("dtype") is not None:
            config.model.dtype = dtype_name(config.model.dtype)
        if self.text is not None and "init" in config.model and "text" in config.model.init.init_args:
            config.model.init.init_args.text = self.text
        self.make_paths_absolute()
        if config.model.get("method") == DEEP_PROMPT:
            if self.attention_given and config.model.attention == "full":
                raise UserError("a deep prompt never sees the text: give --model.attention shared, or leave it out")
            config.model.attention = "shared"
        trainer = config.trainer
        steps, interval = trainer.max_steps, trainer.val_check_interval
        if self.verb == "fit" and (steps == 0 or trainer.max_epochs == 0):
            raise UserError("a run of no steps trains nothing: give --trainer.max_steps 1 or more")
        if steps < -1:
            raise UserError(f"--trainer.max_steps is {steps}: give a number of steps (-1: no limit)")
        if interval is not None and interval <= 0:
            raise UserError(f"--trainer.val_check_interval is {interval}: give 1 or more steps")
        if self.config.logger not in LOGGERS:
            raise UserError(f"unknown logger {self.config.logger!r}: choose one of {', '.join(LOGGERS)}")
        if self.config.logger == "mlflow":
            check_installed()
        if self.config.get("early_stopping") is not None and self.config.early_stopping < 1:
            raise UserError("--early_stopping must be 1 evaluation or more")
        if self.config.get("random_prompts", 0) < 0:
            raise UserError("--random_prompts must be 0 or more")
        if isinstance(interval, int) and 0 < steps < interval:
            trainer.val_check_interval = steps

    def make_paths_absolute(self) -> None:
        """Make paths absolute: stored configurations and prompts are used from other working directories."""
        model = self.config.model
        complete_data(self.config.data)
        for key in ("backbone", "source_backbone"):
            if model.get(key) is not None and resolve(model[key])[1] in ("folder", "gguf"):
                model[key] = absolute_path(model[key])
        for key in ("prompts", "target_prompts"):
            if model.get(key) is not None:
                model[key] = [
                    absolute_path(path) for path in ([model[key]] if isinstance(model[key], str) else model[key])
                ]
        if model.get("init") is not None and "prompt" in (model.init.get("init_args") or {}):
            resolve_prompts(model.init.init_args)

    def instantiate_classes(self) -> None:
        """Create data, model and trainer; a backbone that is to be sharded is loaded without its layers' weights."""
        with sharding.deferred() if is_sharded(self.config.trainer.strategy) else nullcontext():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Return the trainer with our callbacks and logger."""
        callbacks: list[Callback] = list(self.extra_callbacks())
        if self.config.trainer.enable_progress_bar is not False:
            callbacks.append(progress_callback())
        if self.config.trainer.logger in (None, True):
            kwargs["logger"] = self.make_logger()
        if "default_root_dir" not in kwargs and self.config.trainer.default_root_dir is None:
            kwargs["default_root_dir"] = str(self.output or Path("runs"))
        init = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        if init.get("strategy") == SHARDED:
            # Lightning's strategy of this name would shard the prompt too.
            init["strategy"] = ShardedStrategy()
        trainer = self._instantiate_trainer(init, callbacks)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def extra_callbacks(self) -> list[Callback]:
        """Return the callbacks of the command."""
        return []

    @property
    def output(self) -> Path | None:
        return Path(self.config.output) if self.config.output else None

    def make_logger(self) -> Logger | list[Logger] | bool:
        """Return the logger that `--logger` selects; it writes to the output folder."""
        name, folder = self.config.logger, str(self.output or "runs")
        if self.verb != "fit" or name == "none":
            return False
        if name == "csv":
            return RunLog(folder)
        if not any(importlib.util.find_spec(package) for package in ("tensorboard", "tensorboardX")):
            raise UserError(f"--logger tensorboard needs an extra: {install_command('tensorboard')}")
        return TensorBoardLogger(folder, name="", version="tensorboard")

    def plain_config(self) -> dict[str, Any]:
        """Return the resolved configuration as plain values."""
        return yaml.safe_load(self.config_text())

    def config_text(self) -> str:
        """Return the resolved configuration as YAML for `--config`."""
        config: Namespace = self.config.clone()
        for key in ("resume", "overwrite", "config"):
            config.pop(key, None)
        return without_secrets(self.parser.dump(config, skip_unset=False, skip_validation=True))
