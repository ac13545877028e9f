"""Full fine-tuning of a backbone's weights: a copy with gradients, saved as a Hugging Face model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.utils.files import atomic_folder

# Where `decoder_attention.AttentionSubstitute` keeps the original module.
_INSIDE = ".whole."


def original_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names that they have without our substitutes for T5's attention."""
    return {name.replace(_INSIDE, "."): value for name, value in state.items()}


def unfreeze_copy(backbone: FrozenBackbone) -> None:
    """Replace every weight by a copy with a gradient; tied weights stay tied."""
    for parameter in backbone.model.parameters():
        # The loaded tensors may be views of the checkpoint file.
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)


def save_model(backbone: FrozenBackbone, folder: Path) -> None:
    """Write model and tokenizer as a folder that every backbone option accepts; an existing folder stays."""
    with atomic_folder(folder) as temporary:
        backbone.model.save_pretrained(temporary, state_dict=original_names(backbone.model.state_dict()))
        backbone.tokenizer.save_pretrained(temporary)
