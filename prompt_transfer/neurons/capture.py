"""Capture of neurons at the answer slot or at prompt tokens, summed over examples on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from prompt_transfer.backbones.answers import AnswerSlot
from prompt_transfer.backbones.deep import prompt_length
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.neurons.hooks import FfnHooks, Visit
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.nonfinite import FirstNonFinite

# Maximum positions in one forward pass over prompts without input text: 13 prompts of 100 tokens have 1,326.
MAX_POSITIONS = 32_768


class NeuronCapture(FfnHooks):
    """Context that sums the neurons at the answer slots of every forward pass, per prompt.

    The hooked modules are those of the family (`backbones/families.py`): the FFN of each encoder layer of a masked LM,
    of each layer of a causal LM, and of each decoder layer of a seq2seq LM at its first step. Sums stay on the device
    until they are requested.

    | name | content |
    |---|---|
    | `activations` | neurons: outputs of the activation; for gated FFNs the product that enters the second layer |
    | `before` | inputs of the activation function |
    | `gate` | outputs of the activation function, for gated FFNs |
    | `active` | 1 if a neuron is > 0, else 0 |

    Shape letters: B batch, L layers, F neurons per layer, N prompts.

    Args:
        backbone: the backbone to observe.
        prompts: N, the number of prompts that the batches index with `prompt_ids`; 1 if they have none.
        every_kind: also capture `before` and `gate`, if the activation function is a known module of the backbone.
    """

    def __init__(self, backbone: FrozenBackbone, prompts: int = 1, every_kind: bool = True) -> None:
        super().__init__(backbone)
        self.prompts, self.every_kind = prompts, every_kind
        self.layers = len(backbone.ffn_sites())
        self._sums: dict[str, Tensor] = {}
        self._counts: Tensor | None = None
        # The watcher records passes, counted from 0.
        self._watched, self._passes = FirstNonFinite(), 0

    def visits(self) -> dict[str, Visit]:
        names = ["activations"]
        if self.every_kind and self.backbone.family.shows_activation:
            names += ["before", *(["gate"] if self.backbone.is_gated else [])]
        return {name: self._adder(name) for name in names}

    def _adder(self, name: str) -> Visit:
        def add(layer: int, neurons: Tensor, slot: AnswerSlot | None) -> None:
            # Without an answer slot, the pass computes only the prompt or generates text.
            if slot is None:
                return
            values = neurons.detach()[torch.arange(len(slot.places), device=neurons.device), slot.places].float()
            owners = torch.zeros_like(slot.places) if slot.prompt_ids is None else slot.prompt_ids
            self._add(name, layer, owners, values)
            if name == "activations":
                self._add("active", layer, owners, (values > 0).float())
                if layer == 0:
                    self._passes += 1
                    self._count(owners)
                places = torch.full_like(owners, self._passes - 1)
                self._watched.observe_rows("neurons", values.sum(dim=-1), places)

        return add

    def _add(self, name: str, layer: int, owners: Tensor, values: Tensor) -> None:
        if name not in self._sums:
            self._sums[name] = values.new_zeros(self.prompts, self.layers, values.shape[-1])
        self._sums[name][:, layer].index_add_(0, owners, values)

    def _count(self, owners: Tensor) -> None:
        if self._counts is None:
            self._counts = torch.zeros(self.prompts, device=owners.device)
        self._counts += torch.bincount(owners, minlength=self.prompts)

    @property
    def counts(self) -> Tensor:
        """Number of examples per prompt so far, `[N]`."""
        return torch.zeros(self.prompts) if self._counts is None else self._counts

    def means(self) -> dict[str, Tensor]:
        """Return name -> mean over each prompt's examples, float32 `[N, L, F]` on the CPU; NaN without examples.

        The mean of `active` is the fraction of examples in which a neuron is active.

        Raises:
            UserError: a neuron was NaN or Inf.
        """
        self.refuse_broken()
        counts = self.counts[:, None, None]
        return {name: (total / counts.to(total.device)).cpu() for name, total in self._sums.items()}

    def broken(self) -> tuple[int, int | None] | None:
        """Return the first prompt with a non-finite neuron and its pass in this process (from 0), or None.

        The pass is None if it happened in another process.
        """
        if not self._sums:
            return None
        fine = torch.stack([torch.isfinite(total).all(dim=-1).all(dim=-1) for total in self._sums.values()])
        wrong = (~fine.all(dim=0)).nonzero().flatten().tolist()
        return (wrong[0], self._watched.found().get(0, ("", None))[1]) if wrong else None

    def refuse_broken(self, names: Sequence[str] | None = None, where: Callable[[int], str] | None = None) -> None:
        """Raise UserError if a neuron was non-finite.

        Args:
            names: names of the prompts for the message; None uses their numbers.
            where: maps a pass to the name of its inputs.
        """
        found = self.broken()
        if found is None:
            return
        prompt, place = found
        first = "" if place is None else f", first in {where(place) if where else f'batch {place} (from 0)'}"
        raise UserError(
            f"neurons of prompt {names[prompt] if names else prompt} are NaN or Inf{first}: remove the prompt, or try "
            f"--dtype float32 (it is {self.backbone.dtype_name})"
        )

    def reset(self) -> Self:
        """Clear all sums and return itself."""
        self._watched, self._passes = FirstNonFinite(), 0
        self._sums, self._counts = {}, None
        return self

    def all_reduce(self) -> None:
        """Add the sums of all processes with one all-reduce; does nothing in a single process."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return
        if not self._sums:
            self._sums = self._zeros()
        names = sorted(self._sums)
        parts = [*(self._sums[name] for name in names), self.counts.to(self._sums[names[0]].device)]
        flat = torch.cat([part.reshape(-1) for part in parts])
        torch.distributed.all_reduce(flat)
        *totals, self._counts = flat.split([part.numel() for part in parts])
        self._sums = {name: total.view_as(self._sums[name]) for name, total in zip(names, totals, strict=True)}

    def _zeros(self) -> dict[str, Tensor]:
        """Return the zero sums of a process without examples; a forward pass determines their sizes."""
        rows = torch.zeros(1, self.backbone.hidden_size, device=self.backbone.device)
        found = capture_prompts(self.backbone, [rows])
        names = [*(name for name in found if name in self.visits()), "active"]
        shape = (self.prompts, *found["activations"].shape[1:])
        return {name: torch.zeros(shape, device=rows.device) for name in names}


@torch.inference_mode()
def capture_prompts(
    backbone: FrozenBackbone, prompts: Sequence[Tensor], names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Capture the neurons of prompts without input text, as Su et al. do.

    Prompts of equal length form one batch, split only above 32,768 positions; each prompt is followed by the tokens of
    an empty text (`TextEncoder.without_text`). Unlike the code of Su et al., which pads these inputs to a fixed length
    and lets T5 attend to the padding, there is no padding here.

    Args:
        backbone: the backbone to observe.
        prompts: N prompts `[P, H]` or deep prompts `[L, 2, P, kv_heads, head_dim]`.
        names: names of the prompts, for messages.

    Returns:
        `activations`, `before` and, for gated FFNs, `gate`: name -> float32 `[N, L, F]` on the CPU.

    Raises:
        UserError: a neuron was NaN or Inf.
    """
    device = backbone.device
    lengths = [prompt_length(prompt) for prompt in prompts]
    found: dict[str, list[Tensor]] = {}
    order: list[int] = []
    for length in dict.fromkeys(lengths):
        mine = [number for number, own in enumerate(lengths) if own == length]
        encoder = backbone.encoder(length)
        ids = torch.tensor(encoder.without_text(), device=device)
        size = max(1, MAX_POSITIONS // (encoder.extra_positions + len(ids)))
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            batch = {
                "input_ids": ids.expand(len(part), -1),
                "attention_mask": torch.ones_like(ids).expand(len(part), -1),
                "prompt_ids": torch.arange(len(part), device=device),
            }
            with NeuronCapture(backbone, len(part)) as capture:
                backbone.answer_states(torch.stack([prompts[number] for number in part]).to(device), batch)
            capture.refuse_broken([names[number] for number in part] if names else None, lambda _: "their own batch")
            for name, values in capture.means().items():
                found.setdefault(name, []).append(values)
            order += part
    places = torch.tensor(order).argsort()
    return {name: torch.cat(parts)[places] for name, parts in found.items() if name != "active"}


class PromptRows(FfnHooks):
    """Context that passes each layer's neurons at the prompt tokens, or at the answer slot, to a function.

    Args:
        backbone: the backbone to observe.
        visit: called with the layer and its neurons `[B, P', F]`. P' is 1, the answer slot, if `rows` is false or
            prompt tokens do not attend to the text (`shared` attention, causal and seq2seq models).
        rows: observe the prompt tokens if they attend to the text.
    """

    def __init__(self, backbone: FrozenBackbone, visit: Callable[[int, Tensor], Any], rows: bool = True) -> None:
        super().__init__(backbone)
        self.visit, self.rows = visit, rows

    def visits(self) -> dict[str, Visit]:
        def see(layer: int, neurons: Tensor, slot: AnswerSlot | None) -> None:
            if slot is None:
                return
            if self.rows and slot.prompt is not None:
                found = neurons[:, slice(*slot.prompt)]
            else:
                found = neurons[torch.arange(len(slot.places), device=neurons.device), slot.places].unsqueeze(1)
            self.visit(layer, found.detach().float())

        return {"activations": see}
