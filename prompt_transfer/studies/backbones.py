"""Loading a study's backbone with the options of its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.layouts import is_causal
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.data import check_accelerator
from prompt_transfer.studies.entries import check_all, common_method, common_value
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.fields import dtype_name


def backbone_options(
    prompts: Mapping[str, Prompt], attention: str | None = None, layout: str | None = None, dtype: str | None = None
) -> dict[str, Any]:
    """Return the FrozenBackbone options shared by all prompts; explicit arguments override them.

    Raises:
        UserError: the prompts differ in an option.
    """
    found = dict(prompts)
    dtype = None if dtype is None else dtype_name(dtype)
    common_method(found)
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
        # For causal models both modes compute the same function, so they may be mixed.
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
    """Load the backbone `name` with the options of the prompts and check every prompt against it.

    Raises:
        UserError: the backbone cannot be loaded, or a prompt does not fit it.
    """
    device = choose_device(accelerator, rank)
    backbone = FrozenBackbone(name, **backbone_options(prompts, attention, layout, dtype))
    check_all(dict(prompts), backbone)
    return backbone.to(device)


def choose_device(accelerator: str, rank: int = 0) -> torch.device:
    """Return the device of process `rank` for the accelerator auto, cpu or cuda."""
    check_accelerator(accelerator)
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--accelerator cuda: no CUDA device is available; use cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())


def describe_backbone(backbone: FrozenBackbone) -> dict[str, str]:
    """Return the backbone settings that affect results, in addition to prompt and task."""
    return {
        "backbone": backbone.fingerprint,
        "layout": backbone.layout.name,
        "attention": backbone.attention,
        "dtype": backbone.dtype_name,
        "head": backbone.head,
    }
