"""Forward passes of prompts and texts through a model's body, together or from recorded prompts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prompt_transfer.backbones import packing
from prompt_transfer.backbones.attention import FixedPositionBias, PromptStates
from prompt_transfer.backbones.family import Family
from prompt_transfer.backbones.kernels.frozen_linear import SharedRows, sharing_rows
from prompt_transfer.backbones.last_layer import LastLayer, Positions, gather_positions, has_hooks


@dataclass(frozen=True)
class InputPart:
    """A part of the input.

    Attributes:
        embeddings: [B, T, H].
        positions, token_types: [B, T], -1 for tokens without one.
        mask: [B, T], 1 for tokens.
    """

    embeddings: Tensor
    positions: Tensor
    token_types: Tensor
    mask: Tensor

    def joined(self, other: InputPart) -> InputPart:
        """Return this part followed by the other."""
        return InputPart(
            torch.cat([self.embeddings, other.embeddings], dim=1),
            torch.cat([self.positions, other.positions], dim=1),
            torch.cat([self.token_types, other.token_types], dim=1),
            torch.cat([self.mask, other.mask], dim=1),
        )

    def between(self, start: int, end: int | None) -> InputPart:
        """Return the tokens `start` (inclusive) to `end` (exclusive)."""
        cut = slice(start, end)
        return InputPart(self.embeddings[:, cut], self.positions[:, cut], self.token_types[:, cut], self.mask[:, cut])


class Stack:
    """The body of a model, run as its family describes.

    Args:
        model: a model with its LM head.
        family: its family.
    """

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.family, self.config = family, model.config
        self.body: nn.Module = model.get_submodule(family.body)
        self.causal = family.kind == "causal_lm"
        self.last = LastLayer(model, family) if family.layer is not None else None
        # Compiled layers (`layer_calls.py`) cannot end row sharing, so it stays off.
        self.compiled = False

    def run_alone(self, part: InputPart, at: Positions | None = None, shared: SharedRows | None = None) -> Tensor:
        """Compute hidden states of the whole input.

        Args:
            part: the whole input.
            at: positions to return; None for all.
            shared: rows of the input that are equal in many examples, if any.

        Returns:
            [B, T, H], or [B, S, H] with `at`.
        """
        masks, bias = self._attention_masks(part.mask, 0)
        with sharing_rows(None if shared is None or self._may_differ() else shared):
            return self._run(part, masks, None if bias is None else FixedPositionBias(bias), at)

    def _may_differ(self) -> bool:
        """Return whether shared rows may stop being equal before the first attention (dropout, hooks, compilation)."""
        return self.compiled or self.body.training or has_hooks(self.body.modules())

    def record(self, prompts: InputPart) -> tuple[Tensor, PromptStates]:
        """Compute hidden states and key/value cache of prompts that attend only to themselves.

        Returns:
            States [N, P, H], and the cache. If the last layer can be restricted (`LastLayer`), the text needs only the
            cache, and the states are those of the first prompt token: [N, 1, H].
        """
        states = PromptStates()
        at = slice(0, 1) if self.last is not None else None
        return self._run(prompts, None, states, at), states

    def run_after_prompt(
        self,
        states: PromptStates,
        text: InputPart,
        prompt_length: int,
        prompt_ids: Tensor | None,
        at: Positions | None = None,
    ) -> Tensor:
        """Compute hidden states of texts that follow recorded prompts.

        Args:
            states: the prompts' key/value cache.
            text: the texts.
            prompt_length: P.
            prompt_ids: [B], prompt of each example; None if there is only one prompt.
            at: positions to return; None for all.

        Returns:
            [B, T, H], or [B, S, H] with `at`.
        """
        masks, bias = self._attention_masks(text.mask, prompt_length)
        return self._run(text, masks, states.read(prompt_ids, bias), at)

    def packs(self, x: Tensor) -> bool:
        """Return whether batches with embeddings like `x` are run packed, by `run_packed`."""
        plain = self.last is None or self.family.plain or self.family.sliding(self.config) is not None
        if not self.causal or plain or self.compiled or self.body.training or not packing.is_supported(x):
            return False
        # Hooks read states by example, and layers that are sharded gather for recorded prompts.
        return not has_hooks(self.body.modules())

    def run_packed(
        self, prompts: InputPart | PromptStates | None, text: InputPart, prompt_ids: Tensor | None, at: Tensor
    ) -> Tensor:
        """Compute hidden states of a causal model's texts in one pass with their prompts.

        Args:
            prompts: the prompts [N, P, H], or their key/value cache; None for texts without a prompt.
            text: the texts [B, T, H].
            prompt_ids: [B], prompt of each example; None if there is only one prompt.
            at: [B, S], positions to return.

        Returns:
            [B, S, H]
        """
        part, recorded, count, length = None, None, 0, 0
        if isinstance(prompts, InputPart):
            part, (count, length) = prompts, prompts.mask.shape
        elif prompts is not None:
            recorded, length = prompts.read(prompt_ids), prompts.length
        rows = packing.PackedRows(text.mask, count, length)
        keys = torch.arange(length + text.mask.shape[1])
        causal = (keys <= keys[length:, None])[None, None]
        states = packing.PackedStates(rows, causal, at, prompt_ids, recorded)
        packed = InputPart(
            *(
                rows.pack(getattr(text, field.name), None if part is None else getattr(part, field.name))
                for field in fields(InputPart)
            )
        )
        # transformers builds no mask if it is given one with four dimensions; `states` has its own.
        unused = packed.mask.bool()[:, None, None, :]
        return self._run(packed, unused, states, rows.scored(at)).view(*at.shape, -1)

    def _run(self, part: InputPart, masks: Any, states: Any, at: Positions | None) -> Tensor:
        options: dict[str, Any] = {} if states is None else {"prompt_states": states}
        if self.family.position_ids:
            options["position_ids"] = part.positions
        if self.family.token_type_table is not None:
            options["token_type_ids"] = part.token_types
        if self.causal:
            options["use_cache"] = False
        if at is None or self.last is None:
            hidden = self.body(inputs_embeds=part.embeddings, attention_mask=masks, **options).last_hidden_state
            return hidden if at is None else gather_positions(hidden, at, 1)
        with self.last.only(at):
            hidden = self.body(inputs_embeds=part.embeddings, attention_mask=masks, **options).last_hidden_state
            return self.last.result(hidden)

    def _attention_masks(
        self, mask: Tensor, prompt_length: int
    ) -> tuple[Tensor | dict[str, Tensor | None] | None, Tensor | None]:
        """Build the attention masks of texts that follow prompts, and T5's position bias.

        Args:
            mask: [B, T], 1 for tokens of the text.
            prompt_length: P.

        Returns:
            The mask, bool [B or 1, 1, T or 1, P + T]: None without padding, since the fastest kernels take no mask; a
            dictionary with one per kind of layer for models with sliding windows. And T5's bias [B or 1, heads, T,
            P + T], with the mask already applied, once for all layers; None for other models.
        """
        length, device = mask.shape[1], mask.device
        seen = self.visible(mask, prompt_length)
        if not self.family.position_ids:
            first: Any = self.body.get_submodule("block.0.layer.0.SelfAttention")
            bias = first.compute_bias(length, prompt_length + length, past_seen_tokens=prompt_length)
            lowest = torch.finfo(bias.dtype).min
            return None, (bias if seen is None else torch.where(seen, bias, lowest)).contiguous()
        window = self.family.sliding(self.config)
        if window is None and (not self.causal or prompt_length == 0):
            # Without a prefix the kernel applies the causal mask.
            return seen, None
        keys = torch.arange(prompt_length + length, device=device)
        queries = keys[prompt_length:, None]
        if not self.causal:
            assert window is not None
            near = ((keys - queries).abs() <= window)[None, None]
            return {"full_attention": seen, "sliding_attention": near if seen is None else seen & near}, None
        full = (keys <= queries)[None, None]
        if window is None:
            return full, None
        near = full & (keys > queries - window)
        return near if self.family.one_mask else {"full_attention": full, "sliding_attention": near}, None

    def visible(self, mask: Tensor, prompt_length: int = 0) -> Tensor | None:
        """Return the padding mask of prompt and text, bool [B, 1, 1, P + T]; None if no mask is needed."""
        # Texts of causal models are padded on the right, and no token attends to later ones.
        if self.causal:
            return None
        # On a GPU the check would synchronize with the device.
        if mask.device.type == "cpu" and bool(mask.all()):
            return None
        return torch.cat([mask.new_ones(len(mask), prompt_length), mask], dim=1).bool()[:, None, None, :]
