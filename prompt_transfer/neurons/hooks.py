"""Self-removing hooks on the feed-forward networks of a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prompt_transfer.backbones.answers import AnswerSlot
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.utils.errors import UserError

# (layer, neurons [B, T', F], answer slot or None) -> None, or replacement neurons.
Visit = Callable[[int, Tensor, AnswerSlot | None], Tensor | None]
KINDS = ("activations", "before", "gate")


class FfnHooks:
    """Context in which functions observe, and may replace, the neurons of every layer of a backbone.

    Hooks are removed when the context ends, also after an exception or if attaching them fails midway. Contexts may be
    nested, and each removes only its own hooks, but one object cannot be entered twice at a time.

    Shape letters: B batch, T' tokens of a forward pass, F neurons per layer.

    Args:
        backbone: the backbone to hook.
    """

    def __init__(self, backbone: FrozenBackbone) -> None:
        self.backbone = backbone
        self._handles: list[RemovableHandle] = []
        self._pass: AnswerSlot | None = None
        self._calls: dict[tuple[str, int], int] = {}

    def visits(self) -> dict[str, Visit]:
        """Return the function to call per kind of neurons (`KINDS`): after the activation, before it, and the gate."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        if self._handles:
            raise RuntimeError(f"this {type(self).__name__} is already active; create another one to nest them")
        refuse_compiled(self.backbone)
        try:
            for kind, visit in self.visits().items():
                self._attach(kind, visit)
        except BaseException:
            self._detach()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._detach()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._pass, self._calls = [], None, {}

    def _attach(self, kind: str, visit: Visit) -> None:
        backbone = self.backbone
        before = kind == "before" or (kind == "activations" and backbone.family.ffn_input)
        sites = backbone.ffn_sites() if kind == "activations" else backbone.activation_sites()
        for number, site in enumerate(dict.fromkeys(sites)):
            layers = [layer for layer, module in enumerate(sites) if module is site]

            def seen(neurons: Tensor, key: tuple[str, int] = (kind, number), layers: list[int] = layers) -> Any:
                slot, whole = backbone.answer_slot, neurons
                if neurons.ndim == 2:
                    # OPT flattens the tokens of all examples.
                    whole = neurons.unflatten(0, (1 if slot is None else len(slot.places), -1))
                new = visit(self._layer(key, layers), whole, slot)
                return None if new is None else new.view_as(neurons)

            if before:

                def enter(module: nn.Module, args: tuple[Any, ...], seen: Callable[[Tensor], Any] = seen) -> Any:
                    new = seen(args[0])
                    return None if new is None else (new, *args[1:])

                self._handles.append(site.register_forward_pre_hook(enter))
            else:

                def leave(
                    module: nn.Module, args: tuple[Any, ...], output: Tensor, seen: Callable[[Tensor], Any] = seen
                ) -> Any:
                    return seen(output)

                self._handles.append(site.register_forward_hook(leave))

    def _layer(self, key: tuple[str, int], layers: list[int]) -> int:
        """Return the layer that a site is computing; layers that share a module (ALBERT) call it in turn."""
        if len(layers) == 1:
            return layers[0]
        if self.backbone.answer_slot is not self._pass:
            self._pass, self._calls = self.backbone.answer_slot, {}
        call = self._calls.get(key, 0)
        self._calls[key] = call + 1
        return layers[call % len(layers)]


def refuse_compiled(backbone: FrozenBackbone) -> None:
    """Refuse compiled models, whose graphs silently ignore hooks added later.

    Raises:
        UserError: the backbone or a part of it is compiled, or its FFNs process the tokens in chunks.
    """
    for name, module in backbone.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            part = f"the part {name} of {backbone.id}" if name else f"the backbone {backbone.id}"
            raise UserError(f"{part} is compiled, which hides its neurons from hooks: use it without torch.compile")
    if getattr(backbone.config, "chunk_size_feed_forward", 0):
        raise UserError(
            f"{backbone.id} computes its feed-forward layers in chunks (chunk_size_feed_forward in its config.json), "
            "which hides the answer slot: set it to 0"
        )
