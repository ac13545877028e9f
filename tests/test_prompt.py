"""Prompt files: metadata, loading, checks and refusals."""

import json
import struct
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from prompt_transfer.prompts.listing import describe, list_prompts
from prompt_transfer.prompts.prompt import Prompt, library_versions
from prompt_transfer.utils.errors import UserError

METADATA = {
    "backbone": "roberta-base",
    "fingerprint": "aa11",
    "family": "roberta",
    "layout": "prefix",
    "attention": "shared",
    "task": "sst2",
    "metric": "accuracy",
    "score": "0.9",
}


def make(length=3, width=4, **metadata):
    values = torch.arange(length * width, dtype=torch.float32).reshape(length, width)
    return Prompt(values, METADATA | metadata, values - 1)


def backbone(**values):
    family = SimpleNamespace(name=values.pop("family", "roberta"), kind=values.pop("kind", "masked_lm"))
    return SimpleNamespace(
        **({"id": "roberta-base", "hidden_size": 4, "fingerprint": "aa11", "family": family} | values)
    )


def raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def error_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_saves_and_loads_bit_for_bit(tmp_path):
    prompt = make()
    prompt.save(tmp_path / "deep" / "p.safetensors")
    loaded = Prompt.load(tmp_path / "deep" / "p.safetensors")
    assert torch.equal(loaded.embeddings, prompt.embeddings)
    assert torch.equal(loaded.initial, prompt.initial)
    assert loaded.metadata == prompt.metadata
    assert loaded.metadata["format_version"] == "1"
    assert (loaded.metadata["prompt_length"], loaded.metadata["hidden_size"]) == ("3", "4")
    assert json.loads(loaded.metadata["versions"]) == json.loads(library_versions())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["p.safetensors"]


def test_the_reference_reader_reads_our_files_and_we_read_its(tmp_path):
    prompt = make()
    prompt.save(tmp_path / "ours.safetensors")
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("embeddings"), prompt.embeddings)
        assert torch.equal(file.get_tensor("initial"), prompt.initial)
        assert file.metadata() == prompt.metadata
    save_file({"embeddings": torch.ones(2, 5)}, tmp_path / "theirs.safetensors")
    theirs = Prompt.load(tmp_path / "theirs.safetensors")
    assert torch.equal(theirs.embeddings, torch.ones(2, 5))
    assert theirs.initial is None


def test_saving_a_loaded_prompt_gives_the_same_bytes(tmp_path):
    first = make().save(tmp_path / "a.safetensors")
    second = Prompt.load(first).save(tmp_path / "b.safetensors")
    assert first.read_bytes() == second.read_bytes()


def test_a_folder_stands_for_its_prompt_file(tmp_path):
    make().save(tmp_path / "prompt.safetensors")
    assert Prompt.load(tmp_path).metadata["task"] == "sst2"


def test_a_kept_prompt_does_not_follow_the_parameter():
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    prompt = Prompt(parameter)
    with torch.no_grad():
        parameter += 1
    assert torch.equal(prompt.embeddings, torch.zeros(2, 3))
    assert not prompt.embeddings.requires_grad


def test_sizes_in_the_metadata_are_those_of_the_tensor():
    assert make(5, 2, prompt_length="99").metadata["prompt_length"] == "5"


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(3), "1 dimensions"),
        (torch.zeros(1, 2, 3), "3 dimensions"),
        (torch.zeros(0, 3), "empty"),
        (torch.zeros(10_001, 1), "at most 10000"),
        (torch.zeros(1, 100_001), "at most 10000"),
        (torch.zeros(2, 2, dtype=torch.bfloat16), "bfloat16"),
        (torch.tensor([[1.0, float("nan")]]), "non-finite"),
        (torch.tensor([[1.0, float("inf")]]), "non-finite"),
    ],
)
def test_refuses_what_is_no_prompt(tensor, words):
    assert words in error_of(Prompt, tensor)


def test_a_value_that_became_nan_is_not_saved(tmp_path):
    prompt = make()
    prompt.embeddings[0, 0] = float("nan")
    assert "non-finite" in error_of(prompt.save, tmp_path / "p.safetensors")
    assert not list(tmp_path.iterdir())


def test_metadata_must_be_strings():
    with pytest.raises(TypeError, match="seed"):
        Prompt(torch.zeros(1, 1), {"seed": 0})


def test_missing_file_names_the_list_command(tmp_path):
    assert "prompt-transfer prompts list" in error_of(Prompt.load, tmp_path / "none.safetensors")


@pytest.mark.parametrize("size", [0, 5, 12, 100, -1])
def test_every_cut_is_an_error(tmp_path, size):
    whole = make().save(tmp_path / "p.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[:size])
    message = error_of(Prompt.load, cut)
    assert ("truncated" if size not in (0, 5) else "not a safetensors file") in message


def test_bytes_after_the_end_are_an_error(tmp_path):
    path = make().save(tmp_path / "p.safetensors")
    path.write_bytes(path.read_bytes() + b"x")
    assert "damaged" in error_of(Prompt.load, path)


def test_files_of_other_kinds(tmp_path):
    text = tmp_path / "text"
    text.write_text("a file with some words in it, longer than a header")
    torch.save({"a": torch.zeros(3)}, tmp_path / "pickle.pt")
    entry = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
    bad = [
        text,
        tmp_path / "pickle.pt",
        raw(tmp_path / "a", b"{not json at all}"),
        raw(tmp_path / "b", {"embeddings": {"dtype": "F32", "shape": [1, 1]}}),
        raw(tmp_path / "c", {"embeddings": entry | {"shape": [-1, 1]}}, b"1234"),
        raw(tmp_path / "d", {"embeddings": entry | {"data_offsets": [4, 0]}}, b"1234"),
        raw(tmp_path / "e", {"__metadata__": {"task": 3}, "embeddings": entry}, b"1234"),
        raw(tmp_path / "f", {"__metadata__": [], "embeddings": entry}, b"1234"),
        raw(tmp_path / "g", b'{"a":' + b"[" * 100_000 + b"}"),
        raw(tmp_path / "h", b"{\xff\xfe  }"),
    ]
    for path in bad:
        assert "not a safetensors file" in error_of(Prompt.load, path), path


def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path):
    huge = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    assert "truncated" in error_of(Prompt.load, raw(tmp_path / "a", {"embeddings": huge}))
    lying = huge | {"data_offsets": [0, 4]}
    assert "at most" in error_of(Prompt.load, raw(tmp_path / "b", {"embeddings": lying}, b"1234"))
    small = huge | {"shape": [100, 768], "data_offsets": [0, 4]}
    assert "damaged" in error_of(Prompt.load, raw(tmp_path / "c", {"embeddings": small}, b"1234"))
    path = tmp_path / "d"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}" * 50)
    assert "not a safetensors file" in error_of(Prompt.load, path)


def test_files_without_a_prompt_in_them(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"prompt_embeddings": torch.zeros(2, 2)}, path)
    assert "no tensor `embeddings` (but 'prompt_embeddings')" in error_of(Prompt.load, path)
    for dtype, name in ((torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.int64, "I64")):
        save_file({"embeddings": torch.zeros(2, 2, dtype=dtype)}, path)
        assert f"'{name}'" in error_of(Prompt.load, path)
    save_file({"embeddings": torch.zeros(2, 2, 2)}, path)
    assert "3 dimensions" in error_of(Prompt.load, path)
    save_file({"embeddings": torch.full((2, 2), float("nan"))}, path)
    assert "non-finite" in error_of(Prompt.load, path)
    save_file({"embeddings": torch.zeros(2, 2), "initial": torch.zeros(3, 2)}, path)
    assert "3 x 2" in error_of(Prompt.load, path)
    save_file({"embeddings": torch.zeros(2, 2)}, path, {"hidden_size": "7"})
    assert "hidden_size" in error_of(Prompt.load, path)


def test_a_newer_format_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    for version, words in (("2", "install a newer prompt_transfer"), ("one", "damaged"), ("9" * 5000, "damaged")):
        save_file({"embeddings": torch.zeros(2, 2)}, path, {"format_version": version})
        assert words in error_of(Prompt.load, path)


def test_save_into_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in error_of(make().save, tmp_path / "file" / "p.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert "cannot write" in error_of(make().save, tmp_path / "folder.safetensors")


def test_check_accepts_the_backbone_it_was_trained_on():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().check(backbone(), "prefix", "shared")
        make().check(backbone())
        make().check(backbone(), SimpleNamespace(name="prefix"))
        # A folder and a hub id with the same fingerprint are one backbone.
        make().check(backbone(id="/data/roberta"), "prefix", "shared")


@pytest.mark.parametrize(
    ("values", "modes", "words"),
    [
        ({"hidden_size": 5}, (), ["4 wide", "5", "prompts project", "use roberta-base"]),
        ({"fingerprint": "bb22"}, (), ["aa11", "bb22"]),
        ({"id": "other", "fingerprint": "bb22", "family": "bert"}, (), ["family roberta", "is bert", "other"]),
        ({}, ("mask_first",), ["layout prefix, not mask_first", "--model.layout prefix"]),
        ({}, (None, "full"), ["attention shared, not full", "--model.attention shared"]),
        ({"hidden_size": 5}, ("mask_first", "full"), ["4 wide", "layout prefix", "attention shared"]),
    ],
)
def test_check_says_all_that_does_not_match(values, modes, words):
    message = error_of(make().check, backbone(**values), *modes)
    assert all(word in message for word in words), message


def test_check_leaves_attention_out_for_causal_backbones():
    make().check(backbone(kind="causal_lm"), None, "full")


def test_an_unknown_fingerprint_warns_and_still_needs_width_and_family():
    prompt = make(fingerprint="unknown")
    with pytest.warns(UserWarning, match="only its width"):
        prompt.check(backbone(fingerprint="bb22"), "prefix")
    assert "4 wide" in error_of(prompt.check, backbone(hidden_size=8))
    assert "family" in error_of(prompt.check, backbone(family="bert"))
    assert "layout" in error_of(prompt.check, backbone(), "mask_first")
    with pytest.warns(UserWarning, match="does not say which backbone"):
        Prompt(torch.zeros(1, 4)).check(backbone(), "prefix", "full")


def test_messages_stay_one_line_whatever_the_file_says():
    prompt = make(backbone="a\nb", layout="x\ny", task="t\n")
    assert "a b" in error_of(prompt.check, backbone(hidden_size=9), "prefix")


def test_describe():
    prompt = Prompt(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), {"task": "t"}, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    facts = describe(prompt)
    assert (facts["prompt_length"], facts["hidden_size"]) == (2, 2)
    assert (facts["mean_row_norm"], facts["min_row_norm"], facts["max_row_norm"]) == (3.0, 1.0, 5.0)
    assert (facts["distance_from_initial"], facts["mean_row_distance"]) == (5.0, 2.5)
    assert facts["metadata"]["task"] == "t"
    assert describe(Prompt(torch.ones(1, 1)))["distance_from_initial"] is None


def test_list_prompts(tmp_path):
    make(task="b").save(tmp_path / "b.safetensors")
    make(2, 2, task="a").save(tmp_path / "deep" / "a.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 50)
    (tmp_path / ".b-tmp.safetensors").write_bytes(b"x" * 50)
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    rows = list_prompts(tmp_path)
    assert [Path(row["path"]).name for row in rows] == ["b.safetensors", "broken.safetensors", "a.safetensors"]
    assert [row["task"] for row in rows] == ["b", "", "a"]
    assert [(row["prompt_length"], row["hidden_size"]) for row in rows] == [(3, 4), (None, None), (2, 2)]
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert len(list_prompts(tmp_path / "b.safetensors")) == 1
    assert "no such folder" in error_of(list_prompts, tmp_path / "none")


def test_random_damage_never_gives_anything_but_a_user_error(tmp_path):
    whole = make().save(tmp_path / "p.safetensors").read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "damaged.safetensors"
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        with suppress(UserError):
            Prompt.load(path)
