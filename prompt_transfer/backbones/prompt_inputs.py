"""The prompts of a batch: embeddings [P, H] in front of the text, or keys and values before every layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prompt_transfer.backbones.attention import PromptStates
from prompt_transfer.backbones.kernels import frozen_linear

# Hidden states and key/value cache of prompts that see only themselves (`Stack.record`). A deep prompt is such a cache
# and has no hidden states.
Recorded = tuple[Tensor | None, PromptStates]


@dataclass(frozen=True)
class PromptBank:
    """N prompts that are used for many batches; made by `FrozenBackbone.record`.

    Attributes:
        rows: embeddings [N, P, H], or deep prompts [N, L, 2, P, K, D], in the backbone's dtype.
        recorded: hidden states and key/value cache of prompts that see only themselves, else None.
    """

    rows: Tensor
    recorded: Recorded | None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch.

    Attributes:
        embeddings: [N, P, H] in the backbone's dtype; None for deep prompts.
        ids: [B], prompt of each example; None if all examples have the only prompt.
        recorded: as in `PromptBank`; always there for deep prompts.
    """

    embeddings: Tensor | None
    ids: Tensor | None
    recorded: Recorded | None = None

    @property
    def deep(self) -> bool:
        """Whether the prompts are keys and values without embeddings."""
        return self.embeddings is None

    @property
    def length(self) -> int:
        """P."""
        if self.embeddings is not None:
            return self.embeddings.shape[1]
        assert self.recorded is not None
        return self.recorded[1].layers[0][0].shape[2]

    def per_example(self, count: int) -> Tensor:
        """Return the embeddings of the prompt of each of `count` examples, [B, P, H]."""
        assert self.embeddings is not None
        return self.embeddings.expand(count, -1, -1) if self.ids is None else self.embeddings[self.ids]

    def shared_rows(
        self, span: tuple[int, int], batch: dict[str, Tensor], examples: int
    ) -> frozen_linear.SharedRows | None:
        """Return the positions that the examples share, for prompts at `span`; None if few examples share a prompt."""
        assert self.embeddings is not None
        few = examples < 2 * len(self.embeddings)
        if not self.length or few or not frozen_linear.is_supported(self.embeddings):
            return None
        return frozen_linear.SharedRows(*span, self.ids, batch.get("text_ids"))

    def repeat(self, times: int) -> Prompts:
        """Return the prompts of a batch that repeats each example, as beam search does."""
        ids = None if self.ids is None else self.ids.repeat_interleave(times)
        return Prompts(self.embeddings, ids, self.recorded)

    def of_examples(self, rows: Tensor) -> Prompts:
        """Return the prompts of a batch of some examples only."""
        return Prompts(self.embeddings, None if self.ids is None else self.ids[rows], self.recorded)


def per_example_states(states: Tensor, prompts: Prompts, count: int) -> Tensor:
    """Return the prompts' hidden states [N, P, H] for each of `count` examples, [B, P, H]."""
    return Prompts(states, prompts.ids).per_example(count)


def expand_texts(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace `text_ids` by each example's own text: generation needs token ids per example."""
    if "text_ids" not in batch:
        return batch
    texts = {name: batch[name][batch["text_ids"]] for name in ("input_ids", "attention_mask")}
    return {name: value for name, value in batch.items() if name != "text_ids"} | texts
