"""The prompts of a study: prompt files of a folder, checked up front, and random prompts."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from prompt_transfer.backbones.deep import prompt_length
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.modules.label_embeddings import warn_of_unused
from prompt_transfer.prompts.listing import readable_prompts, run_name
from prompt_transfer.prompts.methods import METHODS
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt
from prompt_transfer.prompts.random_prompts import DRAWS
from prompt_transfer.studies.data import check_folders
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.digests import digest_of
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.studies.targets import TargetData

Data = TypeVar("Data", bound="TargetData")

# Options that choose between values when the prompts of a folder differ.
OPTIONS = {
    **{key: f"--{key}" for key in ("attention", "layout", "dtype", "label_words_policy")},
    "data_label_words": "--data.label_words",
}
# Metadata keys of prompts that were derived rather than trained on the task they name.
MADE = ("arithmetic", "projected")


@dataclass(frozen=True)
class Entry:
    """A prompt to score.

    Attributes:
        name: name of the file or of its run folder; unique in a study.
        kind: `trained`, `random`, or how it was derived (`arithmetic`, `projected`).
        source: its column in the matrix: its training task, the kind of random prompt, otherwise its name.
        seed: seed of training or sampling; None if unknown.
        start: `shared` if a prompt of another task has the same initialization, else `separate`; None if unknown.
            A shared initialization makes prompts similar regardless of training.
        embeddings: float32 [P, H] on the CPU; of a deep prompt its keys and values [L, 2, P, kv_heads, head_dim].
        digest: SHA-256 of the embeddings and label embeddings; the key of the prompt's answers.
        file: the prompt file, for its label embeddings; None without one.
    """

    name: str
    kind: str
    source: str
    seed: int | None
    embeddings: Tensor = field(repr=False)
    digest: str = ""
    start: str | None = None
    file: Prompt | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        digest = digest_of(self.embeddings)
        if self.file is not None and self.file.label_embeddings is not None:
            digest = f"{digest}-{digest_of(self.file.label_embeddings)}"
        object.__setattr__(self, "digest", digest)

    @property
    def length(self) -> int:
        """P."""
        return prompt_length(self.embeddings)


def read_folder(
    folder: str | Path | Sequence[str], attention: str | None = None, layout: str | None = None
) -> dict[str, Prompt]:
    """Load all prompt files below `folder`, by name.

    Args:
        folder: one or several folders, searched recursively.
        attention, layout: skip prompts trained with another value.

    Raises:
        UserError: a folder is missing, no prompt is found, a file cannot be read, or two prompts share a name.
    """
    folders = [folder] if isinstance(folder, str | Path) else folder
    check_folders(folders)
    found: dict[str, Prompt] = {}
    for row in (row for place in folders for row in readable_prompts(place)):
        if any(wanted and row[key] not in ("", UNKNOWN, wanted) for key, wanted in _wanted(attention, layout)):
            continue
        path = Path(row["path"])
        name = str(run_name(path))
        if name in found:
            raise UserError(f"two prompts have the name {name}: {found[name].path} and {path}; rename or move one")
        found[name] = Prompt.load(path)
    if not found:
        chosen = " and ".join(f"{key} {value}" for key, value in _wanted(attention, layout) if value)
        where = ", ".join(map(str, folders))
        raise UserError(f"no prompt file in {where}{f' with {chosen}' if chosen else ''}; train one with `fit`")
    return found


def _wanted(attention: str | None, layout: str | None) -> tuple[tuple[str, str | None], ...]:
    return ("attention", attention), ("layout", layout)


def common_value(prompts: dict[str, Prompt], key: str, given: str | None = None) -> str | None:
    """Return the value of a metadata key shared by all prompts that have it; None if none has it.

    Args:
        given: value chosen by the user; overrides the prompts.

    Raises:
        UserError: the prompts differ and nothing is given.
    """
    said: dict[str, list[str]] = defaultdict(list)
    for name, prompt in prompts.items():
        value = prompt.metadata.get(key, "")
        if value not in ("", UNKNOWN):
            said[value].append(name)
    if given is not None:
        return given
    if len(said) > 1:
        shown = ", ".join(f"{value} ({names[0]}{', ...' if len(names) > 1 else ''})" for value, names in said.items())
        choose = f"choose one with {OPTIONS[key]}" if key in OPTIONS else "put them into separate folders"
        raise UserError(f"the prompts differ in {key}: {shown}; {choose}")
    return next(iter(said), None)


def common_method(prompts: Mapping[str, Prompt]) -> str:
    """Return the method of all prompts.

    Raises:
        UserError: prompts and deep prompts are mixed.
    """
    found = {prompt.method: name for name, prompt in prompts.items()}
    if len(found) > 1:
        shown = ", ".join(f"{name} is a {method}" for method, name in sorted(found.items()))
        raise UserError(f"prompts of several methods: {shown}; put them into separate folders")
    return next(iter(found))


def check_all(prompts: dict[str, Prompt], backbone: FrozenBackbone) -> None:
    """Check every prompt against the backbone; issue one warning for all prompts that cannot be verified.

    Raises:
        UserError: a prompt does not fit; the message names the first and counts the others.
    """
    wrong = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for prompt in prompts.values():
            try:
                prompt.check(backbone, backbone.layout, backbone.attention)
            except UserError as error:
                wrong.append(str(error))
    if wrong:
        raise UserError(wrong[0] + (f" ({len(wrong) - 1} more do not fit either)" if len(wrong) > 1 else ""))
    if caught:
        more = f" (and {len(caught) - 1} more like it)" if len(caught) > 1 else ""
        warnings.warn(f"{caught[0].message}{more}", stacklevel=2)


def with_formats(prompts: dict[str, Prompt], data: Data) -> Data:
    """Return the data options with the template and chat template that the prompts were trained with, unless given.

    Raises:
        UserError: the prompts differ and nothing is given.
    """
    found: dict[str, Any] = {}
    for key in ("template", "chat_template"):
        if getattr(data, key) is not None:
            continue
        said = {prompt.metadata.get(f"data_{key}", ""): name for name, prompt in prompts.items()}
        if len(said) > 1:
            shown = ", ".join(f"{value or 'none'!r} ({name})" for value, name in said.items())
            raise UserError(f"the prompts differ in data_{key}: {shown}; choose one with --data.{key}")
        value = next(iter(said), "")
        if value:
            found[key] = value == "true" if key == "chat_template" else value
    return replace(data, **found) if found else data


def warn_of_other_words(
    prompts: dict[str, Prompt], tasks: Sequence[Task], backbone: FrozenBackbone | None = None
) -> None:
    """Warn if a task's label words, or with a `backbone` its template, differ from those of its prompt's training."""
    for name, prompt in prompts.items():
        warn_of_unused(prompt, f"prompt {name}", tasks)
    for task in tasks:
        for name, prompt in prompts.items():
            if said := changed_format(prompt, task, backbone):
                warnings.warn(f"prompt {name} was trained on {task.name} with {said}", stacklevel=2)
                break


def changed_format(prompt: Prompt, task: Task, backbone: FrozenBackbone | None = None) -> str:
    """Describe how the label words or template of a task differ from those of a prompt's training; "" if they do not.

    Raises:
        UserError: the prompt's metadata are damaged.
    """
    here: dict[str, Any] = {"label_words": task.stored_words}
    if backbone is not None:
        here["templates"] = backbone.shown_format(task.format, task.pairs, task.cue)
    for key, now in here.items():
        try:
            before = json.loads(prompt.metadata.get(key) or "{}").get(task.name)
        except (ValueError, AttributeError):
            raise UserError(
                f"{prompt.path} is damaged: its metadata {key!r} is {prompt.metadata[key][:60]!r}"
            ) from None
        if before is None or before == now:
            continue
        if key == "templates":
            return f"the template {before!r}, but is used with {now!r}"
        words, others = (", ".join(map(_shown, found)) for found in (before, now))
        return f"the label words {words}, but is scored with {others}"
    return ""


def _shown(words: str | list[str]) -> str:
    return words if isinstance(words, str) else "/".join(map(str, words))


def make_entries(prompts: dict[str, Prompt], backbone: FrozenBackbone, random_prompts: int) -> list[Entry]:
    """Return the prompts sorted by name, then `random_prompts` of each kind, as long as the longest prompt."""
    starts: dict[str, set[str]] = defaultdict(set)
    for prompt in prompts.values():
        if prompt.initial is not None:
            starts[digest_of(prompt.initial)].add(prompt.metadata.get("task", ""))
    entries = [_entry(name, prompt, starts) for name, prompt in sorted(prompts.items())]
    length = max(entry.length for entry in entries)
    method = METHODS[common_method(prompts)]
    for draw in DRAWS:
        for number in range(1, random_prompts + 1):
            drawn = method.random(backbone, length, number, draw)
            entries.append(Entry(f"random {draw} {number}", "random", f"random_{draw}", number, drawn))
    return entries


def _entry(name: str, prompt: Prompt, starts: dict[str, set[str]]) -> Entry:
    facts = prompt.metadata
    kind = next((mark for mark in MADE if facts.get(mark, "false") != "false"), "trained")
    source = facts.get("task") or name
    if facts.get("random") == "true":
        kind, source = "random", f"random_{name}"
    elif kind != "trained":
        source = name
    seed = facts.get("seed", "")
    start = None
    if prompt.initial is not None and kind == "trained":
        start = "shared" if len(starts[digest_of(prompt.initial)]) > 1 else "separate"
    number = int(seed) if seed.isdecimal() else None
    file = prompt if prompt.label_embeddings is not None else None
    return Entry(name, kind, source, number, prompt.values, start=start, file=file)
