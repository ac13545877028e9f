"""The projector file: a map and its source and target backbones."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.projectors.closed_form import LeastSquares, LinearCombination, Relative
from prompt_transfer.projectors.projector import MLP, Linear, Projector, Space, TokenMLP
from prompt_transfer.projectors.task_vector import TaskVector
from prompt_transfer.prompts.prompt import UNKNOWN, Backbone, Prompt, library_versions
from prompt_transfer.prompts.tensor_file import (
    MAX_HIDDEN_SIZE,
    MAX_PROMPT_LENGTH,
    Header,
    open_file,
    read_header,
    read_values,
    sizes,
    write,
)
from prompt_transfer.utils.errors import UserError
from prompt_transfer.version import __version__

FORMAT_VERSION = 1
KINDS: dict[str, type[Projector]] = {
    kind.__name__: kind for kind in (MLP, TokenMLP, Linear, TaskVector, LeastSquares, LinearCombination, Relative)
}
# Metadata that a projected prompt inherits: its training task and how it is scored.
KEPT = (
    *("task", "label_words", "seed", "random", "train_rows"),
    *(
        "label_words_policy",
        "data_task",
        "data_source",
        "data_root",
        "data_label_words",
        *("data_template", "data_chat_template"),
        "data_max_length",
        "data_seed",
        "data_special_tokens",
        "data_revision",
    ),
)


@dataclass(frozen=True)
class Side:
    """The source or target backbone of a projector file.

    Attributes:
        backbone, fingerprint, family: as in prompt files; `unknown` for imported prompts that lack them.
        hidden_size: width of its prompts.
        prompt_length: number of prompt tokens; None for a projector that maps each prompt token separately.
        layout, attention, dtype, head, revision: the mode of its prompts; "" if unknown.
    """

    backbone: str
    fingerprint: str
    family: str
    hidden_size: int
    prompt_length: int | None = None
    layout: str = ""
    attention: str = ""
    dtype: str = ""
    head: str = ""
    revision: str = ""

    @classmethod
    def of_backbone(cls, backbone: Any, prompt_length: int | None = None) -> Side:
        """Describe a `FrozenBackbone`."""
        return cls(
            backbone.id,
            backbone.fingerprint,
            backbone.family.name,
            backbone.hidden_size,
            prompt_length,
            backbone.layout.name,
            backbone.attention,
            backbone.dtype_name,
            backbone.head,
            backbone.revision or "",
        )

    @classmethod
    def of_prompt(cls, prompt: Prompt, prompt_length: int | None = None) -> Side:
        """Describe the backbone of a prompt."""
        facts = prompt.metadata
        known = {key: facts.get(key) or UNKNOWN for key in ("backbone", "fingerprint", "family")}
        rest = {key: facts.get(key, "") for key in ("layout", "attention", "dtype", "head", "revision")}
        return cls(**known, hidden_size=prompt.embeddings.shape[1], prompt_length=prompt_length, **rest)

    @property
    def space(self) -> Space:
        """The prompts' shape, with length 1 if any length is allowed."""
        return Space(self.prompt_length or 1, self.hidden_size)

    @property
    def size(self) -> str:
        """The shape for messages: `100 x 768`, or `any length x 768`."""
        return f"{self.prompt_length or 'any length'} x {self.hidden_size}"

    def is_of(self, facts: Mapping[str, str]) -> bool:
        """Return whether a prompt's metadata name this backbone, or one of the two is unknown."""
        other = facts.get("fingerprint") or UNKNOWN
        if UNKNOWN not in (other, self.fingerprint):
            return other == self.fingerprint
        name = facts.get("backbone") or UNKNOWN
        return UNKNOWN in (name, self.backbone) or name == self.backbone


@dataclass(eq=False)
class ProjectorFile:
    """A projector with its source and target backbones.

    Attributes:
        projector: the built projector.
        source, target: the backbones.
        metadata: strings only: objective, tasks, held_out (tasks, separated by commas), seed, steps, split, metric,
            score, learning_rate, source_prompts, versions (JSON), created (UTC); for closed forms shared_tokens,
            fitted_ridge, held_out_error (for a search held_out_error_of_start). All may be missing.
        path: the file it was loaded from or saved to, for messages.
    """

    projector: Projector
    source: Side
    target: Side
    metadata: dict[str, str] = field(default_factory=dict)
    path: Path | None = None

    @property
    def kind(self) -> str:
        """Name of the projector's class, a key of `KINDS`."""
        return type(self.projector).__name__

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save, float32 on the CPU.

        Raises:
            UserError: a value is non-finite.
        """
        found = {name: value.detach().float().cpu() for name, value in self.projector.state_dict().items()}
        broken = [name for name, value in found.items() if not torch.isfinite(value).all()]
        if broken:
            raise UserError(f"the projector has non-finite values ({', '.join(broken)}); lower the learning rate")
        return found

    def digest(self) -> str:
        """Return 16 hex digits that identify the projector's values."""
        digest = hashlib.sha256()
        for name, value in sorted(self.tensors().items()):
            digest.update(name.encode())
            digest.update(value.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> Path:
        """Write the file atomically and return its path; adds `versions` and `created` if missing.

        Raises:
            UserError: the file cannot be written, or a value is non-finite.
        """
        path = Path(path)
        self.metadata.setdefault("versions", library_versions())
        self.metadata.setdefault("created", datetime.now(UTC).isoformat(timespec="seconds"))
        own = {
            "format_version": str(FORMAT_VERSION),
            "projector": self.kind,
            "options": json.dumps(self.projector.options(), sort_keys=True),
            "source": json.dumps(asdict(self.source), sort_keys=True),
            "target": json.dumps(asdict(self.target), sort_keys=True),
        }
        write(path, self.tensors(), self.metadata | own)
        self.path = path
        return path

    @classmethod
    def load(cls, path: str | Path) -> ProjectorFile:
        """Read a projector file, or `projector.safetensors` in the folder of a run.

        Memory is allocated only after the names and shapes of all tensors match the projector that the metadata
        describe.

        Raises:
            UserError: the file does not exist, or is not a complete and valid projector file.
        """
        path = Path(path).expanduser()
        path = path / "projector.safetensors" if path.is_dir() else path
        with open_file(
            path, "projector", "create one with `fit --model CrossModelProjector` or `prompts fit-projector`"
        ) as file:
            header = read_header(file, path)
            projector, source, target = _described(header, path)
            expected = {name: list(value.shape) for name, value in projector.state_dict().items()}
            found = {name: list(entry["shape"]) for name, entry in header.tensors.items()}
            if other := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
                name = other[0]
                shown = [sizes(shapes[name]) if name in shapes else "missing" for shapes in (found, expected)]
                raise UserError(
                    f"{path} is damaged: its tensor `{name}` is {shown[0]}, that of a {type(projector).__name__} of "
                    f"these sizes is {shown[1]}"
                )
            if wrong := [name for name, entry in header.tensors.items() if entry.get("dtype") != "F32"]:
                raise UserError(f"{path} is not a projector file: its tensor `{wrong[0]}` is not float32 (F32)")
            state = {name: read_values(file, header, name, path) for name in expected}
        projector.load_state_dict(state, assign=True)
        projector.requires_grad_(False)
        kept = {k: v for k, v in header.metadata.items() if k not in ("format_version", "projector", "options")}
        del kept["source"], kept["target"]
        loaded = cls(projector, source, target, kept, path)
        loaded.tensors()
        return loaded

    def check(self, prompt: Prompt) -> None:
        """Check that a prompt has the source's backbone and shape.

        Raises:
            UserError: names the sizes and backbones of both sides.
        """
        length, width = prompt.embeddings.shape
        fits = width == self.source.hidden_size and self.source.prompt_length in (None, length)
        if fits and self.source.is_of(prompt.metadata):
            return
        name = str(prompt.path) if prompt.path else "the prompt"
        own = prompt.metadata.get("backbone") or "an unknown backbone"
        same = ""
        if fits and own == self.source.backbone:
            prints = [(prompt.metadata.get("fingerprint") or UNKNOWN)[:12], self.source.fingerprint[:12]]
            same = f" (fingerprints {' and '.join(prints)}: tokenizer, configuration or embeddings differ)"
        raise UserError(
            f"{name} ({length} x {width}, for {own}) does not fit the projector {self.path or self.kind}, which "
            f"maps prompts of {self.source.backbone} ({self.source.size}) to {self.target.backbone} "
            f"({self.target.size}){same}"
        )

    @torch.no_grad()
    def rows(self, prompts: Tensor) -> Tensor:
        """Return the projections, float32 `[N, P', H']` on the CPU, of prompts `[N, P, H]`."""
        return self.projector(prompts).float().cpu()

    def project(self, prompt: Prompt) -> Prompt:
        """Project a prompt of the source to the target; the result is marked as projected.

        Raises:
            UserError: see `check`.
        """
        self.check(prompt)
        if prompt.label_embeddings is not None:
            warnings.warn("label embeddings belong to their backbone and are not projected", stacklevel=2)
        target = asdict(self.target)
        metadata = {key: prompt.metadata[key] for key in KEPT if prompt.metadata.get(key)}
        for key in ("backbone", "fingerprint", "family", "layout", "attention", "dtype", "head", "revision"):
            if target[key]:
                metadata[key] = target[key]
        metadata |= {
            "projected": "true",
            "init": f"projected by {self.kind}",
            "projector": f"{self.path or self.kind} ({self.digest()})",
            "source_backbone": prompt.metadata.get("backbone", self.source.backbone),
            "source_prompt": str(prompt.path or ""),
        }
        return Prompt(self.rows(prompt.embeddings.unsqueeze(0))[0], metadata)


def fit_closed_form(projector: Any, source: Backbone, target: Any) -> ProjectorFile:
    """Fit a closed-form projector between two backbones.

    Args:
        projector: a `ClosedForm`.
        source, target: backbones; projected prompts inherit the target's layout, attention and dtype.

    Raises:
        UserError: the vocabularies share too few tokens.
    """
    projector.fit(source, target)
    facts = {"objective": "none: fitted on shared tokens", **projector.facts}
    return ProjectorFile(projector, Side.of_backbone(source), Side.of_backbone(target), facts)


def _described(header: Header, path: Path) -> tuple[Projector, Side, Side]:
    """Return the projector that a header describes, on the meta device, and both sides."""
    facts = header.metadata
    version = facts.get("format_version", "")
    if "projector" not in facts or "source" not in facts or "target" not in facts:
        raise UserError(f"{path} is not a projector file: its metadata do not describe a projector")
    if version != str(FORMAT_VERSION):
        raise UserError(
            f"{path} has format_version {version[:20]!r}, but prompt_transfer {__version__} reads {FORMAT_VERSION}: "
            "install another prompt_transfer"
        )
    if facts["projector"] not in KINDS:
        raise UserError(f"{path} has the unknown projector {facts['projector'][:40]!r}; known are {', '.join(KINDS)}")
    try:
        sides = [Side(**json.loads(facts[key])) for key in ("source", "target")]
        projector = KINDS[facts["projector"]](**json.loads(facts.get("options", "{}")))
        for side in sides:
            _check_sizes(side)
        with torch.device("meta"):
            projector.allocate(sides[0].space, sides[1].space)
    except UserError:
        raise
    except Exception as error:  # JSON values may break the classes in many ways
        raise UserError(f"{path} is damaged: its metadata do not describe a projector ({error})"[:300]) from error
    return projector, sides[0], sides[1]


def _check_sizes(side: Side) -> None:
    length = 1 if side.prompt_length is None else side.prompt_length
    if not (isinstance(length, int) and 1 <= length <= MAX_PROMPT_LENGTH):
        raise ValueError(f"prompt_length {length}")
    if not (isinstance(side.hidden_size, int) and 1 <= side.hidden_size <= MAX_HIDDEN_SIZE):
        raise ValueError(f"hidden_size {side.hidden_size}")
    if not all(
        isinstance(value, str) for key, value in asdict(side).items() if key not in ("hidden_size", "prompt_length")
    ):
        raise ValueError("a name that is not a string")
