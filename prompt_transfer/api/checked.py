"""Prompts and projectors of a hub, loaded with a warning if they were trained with other settings than the present."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_transfer.api.arguments import PromptTrainingArguments
from prompt_transfer.api.runs import quiet_session, training_changes
from prompt_transfer.api.scores import are_comparable
from prompt_transfer.api.store import Store
from prompt_transfer.commands.lightning import CONFIG_FILE, RESULTS_FILE
from prompt_transfer.neurons import files
from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.registry import get_task


@dataclass(frozen=True)
class Run:
    """A run of `fit` with a hub's present settings.

    Attributes:
        folder: its folder.
        config: its options.
        call: the call that trains it, without the closing bracket.
        origin: one line: the call and what else determines the result.
    """

    folder: Path
    config: dict[str, Any]
    call: str
    origin: str

    def warn_of_changes(self, what: str) -> None:
        """Warn if the folder's run has other settings, or has not finished."""
        if (self.folder / CONFIG_FILE).is_file() and not (self.folder / RESULTS_FILE).is_file():
            warn(f"the run of {what} in {self.folder} has not finished; {self.call}) resumes it")
        changes = training_changes(self.folder, self.config, self.origin)
        if changes:
            warn(f"{what} was trained with {changes}; {self.call}, overwrite=True) trains it with the present settings")


def warn(message: str) -> None:
    """Show a warning as one line."""
    with quiet_session():
        warnings.warn(message, stacklevel=3)


def prompt_run(args: PromptTrainingArguments, backbone: str, task: str) -> Run:
    """Return the run that trains a prompt."""
    call = f"train_prompt({backbone!r}, {task!r}"
    words = ", ".join(get_task(task).label_words)
    origin = f"{call}){words and f', label words {words}'}"
    return Run(_store(args).prompt_run(backbone, task), args.prompt_config(backbone, task), call, origin)


def projector_run(
    args: PromptTrainingArguments, source: str, target: str, tasks: list[str], prompts: list[Prompt]
) -> Run:
    """Return the run that trains a projector on the source's prompts of `tasks`."""
    shown = tasks[0] if len(tasks) == 1 else tasks
    call = f"cross_model_train({source!r}, {target!r}, {shown!r}"
    origin = f"{call}), source prompts {', '.join(files.digest(prompt.values) for prompt in prompts)}"
    config = args.projector_config(target, tasks, [str(Path(str(prompt.path)).resolve()) for prompt in prompts])
    return Run(_store(args).projector_run(source, target, tasks), config, call, origin)


def load_prompt(args: PromptTrainingArguments, backbone: str, task: str) -> Prompt:
    """Load the prompt of a backbone for a task; see `Store.prompt`."""
    prompt = _store(args).prompt(backbone, task)
    prompt_run(args, backbone, task).warn_of_changes(f"the prompt of {task}")
    return prompt


def load_projector(args: PromptTrainingArguments, source: str, target: str, tasks: list[str]) -> ProjectorFile:
    """Load the projector between two backbones; see `Store.projector`."""
    store = _store(args)
    projector = store.projector(source, target, tasks)
    if all(store.has_prompt(source, task) for task in tasks):
        prompts = [store.prompt(source, task) for task in tasks]
        projector_run(args, source, target, tasks, prompts).warn_of_changes("the projector")
    return projector


def own_prompt_folder(args: PromptTrainingArguments, backbone: str, task: str, prompt: Prompt) -> list[Path]:
    """Return the folder of the task's own prompt if it exists and can be scored together with `prompt`."""
    store = _store(args)
    if not store.has_prompt(backbone, task):
        warn(
            f"no prompt was trained on {task}, so no score is relative to it; train_prompt({backbone!r}, {task!r}) "
            "trains one"
        )
        return []
    if are_comparable(prompt, load_prompt(args, backbone, task)):
        return [store.prompt_run(backbone, task)]
    warn(
        f"the own prompt of {task} differs in layout, attention, dtype, head or label words: no score is relative to it"
    )
    return []


def _store(args: PromptTrainingArguments) -> Store:
    return Store(args.output_dir, args.seed)
