"""Folder layout of a hub below `output_dir`; nothing is kept in memory.

| path | content |
|---|---|
| `prompts/<backbone>/<task>/` | a prompt's run of `fit`, with its options in `<task>.yaml` |
| `projectors/<source>-to-<target>/<task>/` | a projector's run of `fit`, with its options in `<task>.yaml` |
| `projected/<source>-to-<target>/<trained on>/<task>/` | projected prompts and their controls |
| `scores/<backbone>/<task>-from-<source>/` | tables, figures and answers of `transfer` |
| `neurons/<backbone>/<task>/` | captured neurons |
| `masks/<backbone>/<task>/` | tables and answers of `neurons mask` |
| `figures/<backbone>/` | figures |
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prompt_transfer.backbones.loading import resolve
from prompt_transfer.commands.run_folders import PROJECTOR_FILE, PROMPT_FILE
from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.prompts.prompt import Prompt, run_name
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils.errors import UserError


def backbone_name(backbone: str) -> str:
    """Return a backbone's name for paths: `roberta-nano`, `FacebookAI--roberta-base`, or its folder's name.

    Raises:
        UserError: a path that is not a model folder.
    """
    source, origin = resolve(backbone)
    if origin == "gguf":
        return Path(source).stem
    return Path(source).resolve().name if origin == "folder" else backbone.replace("/", "--").replace(":", "--")


class Store:
    """The files of a hub.

    Args:
        root: the hub's `output_dir`.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root).expanduser()

    def prompt_run(self, backbone: str, task: str) -> Path:
        """Return the run folder of a prompt."""
        return self.root / "prompts" / backbone_name(backbone) / get_task(task).name

    def projector_run(self, source: str, target: str, tasks: Sequence[str]) -> Path:
        """Return the run folder of a projector."""
        names = "+".join(get_task(task).name for task in tasks)
        return self.root / "projectors" / f"{backbone_name(source)}-to-{backbone_name(target)}" / names

    def projected(self, source: str, target: str, trained_on: Sequence[str], task: str) -> Path:
        """Return the folder of a projected prompt."""
        run = self.projector_run(source, target, trained_on)
        return self.root / "projected" / run.parent.name / run.name / get_task(task).name

    def place(self, kind: str, backbone: str, *names: str) -> Path:
        """Return a path below `<kind>/<backbone>`."""
        return self.root.joinpath(kind, backbone_name(backbone), *names)

    def has_prompt(self, backbone: str, task: str) -> bool:
        """Return whether the prompt exists."""
        return (self.prompt_run(backbone, task) / PROMPT_FILE).is_file()

    def prompt(self, backbone: str, task: str) -> Prompt:
        """Load the prompt of a backbone for a task.

        Raises:
            UserError: it does not exist (the message names the call that trains it), or cannot be read.
        """
        run = self.prompt_run(backbone, task)
        if not self.has_prompt(backbone, task):
            there = _names(run.parent, PROMPT_FILE)
            raise UserError(
                f"there is no prompt of {backbone} for {task} in {self.root}: train_prompt({backbone!r}, {task!r}) "
                f"trains it{there and f' (there are prompts for {there})'}"
            )
        prompt = Prompt.load(run)
        if run_name(Path(str(prompt.path))) is None:
            raise UserError(
                f"{run} holds several prompts (seeds or learning rates), a hub uses one per task: give another "
                "output_dir"
            )
        return prompt

    def projector(self, source: str, target: str, trained_on: Sequence[str]) -> ProjectorFile:
        """Load the projector between two backbones that was trained on these tasks.

        Raises:
            UserError: it does not exist (the message names the call that trains it), or cannot be read.
        """
        run = self.projector_run(source, target, trained_on)
        if not (run / PROJECTOR_FILE).is_file():
            there = _names(run.parent, PROJECTOR_FILE)
            tasks = trained_on[0] if len(trained_on) == 1 else list(trained_on)
            raise UserError(
                f"there is no projector from {source} to {target} trained on {', '.join(trained_on)} in {self.root}: "
                f"cross_model_train({source!r}, {target!r}, {tasks!r}) trains it"
                f"{there and f' (there are projectors trained on {there}: give trained_on)'}"
            )
        return ProjectorFile.load(run)


def _names(folder: Path, file: str) -> str:
    return ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{file}")))
