"""Shared fixtures: the guarantees that other tests rely on."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from conftest import NetworkBlockedError
from tiny_models import WORDS

SPECIALS = {
    "tiny_roberta": {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4},
    "tiny_bert": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
}


def test_the_network_is_blocked() -> None:
    with socket.socket() as outside, pytest.raises(NetworkBlockedError):
        outside.connect(("192.0.2.1", 80))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass


def test_hooks_that_are_left_are_noticed(our_hooks: list[Any], tiny_roberta: Path) -> None:
    from prompt_transfer.backbones.frozen import FrozenBackbone
    from prompt_transfer.neurons.capture import NeuronCapture

    capture = NeuronCapture(FrozenBackbone(str(tiny_roberta)))
    capture.__enter__()
    assert [handle.id in handle.hooks_dict_ref() for handle in our_hooks] == [True] * 4
    capture.__exit__(None, None, None)
    assert not any(handle.id in handle.hooks_dict_ref() for handle in our_hooks)


@pytest.mark.parametrize("name", SPECIALS)
def test_a_tiny_backbone_is_complete(name: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder: Path = request.getfixturevalue(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert {special: getattr(tokenizer, f"{special}_token_id") for special in SPECIALS[name]} == SPECIALS[name]
    for word in WORDS:
        ids = tokenizer.encode(f" {word}", add_special_tokens=False)
        assert len(ids) == 1, f"{word} takes {len(ids)} tokens"
        assert tokenizer.decode(ids).strip() == word
    sentence = " ".join(["", *WORDS[:20]])
    assert len(tokenizer.encode(sentence, add_special_tokens=False)) == 20
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 32)
    positions = model.config.max_position_embeddings - (2 if name == "tiny_roberta" else 0)
    assert positions == 64
