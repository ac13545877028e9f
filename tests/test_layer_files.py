"""Backbones loaded without their layers' weights: `prompt_transfer.backbones.layer_files`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from prompt_transfer.backbones import sharding
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.layer_files import FILES
from prompt_transfer.modules.prompt_ensemble import PromptEnsemble
from prompt_transfer.utils.errors import UserError

Tiny = Callable[[str], Path]


def test_a_model_without_its_layers_is_otherwise_whole(tiny: Tiny) -> None:
    for family in ("bert", "modernbert", "gemma3_text", "mt5", "opt", "gemma2"):
        whole = FrozenBackbone(str(tiny(family)))
        with sharding.deferred():
            part = FrozenBackbone(str(tiny(family)))
        assert part.fingerprint == whole.fingerprint
        expected = dict(whole.model.named_buffers()) | dict(whole.model.named_parameters())
        found = dict(part.model.named_buffers()) | dict(part.model.named_parameters())
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.shape == expected[name].shape
            assert tensor.is_meta or torch.equal(tensor, expected[name]), name
        places = {f"{id(module)}.{name}" for module, name, _ in getattr(part.model, FILES).places}
        unloaded = [p for p in part.model.parameters() if p.is_meta]
        assert len(unloaded) == len(places) > 0


def test_shapes_of_deep_prompts_are_known_before_the_layers_are_loaded(tiny: Tiny) -> None:
    for family in ("llama", "gemma", "qwen3", "roberta", "distilbert", "gpt2", "opt", "t5_v1_1", "mt5", "modernbert"):
        whole = FrozenBackbone(str(tiny(family)), attention="shared")
        with sharding.deferred():
            part = FrozenBackbone(str(tiny(family)), attention="shared")
        assert part.keys_values_shape(3) == whole.keys_values_shape(3)


def test_backbones_that_are_not_sharded(tiny: Tiny, tmp_path: Path) -> None:
    for family in ("albert", "mpnet"):
        with sharding.deferred(), pytest.raises(UserError, match=r"cannot be sharded: use --trainer\.strategy ddp"):
            FrozenBackbone(str(tiny(family)))
    with sharding.deferred(), pytest.raises(UserError, match="sharded layers cannot be compiled"):
        FrozenBackbone(str(tiny("llama")), compile=True)
    falcon = FrozenBackbone(str(tiny("falcon")))
    falcon.model._is_fsdp_managed_module = True
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    with pytest.raises(UserError, match="generates the texts of each length apart here"):
        falcon.generate(torch.zeros(2, falcon.hidden_size), batch, 2)
    ensemble = PromptEnsemble(seeds=[0, 1], backbone=str(tiny("roberta")))
    ensemble.backbone.is_sharded = True
    ensemble.trainer = SimpleNamespace(datamodule=SimpleNamespace(max_tokens=100))  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"give --model\.prompts_at_once instead"):
        ensemble._at_once({"input_ids": torch.zeros(2, 3)})


def test_a_checkpoint_that_is_not_read_in_parts_is_loaded_whole(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(tiny("gpt2"), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with sharding.deferred(), pytest.warns(UserWarning, match="has no safetensors files"):
        backbone = FrozenBackbone(str(folder))
    assert not any(p.is_meta for p in backbone.model.parameters())
