"""One pass of prompts and texts through a stack of layers, with the prompt seeing the text or only itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prompt_transfer.backbones.attention import PromptStates
from prompt_transfer.backbones.families import Family
from prompt_transfer.backbones.last_layer import LastLayer, Positions, taken


@dataclass(frozen=True)
class Part:
    """A stretch of the input: embeddings [B, T, H], positions and token types [B, T] (-1: none), mask [B, T]."""

    embeddings: Tensor
    positions: Tensor
    token_types: Tensor
    mask: Tensor

    def joined(self, other: Part) -> Part:
        """This part, then the other."""
        return Part(
            torch.cat([self.embeddings, other.embeddings], dim=1),
            torch.cat([self.positions, other.positions], dim=1),
            torch.cat([self.token_types, other.token_types], dim=1),
            torch.cat([self.mask, other.mask], dim=1),
        )

    def between(self, start: int, end: int | None) -> Part:
        """The tokens from `start` to before `end`."""
        cut = slice(start, end)
        return Part(self.embeddings[:, cut], self.positions[:, cut], self.token_types[:, cut], self.mask[:, cut])


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

    def alone(self, part: Part, at: Positions | None = None) -> Tensor:
        """States [B, T, H] of a part by itself; with `at` only those there [B, S, H]."""
        return self._run(part, part.mask, at=at)

    def record(self, prompts: Part) -> tuple[Tensor, PromptStates]:
        """States [N, P, H] of prompts that see only themselves, and their keys and values.

        Where the text reads keys and values alone (all but sequence-to-sequence models), the states of all but the
        first row are left out, and with them the last layer's work.
        """
        states = PromptStates()
        at = slice(0, 1) if self.last is not None else None
        return self._run(prompts, None, states, at), states

    def behind(
        self,
        states: PromptStates,
        text: Part,
        prompt_length: int,
        prompt_ids: Tensor | None,
        at: Positions | None = None,
    ) -> Tensor:
        """States [B, T, H] of texts that see recorded prompts too; with `at` only those there [B, S, H]."""
        bias = self._position_bias(prompt_length, text.mask.shape[1])
        return self._run(text, self._masks(text, prompt_length), states.read(prompt_ids, bias), at)

    def _run(self, part: Part, mask: Any, states: PromptStates | None = None, at: Positions | None = None) -> Tensor:
        options: dict[str, Any] = {} if states is None else {"prompt_states": states}
        if self.family.position_ids:
            options["position_ids"] = part.positions
        if self.family.token_type_table is not None:
            options["token_type_ids"] = part.token_types
        if self.causal:
            options["use_cache"] = False
        if at is None or self.last is None:
            found = self.body(inputs_embeds=part.embeddings, attention_mask=mask, **options).last_hidden_state
            return found if at is None else taken(found, at, 1)
        with self.last.only(at):
            found = self.body(inputs_embeds=part.embeddings, attention_mask=mask, **options).last_hidden_state
            return self.last.result(found)

    def _masks(self, text: Part, prompt_length: int) -> Tensor | dict[str, Tensor]:
        """Who sees whom, bool [B, 1, T or 1, P + T]; one a kind of layer for models with sliding windows."""
        size, length = text.mask.shape
        seen = torch.cat([text.mask.new_ones(size, prompt_length), text.mask], dim=1).bool()[:, None, None, :]
        device = text.mask.device
        window = self.family.sliding(self.config)
        if not self.causal and window is None:
            # T5 adds its position bias to it, so it is as wide as that.
            return seen.expand(-1, -1, length, -1)
        keys = torch.arange(prompt_length + length, device=device)
        queries = keys[prompt_length:, None]
        full = seen & (keys <= queries) if self.causal else seen.expand(-1, -1, length, -1)
        if window is None:
            return full
        near = keys > queries - window if self.causal else (keys - queries).abs() <= window
        return {"full_attention": full, "sliding_attention": full & near}

    def _position_bias(self, prompt_length: int, length: int) -> Tensor | None:
        """T5's bias of texts behind a prompt over both, [1, heads, T, P + T]."""
        if self.family.position_ids:
            return None
        first: Any = self.body.get_submodule("block.0.layer.0.SelfAttention")
        return first.compute_bias(length, prompt_length + length, past_seen_tokens=prompt_length)
