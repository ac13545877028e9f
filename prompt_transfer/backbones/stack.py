"""One pass of prompts and texts through a stack of layers, with the prompt seeing the text or only itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prompt_transfer.backbones.attention import FixedPositionBias, LayerStates, PromptStates
from prompt_transfer.backbones.family import Family
from prompt_transfer.backbones.kernels.frozen_linear import SharedRows, sharing_rows
from prompt_transfer.backbones.last_layer import LastLayer, Positions, gather_positions, has_hooks


@dataclass(frozen=True)
class InputPart:
    """A stretch of the input: embeddings [B, T, H], positions and token types [B, T] (-1: none), mask [B, T]."""

    embeddings: Tensor
    positions: Tensor
    token_types: Tensor
    mask: Tensor

    def joined(self, other: InputPart) -> InputPart:
        """This part, then the other."""
        return InputPart(
            torch.cat([self.embeddings, other.embeddings], dim=1),
            torch.cat([self.positions, other.positions], dim=1),
            torch.cat([self.token_types, other.token_types], dim=1),
            torch.cat([self.mask, other.mask], dim=1),
        )

    def between(self, start: int, end: int | None) -> InputPart:
        """The tokens from `start` to before `end`."""
        cut = slice(start, end)
        return InputPart(self.embeddings[:, cut], self.positions[:, cut], self.token_types[:, cut], self.mask[:, cut])


class Stack:
    """The body of a model as its family's row describes it.

    Args:
        model: with its LM head.
        family: its row.
    """

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.family, self.config = family, model.config
        self.body: nn.Module = model.get_submodule(family.body)
        self.causal = family.kind == "causal_lm"
        self.last = LastLayer(model, family) if family.layer is not None else None
        # Compiled layers (`layer_calls.py`) do not tell when rows are alike no longer.
        self.compiled = False

    def run_alone(self, part: InputPart, at: Positions | None = None, same: SharedRows | None = None) -> Tensor:
        """States [B, T, H] of a part by itself; with `at` only those there [B, S, H].

        Args:
            part: the whole input.
            at: see above.
            same: rows that many examples share, if there are any.
        """
        masks, bias = self._attention_masks(part.mask, 0)
        with sharing_rows(None if same is None or self._may_differ() else same):
            return self._run(part, masks, None if bias is None else FixedPositionBias(bias), at)

    def _may_differ(self) -> bool:
        """Whether rows that enter alike may differ in front of the first attention: by dropout, by a hook."""
        return self.compiled or self.body.training or has_hooks(self.body.modules())

    def record(self, prompts: InputPart) -> tuple[Tensor, PromptStates]:
        """States [N, P, H] of prompts that see only themselves, and their keys and values.

        Where the text reads keys and values alone (all but sequence-to-sequence models), the states of all but the
        first row are left out, and with them the last layer's work.
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
        """States [B, T, H] of texts that see recorded prompts too; with `at` only those there [B, S, H]."""
        masks, bias = self._attention_masks(text.mask, prompt_length)
        return self._run(text, masks, states.read(prompt_ids, bias), at)

    def _run(self, part: InputPart, masks: Any, states: LayerStates | None, at: Positions | None) -> Tensor:
        options: dict[str, Any] = {} if states is None else {"prompt_states": states}
        if self.family.position_ids:
            options["position_ids"] = part.positions
        if self.family.token_type_table is not None:
            options["token_type_ids"] = part.token_types
        if self.causal:
            options["use_cache"] = False
        if at is None or self.last is None:
            found = self.body(inputs_embeds=part.embeddings, attention_mask=masks, **options).last_hidden_state
            return found if at is None else gather_positions(found, at, 1)
        with self.last.only(at):
            found = self.body(inputs_embeds=part.embeddings, attention_mask=masks, **options).last_hidden_state
            return self.last.result(found)

    def _attention_masks(
        self, mask: Tensor, prompt_length: int
    ) -> tuple[Tensor | dict[str, Tensor | None] | None, Tensor | None]:
        """Who sees whom among texts [B, T] behind prompts: masks, and T5's bias over prompt and text.

        A mask is bool [B or 1, 1, T or 1, P + T], or None where all are seen: the fastest kernels take none. There is
        one a kind of layer for models with sliding windows. T5's is part of its bias [B or 1, heads, T, P + T]: its
        layers would put the two together each for itself.
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
            # A causal model's own rule needs no mask where nothing stands before.
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
        """Which of prompt and text are no padding, bool [B, 1, 1, P + T]; None where nobody has to be told."""
        # The padding of a causal model stands behind all that is read: its text never sees it.
        if self.causal:
            return None
        # Elsewhere than on a CPU the host would have to wait for the answer.
        if mask.device.type == "cpu" and bool(mask.all()):
            return None
        return torch.cat([mask.new_ones(len(mask), prompt_length), mask], dim=1).bool()[:, None, None, :]
