"""What neurons do at the answer slot, or at prompt rows: sums over examples, kept on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from prompt_transfer.backbones.answers import AnswerSlot
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.neurons.hooks import FfnHooks, Visit
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.nonfinite import FirstNonFinite

# Positions of one forward pass over prompts alone: 13 prompts of 100 rows are 1,326.
MAX_POSITIONS = 32_768


class NeuronCapture(FfnHooks):
    """Inside `with`, every forward pass of the backbone adds the neurons at its answer slots to sums.

    Sites are those of the family's row (`backbones/families.py`): of a masked LM the feed-forward network of each
    encoder layer, of a causal LM of each layer, of a seq2seq LM of each decoder layer at its first step. Examples are
    told apart by their prompt: sums are kept for each of N prompts. Nothing leaves the device before it is asked for.

    | name | what |
    |---|---|
    | `activations` | neurons: after the activation; of gated FFNs the product that enters the second layer |
    | `before` | what enters the activation function |
    | `gate` | what the activation function gives, for gated FFNs |
    | `active` | 1 where a neuron is > 0, else 0 |

    Shape letters: B batch, L layers, F neurons a layer, N prompts.

    Args:
        backbone: whose neurons.
        prompts: N, how many prompts the batches number with `prompt_ids`; 1 where they have none.
        every_kind: `before` and `gate` too, not only `activations` and `active`, where the activation function is a
            known module of the backbone.
    """

    def __init__(self, backbone: FrozenBackbone, prompts: int = 1, every_kind: bool = True) -> None:
        super().__init__(backbone)
        self.prompts, self.every_kind = prompts, every_kind
        self.layers = len(backbone.ffn_sites())
        self._sums: dict[str, Tensor] = {}
        self._counts: Tensor | None = None
        # Places are passes from 0.
        self._watched, self._passes = FirstNonFinite(), 0

    def visits(self) -> dict[str, Visit]:
        names = ["activations"]
        if self.every_kind and self.backbone.family.shows_activation:
            names += ["before", *(["gate"] if self.backbone.is_gated else [])]
        return {name: self._adder(name) for name in names}

    def _adder(self, name: str) -> Visit:
        def add(layer: int, neurons: Tensor, slot: AnswerSlot | None) -> None:
            # Outside of an answer the prompt alone is computed, or a text is written.
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
        """Examples of each prompt so far, [N]."""
        return torch.zeros(self.prompts) if self._counts is None else self._counts

    def means(self) -> dict[str, Tensor]:
        """Name -> mean over the examples of each prompt, float32 [N, L, F] on the CPU; NaN for a prompt without any.

        That of `active` is the share of examples in which a neuron is active.

        Raises:
            UserError: a neuron was NaN or Inf.
        """
        self.refuse_broken()
        counts = self.counts[:, None, None]
        return {name: (total / counts.to(total.device)).cpu() for name, total in self._sums.items()}

    def broken(self) -> tuple[int, int | None] | None:
        """The first prompt with a neuron that was not finite, and in which pass of this process (from 0); else None.

        Of several processes it may have been another one, which then knows the pass.
        """
        if not self._sums:
            return None
        fine = torch.stack([torch.isfinite(total).all(dim=-1).all(dim=-1) for total in self._sums.values()])
        wrong = (~fine.all(dim=0)).nonzero().flatten().tolist()
        return (wrong[0], self._watched.found().get(0, ("", None))[1]) if wrong else None

    def refuse_broken(self, names: Sequence[str] | None = None, where: Callable[[int], str] | None = None) -> None:
        """Raise a UserError where a neuron was not finite.

        Args:
            names: of the prompts; None: their numbers.
            where: what the inputs of a pass are called.
        """
        found = self.broken()
        if found is None:
            return
        prompt, place = found
        first = "" if place is None else f", first in {where(place) if where else f'batch {place} (from 0)'}"
        raise UserError(
            f"neurons behind prompt {names[prompt] if names else prompt} are NaN or Inf{first}: take it out, or try "
            f"--dtype float32 (it is {self.backbone.dtype_name})"
        )

    def reset(self) -> Self:
        """Begin anew."""
        self._watched, self._passes = FirstNonFinite(), 0
        self._sums, self._counts = {}, None
        return self

    def all_reduce(self) -> None:
        """Add up the sums of all processes, with one exchange; nothing happens where there is one process."""
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
        """Sums of a process that has seen no example; their sizes are found out with one."""
        rows = torch.zeros(1, self.backbone.hidden_size, device=self.backbone.device)
        found = capture_prompts(self.backbone, [rows])
        names = [*(name for name in found if name in self.visits()), "active"]
        shape = (self.prompts, *found["activations"].shape[1:])
        return {name: torch.zeros(shape, device=rows.device) for name in names}


@torch.inference_mode()
def capture_prompts(
    backbone: FrozenBackbone, prompts: Sequence[Tensor], names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """The neurons that prompts activate by themselves, without any data: the way of Su et al.

    All prompts of one length stand in one batch, each before the token that stands for no text
    (`TextEncoder.without_text`); only more than fit into 32,768 positions are parted. The code of Su et al. fills such
    inputs up to a fixed length, and T5 attends to these pads there; here there are none.

    Args:
        prompts: N tensors [P, H].
        names: of the prompts, for messages.

    Returns:
        `activations`, `before` and for gated FFNs `gate`: name -> float32 [N, L, F] on the CPU.
    """
    device = backbone.device
    lengths = [len(prompt) for prompt in prompts]
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
    """Inside `with`, `visit` sees the neurons [B, P', F] of each layer: at all prompt rows, or at the answer slot.

    Args:
        backbone: whose neurons.
        visit: called with the layer and [B, P', F]; P' is 1 where prompt rows do not see the text (`shared` attention,
            causal and seq2seq models), or `rows` is off: the answer slot.
        rows: look at prompt rows where that says something.
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
