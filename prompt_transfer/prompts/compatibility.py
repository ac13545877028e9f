"""Check that a prompt fits a backbone, its layout and its attention mode."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.prompts.prompt import Prompt

UNKNOWN = "unknown"


class Backbone(Protocol):
    """The attributes of a backbone that prompts use; `FrozenBackbone` implements it."""

    @property
    def id(self) -> str: ...
    @property
    def family(self) -> Any: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def embedding_weight(self) -> Tensor: ...
    def keys_values_shape(self, length: int) -> tuple[int, int, int, int, int]: ...
    def keys_values(self, prompt: Tensor) -> Tensor: ...


def check(prompt: Prompt, backbone: Backbone, layout: Any, attention: str | None) -> None:
    """Check a prompt as described in `Prompt.check`."""
    problems, remedies = [], []
    trained_on = prompt.fact("backbone", "another backbone")
    family = getattr(backbone.family, "name", backbone.family)
    fingerprint, own_family = prompt.fact("fingerprint"), prompt.fact("family")
    known = UNKNOWN not in (fingerprint, backbone.fingerprint)
    measure, size, own_size = _sizes(prompt, backbone)
    if size != own_size:
        problems.append(
            f"it is {size} wide, the backbone {own_size}"
            if measure == "width"
            else f"it has {size}, the backbone {own_size}"
        )
    if own_family not in (UNKNOWN, family):
        problems.append(f"it is for the family {own_family}, the backbone is {family}")
    if known and fingerprint != backbone.fingerprint:
        problems.append(
            f"its backbone has the fingerprint {fingerprint[:12]}, this one {backbone.fingerprint[:12]} "
            "(tokenizer, configuration or embeddings differ, as they do in a float16 or quantized copy)"
        )
    if problems:
        project = "" if prompt.is_deep else ", or map the prompt with `prompt-transfer prompts project`"
        remedies.append(f"use {trained_on}{project}")
    layout_name = getattr(layout, "name", layout)
    causal = getattr(backbone.family, "kind", None) == "causal_lm"
    for key, here in (("layout", layout_name), ("attention", None if causal else attention)):
        own = prompt.fact(key)
        if here is not None and own not in (UNKNOWN, here):
            problems.append(f"it was trained with {key} {own}, not {here}")
            remedies.append(f"set {key} to {own} (--model.{key} {own})")
    if problems:
        raise UserError(
            f"{prompt.label}, trained on {trained_on}, does not fit {backbone.id}: {'; '.join(problems)}. "
            f"Remedy: {'; '.join(remedies)}"
        )
    if not known:
        stated = prompt.fact("backbone", "")
        unknown = "which backbone it was trained on"
        unknown = f"exactly {unknown} ({stated})" if stated else unknown
        warnings.warn(
            f"{prompt.label} does not say {unknown}; only its {measure} {size} was checked against {backbone.id}",
            stacklevel=1,  # a fixed location: Python then shows the warning once, however many checks there are
        )


def _sizes(prompt: Prompt, backbone: Backbone) -> tuple[str, str, str]:
    """Return a measure that prompt and backbone must share, and its values: the width, or the keys and values."""
    if not prompt.is_deep:
        return "width", str(prompt.values.shape[1]), str(backbone.hidden_size)
    own, needed = (
        f"{layers} layers of {heads} key/value heads of width {width}"
        for layers, _, _, heads, width in (prompt.values.shape, backbone.keys_values_shape(prompt.length))
    )
    return "shape of", own, needed
