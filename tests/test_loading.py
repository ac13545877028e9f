"""Loading depends only on a checkpoint's tensors and shapes, not on other fields of its configuration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import MODES
from tiny_models import CAUSAL, MASKED, SEQ2SEQ
from torch import Tensor

from prompt_transfer.backbones.config import DTYPES
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.generic import refuse_contrary
from prompt_transfer.utils.errors import UserError

P = 5
Tiny = Callable[[str], Path]
NAMED = ("float32", "bfloat16", "float16", None)


def copied(folder: Path, copy: Path, stored: torch.dtype | None = None, **facts: Any) -> Path:
    """Copy a checkpoint with its tensors in another dtype and other values in its config.json."""
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    if stored is not None:
        tensors = {name: tensor.to(stored) for name, tensor in load_file(copy / "model.safetensors").items()}
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    config = {**json.loads((copy / "config.json").read_text()), **facts}
    for name in [name for name, value in facts.items() if value is None]:
        config.pop(name, None)
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def scores(backbone: FrozenBackbone) -> Tensor:
    """Return the scores of the first 20 tokens for two texts of different lengths."""
    rows = [list(range(5, 16)), list(range(5, 9))]
    batch = {
        "input_ids": torch.tensor([row + [1] * (11 - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (11 - len(row)) for row in rows]),
    }
    prompt = torch.randn(P, backbone.hidden_size, generator=torch.Generator().manual_seed(0)) * 0.5
    return backbone(prompt, batch, torch.arange(20))


@pytest.mark.parametrize("family", ["roberta", "t5"])
def test_fingerprint_and_weights_are_those_of_the_tensors_whatever_dtype_is_named_or_asked_for(
    tiny: Tiny, tmp_path: Path, family: str
) -> None:
    whole = FrozenBackbone(str(tiny(family)))
    expected = whole.fingerprint
    wide = [(torch.float32, named) for named in ("bfloat16", "float16", None)]
    for stored, named in [*wide, (torch.bfloat16, "float16"), (torch.bfloat16, "float32"), (torch.float64, None)]:
        copy = copied(tiny(family), tmp_path / f"{stored}{named}", stored, dtype=named, torch_dtype=None)
        for asked in DTYPES:
            backbone = FrozenBackbone(str(copy), dtype=asked)
            assert backbone.fingerprint == expected, (stored, named, asked)
            # Round to the file's dtype, then to the requested one, and to nothing in between.
            weight = whole.embedding_weight.to(stored).to(DTYPES[asked])
            assert torch.equal(backbone.embedding_weight, weight), (stored, named, asked)


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_fingerprint_of_a_copy_in_float16_is_its_own_and_always_the_same(
    tiny: Tiny, tmp_path: Path, family: str
) -> None:
    found = set()
    for named in NAMED:
        copy = copied(tiny(family), tmp_path / f"{named}", torch.float16, dtype=named, torch_dtype=None)
        found |= {FrozenBackbone(str(copy), dtype=asked).fingerprint for asked in DTYPES}
    # Its embeddings differ from the original's, so prompts for the original are refused.
    assert len(found) == 1
    assert found != {FrozenBackbone(str(tiny(family))).fingerprint}


@pytest.mark.parametrize("family", [*MASKED, *CAUSAL, *SEQ2SEQ])
def test_how_a_configuration_wants_a_model_to_be_called_changes_no_score(
    tiny: Tiny, tmp_path: Path, family: str
) -> None:
    wishes: dict[str, Any] = {
        "_attn_implementation": "eager", "return_dict": False, "torchscript": True, "output_hidden_states": True,
        "use_cache": False, "chunk_size_feed_forward": 2,
    }  # fmt: skip
    copy = copied(tiny(family), tmp_path / "copy", **wishes)
    for attention in [mode for name, mode in MODES if name == family]:
        expected = scores(FrozenBackbone(str(tiny(family)), attention=attention))
        found = scores(FrozenBackbone(str(copy), attention=attention))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


CONTRARY = [
    *((family, "is_causal", False) for family in ("gpt2", "llama", "gemma3_text", "qwen3", "opt")),
    ("llama", "is_causal", None),
    *((family, field, True) for family in MASKED for field in ("is_causal", "is_decoder")),
    *(("t5", "is_causal", value) for value in (False, True, None)),
    ("t5", "is_decoder", True),
]  # fmt: skip


@pytest.mark.parametrize(("family", "field", "value"), CONTRARY)
def test_a_configuration_contrary_to_the_models_kind_is_refused(
    tiny: Tiny, tmp_path: Path, family: str, field: str, value: Any
) -> None:
    copy = copied(tiny(family), tmp_path / "copy")
    stated = {**json.loads((copy / "config.json").read_text()), field: value}
    (copy / "config.json").write_text(json.dumps(stated))
    with pytest.raises(UserError, match=f"its config.json states {field}: {json.dumps(value)}: use another") as caught:
        FrozenBackbone(str(copy))
    assert "\n" not in str(caught.value)


def test_what_a_configuration_states_of_its_kind_is_accepted(tiny: Tiny, tmp_path: Path) -> None:
    for family, facts in (("gpt2", {"is_causal": True}), ("bert", {"is_causal": False, "is_decoder": False})):
        found = scores(FrozenBackbone(str(copied(tiny(family), tmp_path / family, **facts))))
        assert torch.equal(found, scores(FrozenBackbone(str(tiny(family)))))
    # Nested configurations of families without a row count too, those of other parts do not.
    decoder = {"is_decoder": True, "is_causal": True}
    refuse_contrary({"vision_config": {"is_causal": False}, "text_config": {}}, "x", "causal_lm")
    refuse_contrary({"encoder": {"is_decoder": False}, "decoder": decoder}, "x", "seq2seq_lm")
    for kind, part, inner in (
        ("causal_lm", "text_config", {"is_causal": False}),
        ("seq2seq_lm", "encoder", decoder),
        ("seq2seq_lm", "decoder", {"is_causal": False}),
    ):
        with pytest.raises(UserError, match=r"x is loaded as a .* language model, but its config\.json states is_"):
            refuse_contrary({part: inner}, "x", kind)


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_short_names_of_dtypes_in_python(name: str, dtype: torch.dtype, tiny_roberta: Path) -> None:
    backbone = FrozenBackbone(str(tiny_roberta), dtype=name)
    assert backbone.embedding_weight.dtype is dtype
    assert backbone.dtype_name == str(dtype).removeprefix("torch.")
