"""Checkpointed and compiled layers compute the same functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_families import ALL, Tiny, collated, random_prompt, text_rows, words
from tiny_models import PLAIN_ENCODERS
from torch import Tensor

from prompt_transfer.backbones import layer_calls
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.utils.errors import UserError

# ALBERT's and MPNet's layers cannot be checkpointed; MPNet and DeBERTa have no `shared` mode.
LAYERED = sorted({*ALL} - {"albert", *PLAIN_ENCODERS})


def logits_and_gradient(backbone: FrozenBackbone) -> tuple[Tensor, Tensor]:
    prompt = random_prompt(backbone).requires_grad_()
    logits = backbone(prompt, collated(backbone, text_rows(backbone)), words(backbone))
    logits.square().sum().backward()
    assert prompt.grad is not None
    return logits.detach(), prompt.grad


@pytest.mark.parametrize("attention", ["full", "shared"])
@pytest.mark.parametrize("family", LAYERED)
def test_computed_again_equals_kept(tiny: Tiny, family: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits_and_gradient(FrozenBackbone(str(tiny(family)), attention=attention))
    calls: list[bool] = []
    original = layer_calls.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(True)
        return original(*args, **kwargs)

    monkeypatch.setattr(layer_calls, "checkpoint", counted)
    backbone = FrozenBackbone(str(tiny(family)), attention=attention, gradient_checkpointing=True)
    found = logits_and_gradient(backbone)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    # A last layer computed at only some positions is not checkpointed.
    layers = backbone.config.num_hidden_layers - (backbone.family.layer is not None)
    twice = not backbone.family.plain and (attention == "shared" or backbone.family.kind == "causal_lm")
    expected_calls = layers * (2 if twice else 1)
    assert len(calls) == expected_calls
    with torch.no_grad():
        backbone(random_prompt(backbone), collated(backbone, text_rows(backbone)), words(backbone))
    assert len(calls) == expected_calls


@pytest.mark.parametrize("attention", ["full", "shared"])
@pytest.mark.parametrize("family", ["roberta", "gpt2", "t5", "mistral"])
def test_traced_layers_equal_others(tiny: Tiny, family: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Trace without code generation: the risk lies in how the tracer handles our attention function.
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: original(function, backend="eager", **options))
    torch._dynamo.reset()
    expected = logits_and_gradient(FrozenBackbone(str(tiny(family)), attention=attention))
    backbone = FrozenBackbone(str(tiny(family)), attention=attention, compile=True)
    torch.testing.assert_close(logits_and_gradient(backbone), expected, atol=1e-5, rtol=1e-4)


def test_compiled_layers_of_a_model_share_their_graphs(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel object per module would give every layer its own graphs."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: original(function, backend="eager", **options))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backbone = FrozenBackbone(str(tiny("mistral")), compile=True)
    logits_and_gradient(backbone)
    first = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    forwards = [module.__dict__.get("forward") for module in backbone.model.model.layers[0].modules()]
    assert [type(forward).__name__ for forward in forwards if forward is not None] == ["LayerCall"]
    logits_and_gradient(backbone)
    # Two layers are compiled: for prompts and texts, with a gradient of the input or (texts in the first) without, and
    # for prompts again once the cache has entries.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == first == 4


def test_layers_that_are_used_many_times_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="cannot be compiled or recomputed"):
        FrozenBackbone(str(tiny("albert")), gradient_checkpointing=True)
