"""LoRA adapters on a backbone, made and saved by PEFT (Hu et al. 2021)."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from prompt_transfer.backbones.family import Family
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.lora_options import LoraOptions as LoraOptions
from prompt_transfer.backbones.trainable import original_names
from prompt_transfer.utils.errors import UserError, install_command
from prompt_transfer.utils.files import atomic_folder

_LLAMA = ("q_proj", "v_proj")
# Families that PEFT has no default for: query and value projections, as in its own defaults.
TARGETS: dict[str, tuple[str, ...]] = {
    "camembert": ("query", "value"),
    "albert": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "mpnet": ("q", "v"),
    "modernbert": ("Wqkv",),
    "phi3": ("qkv_proj",),
    "olmo2": _LLAMA,
    "smollm3": _LLAMA,
    "granite": _LLAMA,
}


def require_peft() -> None:
    """Raise UserError if PEFT is not installed."""
    if find_spec("peft") is None:
        raise UserError(f"lora needs the package peft: {install_command('compare')}")


def target_modules(family: Family, options: LoraOptions) -> str | list[str]:
    """Return the names of the layers to adapt, as PEFT takes them.

    Raises:
        UserError: the family has no default.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    if options.targets is not None:
        names = [name.strip() for name in options.targets.split(",") if name.strip()]
        return "all-linear" if names == ["all-linear"] else names
    found = TARGETS.get(family.name) or DEFAULTS.get(family.name)
    if found is None:
        raise UserError(
            f"no default layers for LoRA in a {family.name} model: name its linear layers with --lora.targets, or give "
            "--lora.targets all-linear"
        )
    return list(found)


class LoraAdapter:
    """LoRA layers in the model of a backbone; only they have gradients.

    The first update is zero, so the outputs do not change until the adapter is trained.

    Args:
        backbone: changed in place.
        options: rank, scale and layers.
        seed: seed of the initial values.

    Raises:
        UserError: PEFT is missing, or the model has no such layers.
    """

    def __init__(self, backbone: FrozenBackbone, options: LoraOptions, seed: int) -> None:
        require_peft()
        from peft import LoraConfig, get_peft_model

        names = target_modules(backbone.family, options)
        # GPT-2's linear layer stores its weights as [in, out].
        transposed = any(type(module).__name__ == "Conv1D" for module in backbone.model.modules())
        config = LoraConfig(
            r=options.rank, lora_alpha=options.alpha, target_modules=names, lora_dropout=0.0, bias="none",  # type: ignore[arg-type]
            fan_in_fan_out=transposed,
        )  # fmt: skip
        try:
            with torch.random.fork_rng(), warnings.catch_warnings():
                # PEFT 0.21 reads this attribute, which transformers 5 deprecates.
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                torch.manual_seed(seed)
                self.model: Any = get_peft_model(backbone.model, config)
        except ValueError as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"--lora.targets do not fit {backbone.id}: {reason}") from error

    def save(self, folder: Path) -> None:
        """Write the adapter as PEFT does, for `PeftModel.from_pretrained`; an existing folder stays."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        config = self.model.peft_config["default"]
        state = original_names(get_peft_model_state_dict(self.model))
        with atomic_folder(folder) as temporary:
            config.inference_mode, before = True, config.inference_mode
            config.save_pretrained(str(temporary))
            config.inference_mode = before
            weights = {name: value.detach().cpu().contiguous() for name, value in state.items()}
            save_file(weights, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
