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

With a seed other than 0, the name of the innermost folder or figure ends in `-seed<seed>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from prompt_transfer.backbones.loading import resolve
from prompt_transfer.commands.lightning import CONFIG_FILE
from prompt_transfer.commands.run_folders import PROJECTOR_FILE, PROMPT_FILE
from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.prompts.listing import run_name
from prompt_transfer.prompts.prompt import Prompt
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


def options_file(run: Path) -> Path:
    """Return the file with the options of a hub's run, next to its folder."""
    return run.with_name(f"{run.name}.yaml")


def stored_seed(run: Path) -> int | None:
    """Return the seed of a run of `fit` from its options; None if it has none that can be read."""
    for path in (options_file(run), run / CONFIG_FILE):
        with suppress(OSError, yaml.YAMLError, AttributeError):
            seed = yaml.safe_load(path.read_text(encoding="utf-8")).get("seed_everything")
            if isinstance(seed, int) and not isinstance(seed, bool):
                return seed
    return None


class Store:
    """The files of a hub.

    Args:
        root: the hub's `output_dir`.
        seed: the seed of its runs.
    """

    def __init__(self, root: str, seed: int = 0) -> None:
        self.root = Path(root).expanduser()
        self.seed = seed
        self.suffix = f"-seed{seed}" if seed else ""

    def prompt_run(self, backbone: str, task: str) -> Path:
        """Return the run folder of a prompt."""
        return self._run(self.root / "prompts" / backbone_name(backbone) / get_task(task).name)

    def projector_run(self, source: str, target: str, tasks: Sequence[str]) -> Path:
        """Return the run folder of a projector."""
        names = "+".join(get_task(task).name for task in tasks)
        return self._run(self.root / "projectors" / f"{backbone_name(source)}-to-{backbone_name(target)}" / names)

    def _run(self, folder: Path) -> Path:
        """Return the folder of this seed; earlier versions kept any seed in the folder without a suffix."""
        own = folder.with_name(folder.name + self.suffix)
        return folder if self.seed and not own.exists() and stored_seed(folder) == self.seed else own

    def projected(self, source: str, target: str, trained_on: Sequence[str], task: str) -> Path:
        """Return the folder of a projected prompt."""
        run = self.projector_run(source, target, trained_on)
        return self.root / "projected" / run.parent.name / run.name / get_task(task).name

    def place(self, kind: str, backbone: str, *names: str) -> Path:
        """Return a path below `<kind>/<backbone>`; the seed is added to the last of `names`."""
        path = self.root.joinpath(kind, backbone_name(backbone), *names)
        ending = ".png" if path.name.endswith(".png") else ""
        return path.with_name(f"{path.name.removesuffix(ending)}{self.suffix}{ending}")

    def has_prompt(self, backbone: str, task: str) -> bool:
        """Return whether the prompt of this seed exists."""
        run = self.prompt_run(backbone, task)
        return (run / PROMPT_FILE).is_file() and stored_seed(run) in (None, self.seed)

    def prompt(self, backbone: str, task: str) -> Prompt:
        """Load the prompt of a backbone for a task.

        Raises:
            UserError: it does not exist (the message names the call that trains it), or cannot be read.
        """
        run = self.prompt_run(backbone, task)
        if not (run / PROMPT_FILE).is_file():
            there = _names(run.parent, PROMPT_FILE)
            raise UserError(
                f"there is no prompt of {backbone} for {task}{self._with_seed} in {self.root}: "
                f"train_prompt({backbone!r}, {task!r}) trains it{there and f' (there are prompts for {there})'}"
            )
        self._check_seed(run)
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
                f"there is no projector from {source} to {target} trained on {', '.join(trained_on)}{self._with_seed} "
                f"in {self.root}: "
                f"cross_model_train({source!r}, {target!r}, {tasks!r}) trains it"
                f"{there and f' (there are projectors trained on {there}: give trained_on)'}"
            )
        self._check_seed(run)
        return ProjectorFile.load(run)

    @property
    def _with_seed(self) -> str:
        return f" with seed {self.seed}" if self.seed else ""

    def _check_seed(self, run: Path) -> None:
        seed = stored_seed(run)
        if seed not in (None, self.seed):
            raise UserError(f"the run in {run} has seed {seed}, not {self.seed}: set args.seed to {seed} to use it")


def _names(folder: Path, file: str) -> str:
    return ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{file}")))
