"""The prompts that `--prompt` names: files, folders of runs, folders of prompts, patterns and lists."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
import yaml

from prompt_transfer.commands.parsing import find_value, program
from prompt_transfer.prompts.listing import readable_prompts, run_name
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.errors import SEE_PROMPTS, UserError, no_such_file

# Metadata that the scoring of a prompt depends on -> option, and the value of files without it.
OPTIONS: Mapping[str, tuple[str, str]] = {
    "backbone": ("--model.backbone", ""),
    "revision": ("--model.revision", ""),
    "layout": ("--model.layout", ""),
    "attention": ("--model.attention", ""),
    "dtype": ("--model.dtype", ""),
    "head": ("--model.head", ""),
    "label_words_policy": ("--model.label_words_policy", ""),
    "data_task": ("--data.task", ""),
    "data_source": ("--data.source", ""),
    "data_root": ("--data.root", ""),
    "data_label_words": ("--data.label_words", "default"),
    "data_max_length": ("--data.max_length", ""),
    "data_special_tokens": ("--data.special_tokens", "keep"),
    "data_revision": ("--data.revision", ""),
    "data_template": ("--data.template", ""),
    "data_chat_template": ("--data.chat_template", ""),
}
RUN_FILE = "prompt.safetensors"


@dataclass(frozen=True)
class NamedPrompt:
    """A prompt to score.

    Attributes:
        name: short name for tables, unique among the prompts of a command.
        path: as given, or below the given folder.
    """

    name: str
    path: str
    prompt: Prompt


def load_prompts(values: Sequence[str]) -> list[NamedPrompt]:
    """Load the prompts that the values of `--prompt` name.

    Raises:
        UserError: a file is missing or invalid.
    """
    paths = [path for value in values for path in _expand(value)]
    prompts = [Prompt.load(path) for path in paths]
    return [NamedPrompt(*found) for found in zip(_names(prompts, paths), paths, prompts, strict=True)]


def check_different(prompts: Sequence[NamedPrompt]) -> None:
    """Raise UserError if two files hold the same prompt, which would count twice in the mean."""
    for first, second in combinations(prompts, 2):
        one, other = first.prompt.values, second.prompt.values
        if one.shape == other.shape and torch.equal(one, other):
            raise UserError(f"{first.path} and {second.path} hold the same prompt: give it once")


def _expand(value: str) -> list[str]:
    """Return the paths that a value names: itself, all prompts below a folder, a list `[a,b]`, or a pattern."""
    place = Path(value).expanduser()
    if place.is_dir() and not (place / RUN_FILE).is_file():
        found = [row["path"] for row in readable_prompts(place) if row["random"] != "true"]
        if not found:
            raise no_such_file(value, "prompt", SEE_PROMPTS)
        return found
    if place.exists():
        return [value]
    if value.startswith("[") and value.endswith("]"):
        try:
            listed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--prompt {value} is no list of files: give --prompt once for each") from error
        return [path for one in listed for path in _expand(str(one))]
    if set("*?[") & set(value):
        if matching := sorted(glob.glob(str(place))):  # noqa: PTH207  # Path.glob takes no absolute pattern
            return matching
        raise UserError(f"no prompt file matches {value}")
    return [value]


def _names(prompts: Sequence[Prompt], paths: Sequence[str]) -> list[str]:
    """Return the run names of prompt files, or their paths if two would have the same name."""
    names = [run_name(Path(str(prompt.path))) or path for prompt, path in zip(prompts, paths, strict=True)]
    return names if len(set(names)) == len(names) else list(map(str, paths))


def check_comparable(prompts: Sequence[NamedPrompt], arguments: Sequence[str], command: str) -> None:
    """Raise UserError if the prompts were trained with options that differ and are not in `arguments`.

    One model and one split score all of them. `--data.seed` may cut another validation split from train, on whose
    examples another prompt was trained; the test split does not depend on it.
    """
    builtin = (find_value(arguments, "--data.task") or "").startswith("builtin_")
    seed = {"data_seed": ("--data.seed", "0")} if command == "validate" else {}
    for key, (option, missing) in {**OPTIONS, **seed}.items():
        if builtin and key in ("data_source", "data_root", "data_revision", "data_label_words"):
            continue
        values = {one.path: one.prompt.metadata.get(key) or missing for one in prompts}
        if len(set(values.values())) == 1 or find_value(arguments, option) is not None:
            continue
        first, second = list(dict.fromkeys(values.values()))[:2]
        paths = [next(path for path, value in values.items() if value == wanted) for wanted in (first, second)]
        if key in ("data_source", "data_root", "data_revision") and find_value(arguments, "--data.task") is not None:
            advice = f"give {option} for the task of --data.task"
        elif key == "backbone":
            advice = "test the prompts of each backbone separately"
        else:
            advice = f"give {option}, or score them separately"
        raise UserError(
            f"the prompts differ in {key.removeprefix('data_')}: {paths[0]} has {first or 'none'}, {paths[1]} "
            f"{second or 'none'}; {advice}"
        )


def command_to_test(paths: Sequence[str | Path]) -> str:
    """Return the command that scores prompt files, for a shell."""
    return f"{program()} test " + " ".join(f"--prompt {shlex.quote(str(path))}" for path in paths)


def selection_note(one: NamedPrompt) -> str | None:
    """Return a line for a run's copy of the best of several prompts; None for other files."""
    count = one.prompt.metadata.get("best_of")
    if count is None:
        return None
    folder = Path(str(one.prompt.path)).parent
    others = sorted(folder.glob("prompt-*.safetensors"))
    more = f"; for the mean of all: {command_to_test(others)}" if len(others) > 1 else ""
    return f"{one.path} is the best of {count} prompts of its run on the validation split{more}"


def best_on_validation(prompts: Sequence[NamedPrompt]) -> int | None:
    """Return the number of the prompt with the highest validation score of its training.

    None if a file has no such score, or their tasks or metrics differ.
    """
    facts = [one.prompt.metadata for one in prompts]
    comparable = len({(fact.get("task"), fact.get("metric")) for fact in facts}) == 1
    if not comparable or any(fact.get("split") != "validation" for fact in facts):
        return None
    try:
        scores = [float(fact["score"]) for fact in facts]
    except (KeyError, ValueError):
        return None
    return max(range(len(scores)), key=scores.__getitem__)
