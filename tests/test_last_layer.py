"""The last layer computed at a few positions: where the work is skipped, and where it must not be.

test_families.py and test_frozen.py compare logits and gradients with a plain forward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from test_families import ALL, CAUSAL, MASKED, SEQ2SEQ, P, Tiny, collated, random_prompt, text_rows, words
from tiny_models import PLAIN
from torch import Tensor, nn

from prompt_transfer.backbones.families import FAMILIES
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.last_layer import gather_positions

WHOLE = {*SEQ2SEQ, *PLAIN, "albert"}
"""Families whose last layer is computed at all positions: their decoder reads them, the layer is used many times, or
the library's own forward is used."""


def positions_of_last_layer(backbone: FrozenBackbone) -> list[int]:
    """Return a list that records the number of positions of each output of the last layer."""
    assert backbone.family.layer is not None
    seen: list[int] = []
    last = backbone.config.num_hidden_layers - 1
    # A hook on the whole layer, not inside it, leaves the shortcut in place.
    backbone.model.get_submodule(backbone.family.layer.format(i=last)).register_forward_hook(
        lambda module, args, output: seen.append(output.shape[1])
    )
    return seen


@pytest.mark.parametrize("attention", ["full", "shared"])
@pytest.mark.parametrize("family", sorted({*ALL} - WHOLE))
def test_last_layer_is_computed_where_it_is_read(tiny: Tiny, family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    seen = positions_of_last_layer(backbone)
    backbone(random_prompt(backbone), collated(backbone, text_rows(backbone)), words(backbone))
    # When the prompt is computed before the text, only its keys and values are read: one position suffices.
    assert seen == ([1, 1] if attention == "shared" or family in CAUSAL else [1])


@pytest.mark.parametrize("family", sorted({*MASKED} - {"albert", "modernbert", *PLAIN}))
def test_an_encoder_asked_at_one_place_makes_no_keys_and_values(
    tiny: Tiny, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    path = backbone.family.layer
    assert path is not None
    assert backbone.family.reads_states is not None
    layer = backbone.model.get_submodule(path.format(i=backbone.config.num_hidden_layers - 1))
    seen: list[int] = []
    for name in backbone.family.reads_states:
        maker = layer.get_submodule(name)

        def watched(states: Tensor, usual: Callable[[Tensor], Tensor] = maker.forward) -> Tensor:
            seen.append(states.shape[1])
            return usual(states)

        # Patched instead of hooked: hooks inside the layer disable the shortcut.
        monkeypatch.setattr(maker, "forward", watched)
    backbone(random_prompt(backbone), collated(backbone, text_rows(backbone)), words(backbone))
    assert seen == [1, 1]


def test_what_stands_in_for_the_layer_of_values_is_called(tiny: Tiny) -> None:
    class Doubled(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, states: Tensor) -> Tensor:
            return self.layer(states) * 2  # type: ignore[no-any-return]

    backbone = FrozenBackbone(str(tiny("roberta")))
    batch, prompt, token_ids = collated(backbone, text_rows(backbone)), random_prompt(backbone), words(backbone)
    before = backbone(prompt, batch, token_ids)
    attention = backbone.model.roberta.encoder.layer[-1].attention.self
    attention.value = Doubled(attention.value)
    after = backbone(prompt, batch, token_ids)
    attention.value = attention.value.layer
    assert (after - before).abs().max() > 1e-3
    value = attention.value
    value.weight.data.mul_(2)
    value.bias.data.mul_(2)
    torch.testing.assert_close(backbone(prompt, batch, token_ids), after, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "t5"])
def test_float32_weights_train_under_autocast(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    prompt = random_prompt(backbone).requires_grad_()
    batch, token_ids = collated(backbone, text_rows(backbone)), words(backbone)
    expected = backbone(prompt, batch, token_ids)
    with torch.autocast("cpu", torch.bfloat16):
        found = backbone(prompt, batch, token_ids)
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.3)
    found.float().sum().backward()
    assert prompt.grad is not None
    assert prompt.grad.isfinite().all()


@pytest.mark.parametrize("family", sorted({*CAUSAL} - WHOLE))
def test_targets_are_read_at_their_positions(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    seen = positions_of_last_layer(backbone)
    targets = torch.tensor([[5, 6], [7, -100], [8, 9]])
    backbone.target_log_probs(
        random_prompt(backbone), {**collated(backbone, text_rows(backbone)), "target_ids": targets}
    )
    assert seen == [1, 2]


@pytest.mark.parametrize("family", ["roberta", "gpt2", "qwen2"])
def test_without_padding_equals_a_padded_batch(tiny: Tiny, family: str) -> None:
    # Unpadded batches need no mask; the layer must still not see later positions.
    backbone = FrozenBackbone(str(tiny(family)))
    prompt, token_ids = random_prompt(backbone), words(backbone)
    row = max(text_rows(backbone), key=len)
    plain = backbone(prompt, collated(backbone, [row, row]), token_ids)
    padded = backbone(prompt, collated(backbone, [row, row], width=len(row) + 3), token_ids)
    torch.testing.assert_close(plain, padded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_who_hooks_into_the_layer_sees_all_positions(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    batch, prompt, token_ids = collated(backbone, text_rows(backbone)), random_prompt(backbone), words(backbone)
    expected = backbone(prompt, batch, token_ids)
    seen: list[Tensor] = []
    handle = backbone.ffn_sites()[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(backbone(prompt, batch, token_ids), expected, atol=1e-6, rtol=0)
    text = batch["input_ids"].shape[1]
    assert [states.shape[1] for states in seen] == ([P, text] if family == "gpt2" else [P + 1 + text])
    handle.remove()
    backbone(prompt, batch, token_ids)
    assert len(seen) == (2 if family == "gpt2" else 1)


def test_a_copy_computes_its_own_last_layer(tiny: Tiny) -> None:
    backbone = FrozenBackbone(str(tiny("roberta")))
    batch, prompt, token_ids = collated(backbone, text_rows(backbone)), random_prompt(backbone), words(backbone)
    expected = backbone(prompt, batch, token_ids)
    other = copy.deepcopy(backbone)
    for parameter in backbone.model.roberta.encoder.layer[-1].parameters():
        parameter.data.zero_()
    torch.testing.assert_close(other(prompt, batch, token_ids), expected)


def test_families_without_the_saving_are_those_named() -> None:
    assert {name for name, row in FAMILIES.items() if row.layer is None} == {"albert", "t5", "mt5", *PLAIN}


def test_taken_follows_positions_of_each_example() -> None:
    values = torch.arange(12).view(2, 3, 2)
    assert gather_positions(values, torch.tensor([[2], [0]]), 1).tolist() == [[[4, 5]], [[6, 7]]]
    assert gather_positions(values, slice(1, 2), 1).tolist() == [[[2, 3]], [[8, 9]]]
    masks = torch.arange(6).view(1, 1, 3, 2)
    assert gather_positions(masks, torch.tensor([[2], [0]]), 2).tolist() == [[[[4, 5]]], [[[0, 1]]]]
