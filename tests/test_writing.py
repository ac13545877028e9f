"""Generated text depends only on prompt, text and our options; of a checkpoint's settings only end tokens count."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.utils.errors import UserError

P, STEPS = 5, 8
TEXTS = ["great good", "no yes maybe wrong right okay good bad terrible"]
Tiny = Callable[[str], Path]
FAMILIES = ("llama", "gpt2", "t5")

# Non-numeric or special values; all other fields are set to 2.
VALUES: dict[str, Any] = {
    "bad_words_ids": [[5]], "suppress_tokens": [5], "begin_suppress_tokens": [5], "sequence_bias": [[[5], 30.0]],
    "stop_strings": ["a"], "cache_implementation": "static", "repetition_penalty": 1.3, "force_words_ids": [[5]],
    "constraints": [5], "use_cache": False, "exponential_decay_length_penalty": [1, 9.5], "max_time": 1e-9,
    "watermarking_config": {"greenlist_ratio": 0.3}, "compile_config": {"fullgraph": True}, "early_stopping": True,
    "cache_config": {"backend": "quanto"}, "return_dict_in_generate": True, "encoder_repetition_penalty": 3.5,
    "guidance_scale": 4.5, "assistant_ensemble_weight": 0.5, "continuous_batching_config": None, "length_penalty": -3.0,
}  # fmt: skip
FIELDS = sorted(name for name in vars(GenerationConfig()) if not name.startswith("_") and name != "eos_token_id")
# In config.json these describe the model, or make transformers refuse it.
OF_THE_MODEL = {"decoder_start_token_id", "output_attentions", "compile_config"}


def batch_and_prompt(backbone: FrozenBackbone) -> tuple[dict[str, Tensor], Tensor]:
    encoder = backbone.encoder(P)
    rows = encoder.encode(TEXTS, None, 32, cue="it was")
    longest = max(map(len, rows))
    batch = {
        "input_ids": torch.tensor([row + [encoder.pad_token_id] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }
    return batch, torch.randn(P, backbone.hidden_size, generator=torch.Generator().manual_seed(0)) * 0.5


def written(folder: Path) -> list[list[list[int]]]:
    """Generate greedily and with beams."""
    backbone = FrozenBackbone(str(folder))
    batch, prompt = batch_and_prompt(backbone)
    return [backbone.generate(prompt, batch, STEPS, beams).tolist() for beams in (1, 3)]


def edited(folder: Path, copy: Path, file: str, **facts: Any) -> Path:
    """Copy a checkpoint with other values in one of its files; config.json applies if the other is missing."""
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    if file == "config.json":
        (copy / "generation_config.json").unlink(missing_ok=True)
    path = copy / file
    stated = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**stated, **facts}))
    return copy


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_setting_of_a_checkpoint_changes_what_is_written(tiny: Tiny, tmp_path: Path, family: str, file: str) -> None:
    folder = tiny(family)
    expected = written(folder)
    fields = [name for name in FIELDS if file != "config.json" or name not in OF_THE_MODEL]
    assert len(fields) > 60
    for start in range(0, len(fields), 12):
        facts = {name: VALUES.get(name, 2) for name in fields[start : start + 12]}
        assert written(edited(folder, tmp_path / str(start), file, **facts)) == expected, facts


@pytest.mark.parametrize("field", sorted(OF_THE_MODEL - {"decoder_start_token_id"}))
def test_what_transformers_refuses_in_a_configuration_is_told_in_one_line(
    tiny: Tiny, tmp_path: Path, field: str
) -> None:
    folder = edited(tiny("llama"), tmp_path / "odd", "config.json", **{field: VALUES.get(field, 2)})
    with pytest.raises(UserError, match="cannot load the backbone") as caught:
        FrozenBackbone(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_end_token_of_a_checkpoint_ends_a_text_and_so_does_that_of_its_targets(
    tiny: Tiny, tmp_path: Path, family: str
) -> None:
    folder = tiny(family)
    (first, second), _ = written(folder)
    backbone = FrozenBackbone(str(folder))
    pad, own = backbone.encoder(P).pad_token_id, backbone.tokenizer.eos_token_id
    ends = [first[2], second[1]]
    copy = edited(folder, tmp_path / "listed", "generation_config.json", eos_token_id=ends)
    for row, given in zip(written(copy)[0], (first, second), strict=True):
        length = min(given.index(end) + 1 for end in ends if end in given)
        assert row == given[:length] + [pad] * (len(row) - length)
    # The end token that training appends is the tokenizer's.
    assert backbone.encoder(P).encode_targets(["good"], 8)[0][-1] == own
    for stated in (ends, ends[0], None):
        copy = edited(folder, tmp_path / "other", "generation_config.json", eos_token_id=stated)
        kept = FrozenBackbone(str(copy)).model.generation_config.eos_token_id
        assert own in kept
        assert set(kept) == {own, *([] if stated is None else [stated] if isinstance(stated, int) else stated)}


def test_end_tokens_of_an_old_checkpoint_are_those_that_its_configuration_states(tiny: Tiny, tmp_path: Path) -> None:
    # The configuration class's default end token, used if the file names none, is an ordinary token here.
    folder = edited(tiny("llama"), tmp_path / "old", "config.json", eos_token_id=[7, 9])
    assert set(FrozenBackbone(str(folder)).model.generation_config.eos_token_id) == {0, 7, 9}
    facts = json.loads((folder / "config.json").read_text())
    facts.pop("eos_token_id")
    (folder / "config.json").write_text(json.dumps(facts))
    assert FrozenBackbone(str(folder)).config.eos_token_id == 2
    assert FrozenBackbone(str(folder)).model.generation_config.eos_token_id == [0]


@pytest.mark.parametrize("ends", ["</s>", 2.5, [1, "x"], True, [-3]])
def test_end_tokens_that_are_no_ids_are_refused(tiny: Tiny, tmp_path: Path, ends: Any) -> None:
    folder = edited(tiny("gpt2"), tmp_path / "odd", "generation_config.json", eos_token_id=ends)
    with pytest.raises(UserError, match=r"eos_token_id .* generation_config.json"):
        FrozenBackbone(str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_end_token_beyond_the_vocabulary_is_never_generated(tiny: Tiny, tmp_path: Path, family: str) -> None:
    size = FrozenBackbone(str(tiny(family))).embedding_weight.shape[0]
    for file in ("generation_config.json", "config.json"):
        last = edited(tiny(family), tmp_path / "last" / file, file, eos_token_id=size - 1)
        assert size - 1 in FrozenBackbone(str(last)).model.generation_config.eos_token_id
        for ends in (size, [1, size]):
            folder = edited(tiny(family), tmp_path / "beyond" / file, file, eos_token_id=ends)
            kept = FrozenBackbone(str(folder)).model.generation_config.eos_token_id
            assert size not in kept
            assert (1 in kept) == (ends != size or FrozenBackbone(str(folder)).tokenizer.eos_token_id == 1)


@pytest.mark.parametrize("start", ["x", 2.0, True, [0], -1, 10**6])
def test_a_decoder_start_token_that_is_no_id_is_refused(tiny: Tiny, tmp_path: Path, start: Any) -> None:
    folder = edited(tiny("t5"), tmp_path / "odd", "config.json", decoder_start_token_id=start)
    with pytest.raises(UserError, match=r"decoder_start_token_id") as caught:
        FrozenBackbone(str(folder))
    assert "\n" not in str(caught.value)
    # The other file's value counts only if config.json states none, and never for a model without a decoder.
    for family in ("t5", "gpt2"):
        copy = edited(tiny(family), tmp_path / family, "generation_config.json", decoder_start_token_id=start)
        FrozenBackbone(str(copy))
    stated = json.loads((tmp_path / "t5" / "config.json").read_text())
    stated.pop("decoder_start_token_id")
    (tmp_path / "t5" / "config.json").write_text(json.dumps(stated))
    with pytest.raises(UserError, match=r"decoder_start_token_id .* is not a token id below"):
        FrozenBackbone(str(tmp_path / "t5"))


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "{", "\ufeff{}"])
def test_generation_settings_that_are_no_object_are_refused_by_their_files_name(
    tiny: Tiny, tmp_path: Path, text: str
) -> None:
    folder = edited(tiny("gpt2"), tmp_path / "odd", "config.json")
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"cannot load the backbone .*: its generation_config\.json .*: correct or delete it$"
    ) as caught:
        FrozenBackbone(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["generation_config", "compile_config"])
def test_settings_that_transformers_cannot_load_from_a_configuration_are_named(
    tiny: Tiny, tmp_path: Path, field: str
) -> None:
    for value in ({}, {"num_beams": 3}, "x", *([None] if field == "generation_config" else [])):
        folder = edited(tiny("gpt2"), tmp_path / "odd", "config.json", **{field: value})
        with pytest.raises(UserError, match=rf"cannot load the backbone .*config\.json .* {field}.*: remove it$"):
            FrozenBackbone(str(folder))


def test_training_and_writing_start_a_decoder_with_the_same_token(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("t5")
    expected = written(folder)
    # The configuration's value counts, whatever the other file says.
    assert written(edited(folder, tmp_path / "two", "generation_config.json", decoder_start_token_id=9)) == expected
    facts = json.loads((folder / "config.json").read_text())
    start = facts.pop("decoder_start_token_id")
    copy = edited(folder, tmp_path / "one", "generation_config.json", decoder_start_token_id=start)
    (copy / "config.json").write_text(json.dumps(facts))
    assert written(copy) == expected
    (copy / "generation_config.json").unlink()
    with pytest.raises(UserError, match="decoder_start_token_id"):
        FrozenBackbone(str(copy))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_end_token_first_gives_an_empty_text(tiny: Tiny, tmp_path: Path, family: str) -> None:
    folder = tiny(family)
    first = written(folder)[0][0][0]
    backbone = FrozenBackbone(str(edited(folder, tmp_path / "end", "generation_config.json", eos_token_id=first)))
    batch, prompt = batch_and_prompt(backbone)
    row = backbone.generate(prompt, batch, STEPS)[0].tolist()
    assert row == [first] + [backbone.encoder(P).pad_token_id] * (len(row) - 1)
