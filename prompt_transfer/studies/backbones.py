"""The backbone of a study: as its prompts want it, on the device that computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.layouts import is_causal
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.entries import check_all, common_value
from prompt_transfer.utils.errors import UserError


def backbone_options(
    prompts: Mapping[str, Prompt], attention: str | None = None, layout: str | None = None, dtype: str | None = None
) -> dict[str, Any]:
    """Options of the FrozenBackbone that all prompts were trained with; what is given wins.

    Raises:
        UserError: the prompts differ.
    """
    found = dict(prompts)
    return {
        "attention": _attention(found, attention),
        "layout": common_value(found, "layout", layout),
        "dtype": common_value(found, "dtype", dtype) or "float32",
        "head": common_value(found, "head") or "lm",
        "revision": common_value(found, "revision"),
    }


def _attention(prompts: dict[str, Prompt], given: str | None) -> str:
    try:
        return common_value(prompts, "attention", given) or "full"
    except UserError:
        # For causal models both are one function, and a folder may hold both.
        if all(is_causal(prompt.metadata.get("layout")) for prompt in prompts.values()):
            return "full"
        raise


def load_backbone(
    name: str,
    prompts: Mapping[str, Prompt],
    attention: str | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    accelerator: str = "auto",
    rank: int = 0,
) -> FrozenBackbone:
    """The backbone `name` as the prompts want it, each of them checked against it.

    Raises:
        UserError: it cannot be loaded, or a prompt does not fit.
    """
    device = choose_device(accelerator, rank)
    backbone = FrozenBackbone(name, **backbone_options(prompts, attention, layout, dtype))
    check_all(dict(prompts), backbone)
    return backbone.to(device)


def check_accelerator(name: str) -> None:
    """A UserError where there can be no such accelerator."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--accelerator is {name!r}: choose auto, cpu or cuda")


def choose_device(accelerator: str, rank: int = 0) -> torch.device:
    """Where process `rank` computes: auto, cpu or cuda."""
    check_accelerator(accelerator)
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--accelerator cuda: there is no such device here; use cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())


def describe_backbone(backbone: FrozenBackbone) -> dict[str, str]:
    """What decides all that is computed with a backbone, beside prompt and task."""
    return {
        "backbone": backbone.fingerprint,
        "layout": backbone.layout.name,
        "attention": backbone.attention,
        "dtype": backbone.dtype_name,
        "head": backbone.head,
    }
