"""LightningModules that train weights instead of a prompt: LoRA and full fine-tuning, as baselines of prompts.

They score the same label words at the same answer slot as `PromptTuning`, in the layout without a prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.backbones.lora import LoraAdapter, LoraOptions, require_peft
from prompt_transfer.backbones.trainable import save_model, unfreeze_copy
from prompt_transfer.modules.trained import TrainedModule


class WeightTuning(TrainedModule):
    """Base of modules that train weights of their own copy of a backbone, without a prompt.

    Args:
        backbone: as in `TrainedModule`; its files stay as they are.
        prompt_length: positions that the tokenizer reserves, so that texts have the same tokens as with a prompt.
        options: those of `TrainedModule`.
    """

    # With AdamW and a linear schedule.
    default_rate = 1e-3

    def __init__(self, backbone: str = "roberta-nano", prompt_length: int = 20, **options: Any) -> None:
        super().__init__(backbone, **options)
        self.prompt_length = prompt_length
        self.save_hyperparameters({"prompt_length": prompt_length})
        self._built = False

    @property
    def default_learning_rate(self) -> float:
        return self.default_rate

    @property
    def is_built(self) -> bool:
        return self._built

    def begin(self, seed: int) -> None:
        """Give the trained weights their gradients."""
        self.build(seed)
        self._built = True
        self.backbone.to(self.device)

    def build(self, seed: int) -> None:
        """Add or choose the trained weights.

        Args:
            seed: seed of new weights.
        """
        raise NotImplementedError

    def restore(self, state: dict[str, Tensor]) -> None:
        self.begin(0)

    def current_prompt(self) -> Tensor:
        """Return a prompt of no tokens, [0, H]."""
        return torch.empty(0, self.backbone.hidden_size, device=self.device)

    def trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.backbone.model.parameters() if parameter.requires_grad]

    def summed_losses(self, batch: dict[str, Tensor], members: list[int]) -> Tensor:
        return self.objective.losses(self.current_prompt(), batch).sum()[None]

    def broken_prompts(self) -> list[int]:
        """Return [0] if a trained weight contains NaN or Inf, else []."""
        finite = torch.stack([torch.isfinite(parameter.detach()).all() for parameter in self.trained()])
        return [] if bool(finite.all()) else [0]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the trained weights only."""
        # Without duplicates: tied weights have one name.
        return {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}

    def save(self, folder: Path) -> None:
        """Write the trained weights to a new folder."""
        raise NotImplementedError


class LoraTuning(WeightTuning):
    """LoRA adapters on a frozen backbone.

    Args:
        backbone, prompt_length, options: see `WeightTuning`.
        lora: rank, scale and layers of the adapters.
    """

    trained_name = "adapter"
    adapter: LoraAdapter

    def __init__(
        self,
        backbone: str = "roberta-nano",
        prompt_length: int = 20,
        lora: LoraOptions | None = None,
        **options: Any,
    ) -> None:
        require_peft()
        super().__init__(backbone, prompt_length, **options)
        self.lora = lora or LoraOptions()
        self.save_hyperparameters(
            {"lora_rank": self.lora.rank, "lora_alpha": self.lora.alpha, "lora_targets": self.lora.targets or ""}
        )

    def build(self, seed: int) -> None:
        self.adapter = LoraAdapter(self.backbone, self.lora, seed)

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's format."""
        self.adapter.save(folder)


class FineTuning(WeightTuning):
    """Full fine-tuning of a float32 copy of a backbone.

    Args:
        backbone, prompt_length, options: see `WeightTuning`; the dtype is always float32, since bf16 weights would lose
            small updates.
    """

    trained_name = "model"
    default_rate = 1e-4

    def __init__(self, backbone: str = "roberta-nano", prompt_length: int = 20, **options: Any) -> None:
        super().__init__(backbone, prompt_length, **{**options, "dtype": "float32"})

    def build(self, seed: int) -> None:
        unfreeze_copy(self.backbone)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer as a folder that any backbone option accepts."""
        save_model(self.backbone, folder)
