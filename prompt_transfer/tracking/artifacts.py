"""Prompts, projectors and results as W&B artifacts, named by content to connect runs in the lineage graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.prompts.listing import list_prompts, run_name
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt
from prompt_transfer.prompts.tensor_file import sizes
from prompt_transfer.tracking.options import clean

LONGEST_NAME = 120
TRAINED = "trained"


def prompt_artifact(path: str | Path) -> Any:
    """Return a prompt file as an artifact of type `prompt`.

    The name comes from the metadata (task, backbone, seed and role), not from the path: runs that share a file share
    the artifact version.

    Raises:
        UserError: the file is not a prompt.
    """
    import wandb

    prompt = Prompt.load(path)
    facts, kind = prompt.metadata, role(prompt.metadata)
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
        description=f"{kind} prompt of {sizes(prompt.values.shape)} for {backbone}, {task}",
        metadata={**_facts(facts), "role": kind},
    )
    # Without a cached copy, `wandb sync` reads the original file later.
    artifact.add_file(
        str(Path(prompt.path or path).resolve()), name="prompt.safetensors", policy="immutable", skip_cache=True
    )
    return artifact


def projector_artifact(path: str | Path) -> Any:
    """Return a projector file as an artifact of type `projector`.

    Raises:
        UserError: the file is not a projector.
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
    """Return the tables and figures of a study as an artifact of type `results`."""
    import wandb

    artifact = wandb.Artifact(slug(name), type="results")
    for path in files:
        artifact.add_file(str(path.resolve()), name=path.name, policy="immutable", skip_cache=True)
    return artifact


def find_prompt_files(places: Iterable[str | Path]) -> Iterator[Path]:
    """Yield the prompt files given directly or found below the given folders; a run folder yields each prompt once."""
    for place in map(Path, places):
        if place.is_file():
            yield place
        elif place.is_dir():
            found = [Path(row["path"]) for row in list_prompts(place) if not row["error"]]
            yield from (path for path in found if run_name(path) is not None)


def role(facts: Mapping[str, str]) -> str:
    """Return a prompt's origin: trained, transferred (initialized from a prompt), projected, arithmetic or random."""
    for name in ("random", "projected", "arithmetic"):
        if facts.get(name):
            return name
    return "transferred" if facts.get("init", "").startswith("FromPrompt") else TRAINED


def slug(text: str) -> str:
    """Return a valid W&B artifact name: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-")[:LONGEST_NAME] or UNKNOWN


def _short(facts: Mapping[str, str], key: str) -> str:
    return Path(facts.get(key) or UNKNOWN).name


def _facts(facts: Mapping[str, str]) -> dict[str, Any]:
    """Return cleaned metadata; the score becomes a number for sorting on W&B."""
    found = clean(facts)
    try:
        found["score"] = float(facts["score"])
    except (KeyError, ValueError):
        found.pop("score", None)
    return found
