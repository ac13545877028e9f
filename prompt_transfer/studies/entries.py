"""The prompts of a study: those of a folder, checked before anything is computed, and random ones."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt, readable_prompts, run_name
from prompt_transfer.prompts.random_prompts import DRAWS, random_prompt
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.digests import digest_of
from prompt_transfer.utils.errors import UserError

# Options that decide where the prompts of a folder differ.
OPTIONS = {
    **{key: f"--{key}" for key in ("attention", "layout", "dtype", "label_words_policy")},
    "data_label_words": "--data.label_words",
}
# Marks of prompts that were not trained on the task that their metadata name.
MADE = ("arithmetic", "projected")


@dataclass(frozen=True)
class Entry:
    """A prompt that is scored.

    Attributes:
        name: of the file, or of the run folder it lies in; unique in a study.
        kind: `trained`, `random`, or how else it was made (`arithmetic`, `projected`).
        source: its column in the matrix: the task it was trained on, the kind of random prompt, else its name.
        seed: of its training or drawing, None where unknown.
        start: `shared` where a prompt of another task began with the same numbers, else `separate`; None where unknown.
            A shared start makes prompts similar whatever they learnt.
        embeddings: float32 [P, H] on the CPU.
        digest: SHA-256 of the embeddings; what is known of a prompt is kept under it.
    """

    name: str
    kind: str
    source: str
    seed: int | None
    embeddings: Tensor = field(repr=False)
    digest: str = ""
    start: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest_of(self.embeddings))


def read_folder(
    folder: str | Path | Sequence[str], attention: str | None = None, layout: str | None = None
) -> dict[str, Prompt]:
    """Name -> prompt of all prompt files below `folder`.

    Args:
        folder: searched with everything below it; or several.
        attention, layout: leave out prompts that were trained with another one.

    Raises:
        UserError: no folder, none in it, a file that cannot be read, or two prompts with one name.
    """
    folders = [folder] if isinstance(folder, str | Path) else folder
    for place in folders:
        if not Path(place).is_dir():
            raise UserError(f"no folder {place}: give the folder that holds the prompt files with --prompts")
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
        raise UserError(f"no prompt file in {where}{f' with {chosen}' if chosen else ''}; `fit` makes them")
    return found


def _wanted(attention: str | None, layout: str | None) -> tuple[tuple[str, str | None], ...]:
    return ("attention", attention), ("layout", layout)


def common_value(prompts: dict[str, Prompt], key: str, given: str | None = None) -> str | None:
    """What all prompts that say something of `key` say; None where none does.

    Args:
        given: the user's word, which wins.

    Raises:
        UserError: they differ.
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
        choose = f"choose with {OPTIONS[key]}" if key in OPTIONS else "put them into folders of their own"
        raise UserError(f"the prompts differ in {key}: {shown}; {choose}, one matrix has one")
    return next(iter(said), None)


def check_all(prompts: dict[str, Prompt], backbone: FrozenBackbone) -> None:
    """Make sure that every prompt is one of this backbone's; a single warning for those that cannot be sure.

    Raises:
        UserError: the first that does not fit, and how many more.
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


def warn_of_other_words(prompts: dict[str, Prompt], tasks: Sequence[Task]) -> None:
    """A task may have other label words than when its prompt was trained; its own score is then another one too."""
    for task in tasks:
        for name, prompt in prompts.items():
            words = json.loads(prompt.metadata.get("label_words") or "{}").get(task.name)
            if words is not None and words != list(task.label_words):
                warnings.warn(
                    f"prompt {name} was trained on {task.name} with the label words {', '.join(words)}, here they are "
                    f"{', '.join(task.label_words)}",
                    stacklevel=2,
                )
                break


def make_entries(prompts: dict[str, Prompt], backbone: FrozenBackbone, random_prompts: int) -> list[Entry]:
    """The prompts of the folder by name, then `random_prompts` of each kind, as long as the longest of the others."""
    starts: dict[str, set[str]] = defaultdict(set)
    for prompt in prompts.values():
        if prompt.initial is not None:
            starts[digest_of(prompt.initial)].add(prompt.metadata.get("task", ""))
    entries = [_entry(name, prompt, starts) for name, prompt in sorted(prompts.items())]
    length = max(len(entry.embeddings) for entry in entries)
    shape = (length, backbone.hidden_size)
    for draw in DRAWS:
        for number in range(1, random_prompts + 1):
            rows = random_prompt(backbone, shape, number, draw)
            entries.append(Entry(f"random {draw} {number}", "random", f"random_{draw}", number, rows))
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
    return Entry(name, kind, source, int(seed) if seed.isdecimal() else None, prompt.embeddings, start=start)
