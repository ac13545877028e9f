"""Prompts, projectors and results as W&B artifacts: one name a thing, so that lineage joins what runs made and used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt, list_prompts, run_name
from prompt_transfer.tracking.options import clean

LONGEST_NAME = 120
TRAINED = "trained"


def prompt_artifact(path: str | Path) -> Any:
    """A prompt file as artifact of type `prompt`.

    Its name is made of what the file says (task, backbone, seed and role), never of where it lies: runs that were given
    the same file speak of the same version.

    Raises:
        UserError: the file is no prompt.
    """
    import wandb

    prompt = Prompt.load(path)
    facts, kind = prompt.metadata, role(prompt.metadata)
    length, width = prompt.embeddings.shape
    task, backbone = _short(facts, "task"), _short(facts, "backbone")
    parts = [
        "prompt",
        task,
        backbone,
        f"seed{facts['seed']}" if facts.get("seed") else "",
        kind if kind != TRAINED else "",
    ]
    artifact = wandb.Artifact(
        slug("-".join(filter(None, parts))),
        type="prompt",
        description=f"{kind} prompt of {length} x {width} for {backbone}, {task}",
        metadata={**_facts(facts), "role": kind},
    )
    # Not copied elsewhere: what is sent later with `wandb sync` is read from where it lies.
    artifact.add_file(
        str(Path(prompt.path or path).resolve()), name="prompt.safetensors", policy="immutable", skip_cache=True
    )
    return artifact


def projector_artifact(path: str | Path) -> Any:
    """A projector file as artifact of type `projector`.

    Raises:
        UserError: the file is no projector.
    """
    import wandb

    found = ProjectorFile.load(path)
    ends = [Path(side.backbone).name for side in (found.source, found.target)]
    artifact = wandb.Artifact(
        slug(f"projector-{found.kind}-{ends[0]}-to-{ends[1]}"),
        type="projector",
        description=f"{found.kind} from {found.source.backbone} ({found.source.size}) to {found.target.backbone}",
        metadata={**_facts(found.metadata), "kind": found.kind, "source": ends[0], "target": ends[1]},
    )
    artifact.add_file(
        str(Path(found.path or path).resolve()), name="projector.safetensors", policy="immutable", skip_cache=True
    )
    return artifact


def results_artifact(name: str, files: Iterable[Path]) -> Any:
    """Tables and figures of a study as artifact of type `results`."""
    import wandb

    artifact = wandb.Artifact(slug(name), type="results")
    for path in files:
        artifact.add_file(str(path.resolve()), name=path.name, policy="immutable", skip_cache=True)
    return artifact


def find_prompt_files(places: Iterable[str | Path]) -> Iterator[Path]:
    """Prompt files that are named, or lie below folders that are named; of equal copies in a run folder one."""
    for place in map(Path, places):
        if place.is_file():
            yield place
        elif place.is_dir():
            found = [Path(row["path"]) for row in list_prompts(place) if not row["error"]]
            yield from (path for path in found if run_name(path) is not None)


def role(facts: Mapping[str, str]) -> str:
    """How a prompt was made: trained, transferred (trained on from another one), projected, arithmetic or random."""
    for name in ("random", "projected", "arithmetic"):
        if facts.get(name):
            return name
    return "transferred" if facts.get("init", "").startswith("FromPrompt") else TRAINED


def slug(text: str) -> str:
    """A name that W&B takes: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-")[:LONGEST_NAME] or UNKNOWN


def _short(facts: Mapping[str, str], key: str) -> str:
    return Path(facts.get(key) or UNKNOWN).name


def _facts(facts: Mapping[str, str]) -> dict[str, Any]:
    """Metadata of a file, cleaned; the score as a number, so that artifacts can be sorted by it."""
    found = clean(facts)
    try:
        found["score"] = float(facts["score"])
    except (KeyError, ValueError):
        found.pop("score", None)
    return found
