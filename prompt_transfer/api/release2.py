"""Arguments of release 2.0 as settings of a hub.

Release 2.0 inherits them from transformers' `TrainingArguments`. Each is translated, accepted because it describes the
default here, ignored with a warning, or refused with the name of the equivalent.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from prompt_transfer.utils.errors import UserError

# Release 2.0 -> option of `fit`.
OPTIONS = {
    "data_seed": "data.seed",
    "dataloader_num_workers": "data.num_workers",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "logging_steps": "trainer.log_every_n_steps",
    "lr_scheduler_type": "model.schedule",
    "max_grad_norm": "trainer.gradient_clip_val",
    "per_device_eval_batch_size": "data.eval_batch_size",
    "torch_compile": "model.compile",
}
# Of these and of the translated names, whole numbers and their least values.
WHOLE = {
    "data_seed": 0, "dataloader_num_workers": 0, "logging_steps": 1, "per_device_eval_batch_size": 1,
    "per_device_train_batch_size": 1, "per_gpu_train_batch_size": 1, "gradient_accumulation_steps": 1,
}  # fmt: skip
# The loggers that exist here too.
LOGGERS = ("wandb", "tensorboard", "mlflow")
# Release 2.0 -> values that need no answer, and the answer to others.
SAME_HERE: dict[str, tuple[tuple[Any, ...], str]] = {
    "greater_is_better": ((True,), "the task's metric is maximized: leave it out"),
    "load_best_model_at_end": ((True,), "the best prompt is always the one kept"),
    "logging_strategy": (("steps",), "give logging_steps"),
    "metric_for_best_model": (("combined_score", "accuracy"), "the task's own metric selects the best prompt"),
    "num_proj_layers": (
        (1,),
        "give projector=MLP or Linear, and its options as projector_options",
    ),
    "optim": (
        ("adamw_torch", "adamw_torch_fused", "adamw_hf"),
        'give prompt_options={"model": {"optimizer": {"class_path": ...}}}',
    ),
    "save_strategy": (
        ("epoch", "steps", "best"),
        "each evaluation saves a checkpoint to resume from",
    ),
    "train_sampling_strategy": (("random", "group_by_length"), "batches are random, grouped by length"),
    "save_total_limit": ((1,), "the best prompt and the last checkpoint are kept"),
}
# Of these, other values change the result.
STRICT = ("greater_is_better", "num_proj_layers", "optim", "train_sampling_strategy")
# Nothing depends on them here: the methods of the hub decide, and padding changes no score.
NO_EFFECT = {
    *("do_eval", "do_predict", "do_test", "pad_to_max_length", "predict_with_generate"),
    *("remove_unused_columns", "source_dataset", "local_rank", "length_column_name"),
}
IGNORED = {
    "auto_find_batch_size": 'prompt_options={"data": {"max_tokens": N}} splits batches that do not fit in memory',
    "disable_tqdm": "progress=False hides progress bars",
    "full_determinism": 'give prompt_options={"trainer": {"deterministic": True}}',
    "group_by_length": "batches are always grouped by length",
    "logging_dir": "logs are in the run folder",
    "out_dir_root": "all files are below output_dir",
    "overwrite_output_dir": "train_prompt(overwrite=True) replaces a finished run",
    "resume_from_checkpoint": "an interrupted run resumes when train_prompt is called again",
    "run_name": "a run is named after task, backbone and seed",
    "save_steps": "each evaluation saves a checkpoint: give eval_steps",
    "target_dataset": "give the target to cross_task_eval",
}
REFUSED = {
    "checkpoint": 'give prompt_options={"model": {"init": {"class_path": "FromPrompt", "init_args": {"prompt": ...}}}}',
    "deepspeed": 'give prompt_options={"trainer": {"strategy": ...}}',
    "gradient_accumulation_steps": "give batch_size, the examples of an optimizer step",
    "lr_scheduler_kwargs": 'give prompt_options={"model": {"scheduler": {"class_path": ...}}}',
    "model_parallel": 'give prompt_options={"trainer": {"strategy": "fsdp", "devices": N}}',
    "train_batch_size": "give batch_size, the examples of an optimizer step",
}
# Names that start like this, unless they are above.
IGNORED_PREFIXES = {
    ("eval_", "evaluation_"): "evaluation needs no such option",
    ("push_to_hub", "hub_"): "`prompt-transfer prompts push` uploads a prompt",
    ("log_", "logging_", "report_", "trackio_", "project", "include_", "skip_memory", "debug"): (
        'give prompt_options={"logger": "csv", "wandb" or "tensorboard"}'
    ),
    ("dataloader_", "ddp_", "fsdp", "accelerator_", "parallelism_", "tpu_", "use_mps", "average_tokens"): (
        'give the options of Lightning\'s Trainer as prompt_options={"trainer": {...}}'
    ),
    ("save_", "restore_", "ignore_data_skip", "enable_jit"): "a stopped run resumes from its last checkpoint",
}
REFUSED_PREFIXES = (
    *("activation_", "adafactor", "batch_eval", "bf16", "fp16", "gradient_", "half_precision", "jit_", "label_"),
    *("liger", "mp_", "neftune", "optim", "past_index", "per_gpu", "prediction_", "sharded", "tf32", "torch"),
    *("use_", "xpu_"),
)
ADAM = {"weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
UNSET: tuple[Any, ...] = (None, "", False, [])


def translate(given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return keyword arguments for `PromptTrainingArguments` from those of release 2.0.

    Args:
        given: the keyword arguments.
        names: fields of `PromptTrainingArguments`.

    Raises:
        UserError: an unknown argument, or one with which a run here would differ from what the user expects.
    """
    rest = {name: value for name, value in given.items() if name not in names}
    found = {name: value for name, value in given.items() if name in names}
    if found.get("max_steps") == -1:  # transformers' default: no limit
        found["max_steps"] = None
    epochs = found.get("num_train_epochs")
    if isinstance(epochs, float) and epochs.is_integer():
        found["num_train_epochs"] = int(epochs)
    _check_values(rest)
    options: dict[str, Any] = {}
    for part in (_batch_size, _lengths, _evaluation, _hardware, _schedule, _optimizer, _logger):
        part(rest, found, options)
    for name in [name for name in rest if name in OPTIONS]:
        value = rest.pop(name)
        if value not in UNSET:
            options[OPTIONS[name]] = getattr(value, "value", value)
    for name, value in rest.items():
        _answer(name, value, found, names)
    if options:
        for name in ("prompt_options", "projector_options"):
            found[name] = _nested(options, found.get(name) or {})
    return found


def _check_values(rest: dict[str, Any]) -> None:
    """Raise UserError for invalid numbers; whole numbers become integers."""
    for name in [name for name in WHOLE if rest.get(name) is not None]:
        value, least = rest[name], WHOLE[name]
        if isinstance(value, float) and value.is_integer():
            rest[name] = value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{name} is {value!r}: give a whole number, {least} or more")
    clip = rest.get("max_grad_norm")
    if clip is not None and (not isinstance(clip, int | float) or not 0 <= clip < math.inf):
        raise UserError(f"max_grad_norm is {clip!r}: give a number, 0 (no clipping) or more")


def _nested(options: Mapping[str, Any], given: Any) -> Any:
    """Return dotted options as nested ones, with those of the user taking precedence."""
    if not isinstance(given, Mapping):
        return given  # reported by the check of the value
    whole = {section: dict(inner) if isinstance(inner, Mapping) else inner for section, inner in given.items()}
    for path, value in options.items():
        section, _, key = path.partition(".")
        if not key:
            whole.setdefault(section, value)
        elif isinstance(inner := whole.setdefault(section, {}), dict):
            inner.setdefault(key, value)
    return whole


def _answer(name: str, value: Any, found: Mapping[str, Any], names: Collection[str]) -> None:
    """Accept, warn about or refuse an argument that has no translation."""
    if name == "do_train" and value is False:
        text = "train_prompt always trains; leave it out, and eval_prompt scores a stored prompt"
        warnings.warn(f"do_train=False is ignored: {text}", stacklevel=4)
        return
    if name in (*NO_EFFECT, "do_train") or (name == "save_steps" and value == found.get("eval_steps")):
        return
    if name in SAME_HERE:
        accepted, text = SAME_HERE[name]
        if value is None or getattr(value, "value", value) in accepted:
            return
        if name in STRICT or str(value).endswith("loss"):
            raise UserError(f"{name}={value!r} has no meaning here: {text}")
        warnings.warn(f"{name}={value!r} is ignored: {text}", stacklevel=4)
        return
    ignored = IGNORED.get(name) or next(
        (text for prefixes, text in IGNORED_PREFIXES.items() if name.startswith(prefixes)), None
    )
    if ignored is None and name not in REFUSED and not name.startswith(REFUSED_PREFIXES):
        known = [*names, *OPTIONS, *SAME_HERE, *IGNORED, *REFUSED, *ADAM]
        close = difflib.get_close_matches(name, known, 1)
        raise UserError(
            f"PromptTrainingArguments has no argument {name!r}{f' (did you mean {close[0]}?)' if close else ''}: give "
            'further options of `fit` as prompt_options={"model": {...}, "data": {...}, "trainer": {...}}'
        )
    if value in UNSET:
        return
    if ignored is None:
        raise UserError(f"{name}={value!r} is not supported: {REFUSED.get(name, 'it has no equivalent, leave it out')}")
    warnings.warn(f"{name}={value!r} is ignored: {ignored}", stacklevel=4)


def _batch_size(rest: dict[str, Any], found: dict[str, Any], options: dict[str, Any]) -> None:
    for name in ("per_device_train_batch_size", "per_gpu_train_batch_size"):
        each = rest.pop(name, None)
        if each is None:
            continue
        if "batch_size" in found:
            raise UserError(f"{name} and batch_size exclude each other: give batch_size, over all devices")
        parts = rest.pop("gradient_accumulation_steps", 1)
        found["batch_size"] = each * parts
    if rest.get("gradient_accumulation_steps") == 1:
        rest.pop("gradient_accumulation_steps")


def _lengths(rest: dict[str, Any], found: dict[str, Any], options: dict[str, Any]) -> None:
    for name in ("max_source_length", "max_seq_length"):
        if name in rest and found.setdefault("max_length", length := rest.pop(name)) != length:
            raise UserError(f"{name} and max_length are the same: give one of them")
    if rest.pop("flatten_proj", True) is False:
        found.setdefault("projector", "TokenMLP")


def _evaluation(rest: dict[str, Any], found: dict[str, Any], options: dict[str, Any]) -> None:
    given = [rest.pop(name) for name in ("eval_strategy", "evaluation_strategy") if name in rest]
    for strategy in (str(getattr(one, "value", one)).lower() for one in given):
        if strategy == "epoch":
            found["eval_steps"] = "epoch"
        elif strategy == "steps":
            found.setdefault("eval_steps", rest.get("logging_steps"))
        elif strategy in ("no", "none", "false"):
            warnings.warn("eval_strategy='no' is ignored: evaluations on validation select the prompt", stacklevel=4)
        else:
            raise UserError(f"eval_strategy is {strategy!r}: choose epoch or steps")


def _hardware(rest: dict[str, Any], found: dict[str, Any], options: dict[str, Any]) -> None:
    asked = [rest.pop(name, False) for name in ("no_cuda", "use_cpu")]
    if any(asked):
        if (given := found.get("accelerator", "auto")) not in ("auto", "cpu"):
            raise UserError(f"accelerator={given!r} contradicts use_cpu or no_cuda: give one of them")
        found["accelerator"] = "cpu"
    if rest.get("disable_tqdm") is not None:
        found.setdefault("progress", not rest.pop("disable_tqdm"))
    if rest.get("fp16") and rest.get("bf16"):
        raise UserError("fp16 and bf16 exclude each other: give one of them")
    for name, precision in (("fp16", "16-mixed"), ("bf16", "bf16-mixed")):
        if rest.pop(name, False):
            options["trainer.precision"] = precision


def _schedule(rest: dict[str, Any], found: dict[str, Any], options: dict[str, Any]) -> None:
    warmup = rest.pop("warmup_steps", None) or rest.pop("warmup_ratio", None) or 0
    rest.pop("warmup_ratio", None)
    if not isinstance(warmup, int | float) or not 0 <= warmup < math.inf:
        raise UserError(f"warmup is {warmup!r}: give warmup_steps, 0 or more")
    if 0 < warmup < 1:
        if not found.get("max_steps"):
            raise UserError(f"warmup_ratio is {warmup}: give warmup_steps, or max_steps too")
        warmup = math.ceil(warmup * found["max_steps"])
    if warmup:
        options["model.warmup_steps"] = int(warmup)


def _optimizer(rest: dict[str, Any], found: dict[str, Any], options: dict[str, Any]) -> None:
    given = {name: rest.pop(name) for name in ADAM if name in rest}
    if any(value is not None and value != ADAM[name] for name, value in given.items()):
        chosen = ADAM | {name: value for name, value in given.items() if value is not None}
        options["model.optimizer"] = {
            "class_path": "torch.optim.AdamW",
            "init_args": {
                "weight_decay": chosen["weight_decay"],
                "betas": [chosen["adam_beta1"], chosen["adam_beta2"]],
                "eps": chosen["adam_epsilon"],
            },
        }


def _logger(rest: dict[str, Any], found: dict[str, Any], options: dict[str, Any]) -> None:
    given = rest.pop("report_to", None) or []
    names = [str(getattr(one, "value", one)) for one in ([given] if isinstance(given, str) else given)]
    chosen = next((name for name in names if name in LOGGERS), None)
    if chosen:
        options["logger"] = chosen
    if others := [name for name in names if name not in (chosen, "none")]:
        text = f"the run is logged to {chosen}" if chosen else f"give one of {', '.join(LOGGERS)}"
        warnings.warn(f"report_to={', '.join(others)} is ignored: {text}", stacklevel=4)
