"""Options of the commands that run Lightning's Trainer, and their help; importing them loads no torch."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

from prompt_transfer.commands import sources
from prompt_transfer.commands.help import COMPLEX, Entry, Group, Page, default_text, kind_of
from prompt_transfer.commands.messages import check_options
from prompt_transfer.commands.table import COMMANDS
from prompt_transfer.commands.values import check_values
from prompt_transfer.tracking.options import LOGGER_NAMES
from prompt_transfer.tracking.options import LOGGERS as TRACKERS
from prompt_transfer.utils.errors import UserError

# Defaults of every run.
TRAINER_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "max_steps": 1000,
    "max_epochs": -1,
    "val_check_interval": 100,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
    # Our sampler splits batches by rank itself.
    "use_distributed_sampler": False,
}
PRETRAINING_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,
    "devices": 1,
    "val_check_interval": 500,
    "check_val_every_n_epoch": None,
    "limit_val_batches": 20,
    "num_sanity_val_steps": 0,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 50,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
LOGGERS = ("csv", "wandb", "tensorboard", "mlflow", "none")
# Class that `--model NAME` or `--data NAME` chooses -> its place in this package.
CLASSES = {
    "PromptTuning": "modules.prompt_tuning.PromptTuning",
    "PromptEnsemble": "modules.prompt_ensemble.PromptEnsemble",
    "CrossModelProjector": "modules.cross_model_projector.CrossModelProjector",
    "TaskDataModule": "data.datamodule.TaskDataModule",
    "BackbonePretraining": "pretraining.backbone_pretraining.BackbonePretraining",
    "CorpusDataModule": "pretraining.corpus.CorpusDataModule",
}
# Options of the model that have an effect in training only.
TRAINING_OPTIONS = tuple(
    f"--model.{name}"
    for name in (
        *("prompt_length", "init", "reparameterization", "optimizer", "learning_rate", "schedule", "warmup_steps"),
        *("scheduler", "backbone_dropout", "gradient_checkpointing", "label_embeddings"),
    )
)
MODELS = ("PromptTuning", "PromptEnsemble", "CrossModelProjector")


@dataclass(frozen=True)
class RunOption:
    """An option of a command that is neither the model's, the data's nor the Trainer's."""

    name: str
    type: Any
    default: Any
    help: str

    def add_to(self, parser: Any) -> None:
        """Add the option to a parser; a boolean option alone means true."""
        flag = {"nargs": "?", "const": True} if self.type is bool else {}
        parser.add_argument(f"--{self.name}", type=self.type, default=self.default, help=self.help, **flag)


RESUME = RunOption("resume", bool, False, "resume the run in --output")
OUTPUT = RunOption("output", str | None, None, "output folder")
LOGGER = RunOption("logger", str, "csv", "csv, wandb or mlflow (with csv), tensorboard or none")


def run_options(verb: str) -> list[RunOption]:
    """Return a command's own options."""
    if verb == "pretrain":
        return [RunOption("output", str, "runs/pretrain", "folder for the model and its card"), RESUME]
    if verb == "fit":
        return [
            OUTPUT,
            RESUME,
            RunOption("overwrite", bool, False, "replace the run in --output"),
            RunOption(
                "convergence", bool, False, "also evaluate before the first step, for `analyze convergence`"
            ),
            RunOption(
                "early_stopping", int | None, None, "stop after this many evaluations without improvement"
            ),
            LOGGER,
        ]  # fmt: skip
    calibration = "divide class probabilities by those on content-free texts (contextual calibration)"
    random = RunOption("random_prompts", int, 1, "number of random-prompt baselines")
    several = "; several (test and validate): repeat the option" if verb != "predict" else ""
    prompt = RunOption("prompt", str | list[str] | None, None, f"prompt file, or folder of a run{several}")
    found = [prompt, OUTPUT, RunOption("calibrate", bool, False, calibration), LOGGER]
    if verb in ("test", "validate"):
        text = "further metrics of classification: per_class, confusion_matrix, calibration, separated by commas"
        found.append(random)
        found.append(RunOption("metrics", str | list[str] | None, None, text))
    if verb == "predict":
        texts = (
            "texts to predict: .csv, .jsonl or .parquet with the task's text columns, one text per line, or - for "
            "lines from standard input"
        )
        formats = "parquet (default), csv or jsonl; without --output csv and jsonl go to standard output"
        found += [
            RunOption("input", str | None, None, texts),
            # Taken out of the arguments before parsing (`own_data.take_texts`).
            RunOption("text", str | None, None, "a text to predict; may be repeated"),
            RunOption("text_b", str | None, None, "second text of each pair"),
            RunOption("format", str | None, None, formats),
        ]
    return found


@cache
def page(verb: str, model: str = "") -> Page:
    """Return the help of a command, read from source files.

    Args:
        verb: one of `table.VERBS`.
        model: name of the model's class; empty: the command's default.
    """
    pretrain = verb == "pretrain"
    default = "BackbonePretraining" if pretrain else "PromptEnsemble" if verb == "fit" else "PromptTuning"
    # The help of fit includes the options of several prompts.
    chosen = default if model in ("", "PromptTuning") or model not in CLASSES else model
    data = "CorpusDataModule" if pretrain else "TaskDataModule"
    trainer = PRETRAINING_DEFAULTS if pretrain else TRAINER_DEFAULTS
    own = [
        Entry("--config", "FILE", "options from a file, as `experiment/sst2.yaml`; further options override it"),
        *(
            Entry(
                f"--{one.name}",
                "" if one.type is bool else kind_of(one.type),
                one.help,
                "" if one.type is bool else default_text(one.default),
            )
            for one in run_options(verb)
        ),
        Entry("--seed_everything", "INT", "seed of the run", "0"),
        Entry("--print_config", "", "print the configuration and exit"),
    ]
    scored = verb in ("validate", "test", "predict")
    more = ", or --model CrossModelProjector" if verb == "fit" else "; default: those of the prompt" if scored else ""
    options = _declared("data", sources.of_class(CLASSES[data]))
    if scored:  # the prompt names its task
        options = [replace(one, required=False) for one in options]
    groups = [
        Group("", "options", own),
        Group("model", f"model options{more}", _declared("model", sources.of_class(CLASSES[chosen]))),
        Group("data", f"data options{more if scored else ''}", options),
        Group("trainer", "trainer options", _declared("trainer", sources.trainer(), trainer)),
    ]
    if not pretrain:
        groups += [Group(name, f"{LOGGER_NAMES[name]} options", _tracker(name)) for name in TRACKERS]
    usage = {"fit": "--data.task TASK [OPTIONS]", "pretrain": "--config FILE [OPTIONS]"}
    return Page(verb, usage.get(verb, "--prompt FILE [OPTIONS]"), f"{COMMANDS[verb][1]}.".capitalize(), groups)


def answer(verb: str, arguments: Sequence[str]) -> str | None:
    """Return the help that the arguments ask for, without importing torch; None if they ask for none.

    Raises:
        UserError: an option does not exist, is one of training, or has an unknown name as its value.
    """
    model = next((two for one, two in pairwise(arguments) if one == "--model"), "")
    model = next((one.removeprefix("--model=") for one in arguments if one.startswith("--model=")), model)
    found = page(verb, model)
    text = found.show(arguments)
    if text is None:
        _check(verb, found, arguments)
        if verb in ("validate", "test", "predict"):
            _check_scoring(verb, found, arguments)
        check_values(verb, arguments)
    return text


def _check_scoring(verb: str, page: Page, arguments: Sequence[str]) -> None:
    """Raise UserError for options of training, which the prompt file or nothing depends on in scoring."""
    names = [entry.name for entry in page.entries]
    for argument in arguments:
        # `--model.init.text` belongs to `--model.init`; the parser accepts the beginning of a name, too.
        option = ".".join(argument.partition("=")[0].removesuffix("+").split(".")[:2])
        meant = [option] if option in names else [name for name in names if name.startswith(option)]
        if option.startswith("--model.") and meant and set(meant) <= set(TRAINING_OPTIONS):
            raise UserError(f"{meant[0]} is an option of fit and changes no finished prompt: leave it out for {verb}")


def _check(verb: str, page: Page, arguments: Sequence[str]) -> None:
    """Raise UserError for an option that no class of the command has."""
    # A stored configuration may choose another class of model.
    others = [] if verb == "pretrain" else [sources.of_class(CLASSES[name]) for name in MODELS]
    entries = [*page.entries, *(entry for other in others for entry in _declared("model", other))]
    known = [entry.name for entry in entries] + [f"--{group.key}" for group in page.groups if group.key]
    known += ["--help", "--print_shtab"]
    # The classes of these options are looked up by the parser.
    nested = [entry.name for entry in entries if entry.kind == COMPLEX]
    check_options(arguments, verb, known, nested, [entry.name for entry in page.entries])


def _declared(group: str, found: Sequence[sources.Declared], given: dict[str, Any] | None = None) -> list[Entry]:
    given = given or {}
    return [
        Entry(
            f"--{group}.{one.name}",
            one.kind,
            one.text,
            default_text(given[one.name] if one.name in given else _literal(one.default)),
            one.default is None and one.name not in given,
        )
        for one in found
    ]


def _literal(source: str | None) -> Any:
    """Return the value of a default's source text, or the text if it is an expression."""
    try:
        return None if source is None else ast.literal_eval(source)
    except ValueError:
        return source


def _tracker(name: str) -> list[Entry]:
    return _declared(name, sources.of_class(f"tracking.options.{TRACKERS[name].__name__}"))
