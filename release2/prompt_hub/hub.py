"""`PromptHub` with the argument names of release 2.0."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import prompt_transfer
from prompt_transfer import UserError

# Arguments of transformers' `Trainer`, from which release 2.0 inherits.
BUILT_IN = ("compute_metrics", "data_collator", "tokenizer")
RENAMED = {"model": "backbone", "eval_dataset": "task"}
NO_PROMPT = (
    "prompt_emb is not supported: the prompts of a hub are files below output_dir; "
    "`prompt-transfer test --prompt FILE` scores another one"
)


def _with_old_names(name: str) -> Callable[..., Any]:
    """Return a method of `prompt_transfer.PromptHub` that accepts the argument names of release 2.0."""
    method = getattr(prompt_transfer.PromptHub, name)

    @functools.wraps(method)
    def accept(self: Any, *given: Any, **named: Any) -> Any:
        if named.pop("prompt_emb", None) is not None:
            raise UserError(NO_PROMPT)
        if named.pop("resume_from_checkpoint", None):
            warnings.warn("resume_from_checkpoint is ignored: an interrupted run resumes by itself", stacklevel=2)
        named = {RENAMED.get(key, key): value for key, value in named.items()}
        if name == "cross_task_eval" and len(given) == 2 and "target_task" not in named:
            # The release's script gives model and target, its README model, source and target.
            given = (given[0], None, given[1])
        try:
            inspect.signature(method).bind(self, *given, **named)
        except TypeError as error:
            expected = ", ".join(list(inspect.signature(method).parameters)[1:])
            raise UserError(f"{name}: {error}; its arguments are {expected}") from None
        return method(self, *given, **named)

    return accept


class PromptHub(prompt_transfer.PromptHub):
    """`prompt_transfer.PromptHub` that accepts the argument names of release 2.0: `model`, `eval_dataset`.

    Args:
        args: the settings.
        prompt_emb: not supported.
        trainer_arguments: `compute_metrics`, `data_collator` and `tokenizer` are built in, and ignored with a warning.

    Raises:
        UserError: an argument without an equivalent; from every method as in `prompt_transfer.PromptHub`.
    """

    def __init__(self, args: Any = None, prompt_emb: Any = None, **trainer_arguments: Any) -> None:
        if prompt_emb is not None:
            raise UserError(NO_PROMPT)
        for name, value in trainer_arguments.items():
            if name not in BUILT_IN:
                raise UserError(f"PromptHub has no argument {name!r}: give args=PromptTrainingArguments(...)")
            if value is not None:
                warnings.warn(f"{name} is ignored: metric and tokenizer are those of task and backbone", stacklevel=2)
        super().__init__(args)

    train_prompt = _with_old_names("train_prompt")
    eval_prompt = _with_old_names("eval_prompt")
    cross_task_eval = _with_old_names("cross_task_eval")
    cross_model_train = _with_old_names("cross_model_train")
    cross_model_eval = _with_old_names("cross_model_eval")
    activated_neuron = _with_old_names("activated_neuron")
    neuron_similarity = _with_old_names("neuron_similarity")
    mask_activated_neuron = _with_old_names("mask_activated_neuron")
    plot_neuron = _with_old_names("plot_neuron")
