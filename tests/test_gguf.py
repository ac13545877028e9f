"""Backbones from GGUF files written by the tests."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import connected
from gguf_files import write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from prompt_transfer.api.store import backbone_name
from prompt_transfer.backbones import gguf as reading
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.loading import resolve
from prompt_transfer.cli import main
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.network import hub_reachable

# Every kind of tensor that a file may mix: plain, half precision, and two block formats.
MIXED = {"token_embd": "Q8_0", "ffn_down": "F16", "ffn": "Q4_0", "attn_q": "Q4_1"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def llama(tiny: Callable[[str], Path]) -> Path:
    return tiny("llama")


@pytest.fixture(scope="session")
def mixed(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "mixed.gguf", llama, MIXED)


def folders(cache: Path) -> list[Path]:
    """List the cache below the format's folder, including temporary files."""
    return sorted((cache / "gguf" / f"v{reading.FORMAT_VERSION}").glob("*"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40).reshape(2, 20) + 5).logits


def test_an_exact_file_is_the_model_it_was_written_from(llama: Path, tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "exact.gguf", llama)
    original, loaded = FrozenBackbone(str(llama)), FrozenBackbone(str(path))
    assert torch.equal(logits(loaded.model), logits(original.model))
    assert loaded.tokenizer.get_vocab() == original.tokenizer.get_vocab()
    text = "the movie was not very good, 2024!"
    assert loaded.tokenizer(text)["input_ids"] == original.tokenizer(text)["input_ids"]
    # Prompts of one fit the other.
    assert loaded.fingerprint == original.fingerprint


def test_logits_are_those_of_transformers_own_dequantised_model(mixed: Path, cache: Path) -> None:
    own = AutoModelForCausalLM.from_pretrained(mixed.parent, gguf_file=mixed.name, dtype=torch.float32).eval()
    ours = FrozenBackbone(str(mixed))
    difference = (logits(ours.model) - logits(own)).abs().max().item()
    assert difference < 1e-5
    stored = AutoModelForCausalLM.from_pretrained(folders(cache)[0]).state_dict()
    for name, tensor in own.state_dict().items():
        assert torch.equal(stored[name], tensor), name


def test_a_quantised_file_has_a_fingerprint_of_its_own(llama: Path, tmp_path: Path, cache: Path) -> None:
    # Embeddings are exact in all of them, so the fingerprint must also depend on the quantisation.
    files = [write_gguf(tmp_path / f"{kind}.gguf", llama, {"ffn": kind}) for kind in ("Q4_0", "Q8_0", "F16")]
    marks = [FrozenBackbone(str(path)).fingerprint for path in (*files, llama)]
    assert len({*marks}) == 3
    assert marks[2] == marks[3]


def test_a_file_without_a_head_has_tied_ones(llama: Path, tmp_path: Path, cache: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "tied")
    path = write_gguf(tmp_path / "tied.gguf", tmp_path / "tied")
    assert not any(name == "output.weight" for name in reading.read_facts(path)["tensors"])
    loaded = logits(FrozenBackbone(str(path)).model)
    assert torch.equal(loaded, logits(FrozenBackbone(str(tmp_path / "tied")).model))
    assert (loaded - logits(FrozenBackbone(str(llama)).model)).abs().max() > 1


def test_fit_and_test_through_the_command_line(
    mixed: Path, toy: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(mixed.parent)
    run = tmp_path / "run"
    options = ["--data.task", str(toy), "--data.source", "local"]
    assert main(["fit", "--model.backbone", "mixed.gguf", *options, "--trainer.max_steps", "4", "--model.prompt_length",
                 "3", "--trainer.val_check_interval", "2", "--output", str(run)]) == 0  # fmt: skip
    metadata = Prompt.load(run).metadata
    assert metadata["gguf_sha256"] == hashlib.sha256(mixed.read_bytes()).hexdigest()
    assert metadata["gguf_quantization"] == "Q8_0"  # of most of its weights, which are embeddings
    # The prompt stores the backbone's absolute path, valid from any working directory.
    assert metadata["backbone"] == str(mixed)
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--prompt", str(run / "prompt.safetensors"), *options]) == 0
    assert len(folders(cache)) == 1
    assert "error" not in capsys.readouterr().err


def test_the_second_start_reads_the_folder_alone(mixed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FrozenBackbone(str(mixed))
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("the file was read again"))
    monkeypatch.setattr(reading, "_convert", lambda *_: pytest.fail("the file was converted again"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert FrozenBackbone(str(mixed)).gguf["file"] == "mixed.gguf"


def test_a_changed_file_is_another_model(llama: Path, tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", llama)
    first = FrozenBackbone(str(path)).gguf["sha256"]
    write_gguf(path, llama, {"ffn": "Q8_0"})
    assert FrozenBackbone(str(path)).gguf["sha256"] != first
    assert len(folders(cache)) == 2


def test_a_folder_with_one_file_is_that_file(mixed: Path, tmp_path: Path) -> None:
    assert resolve(str(mixed.parent)) == (str(mixed), "gguf")
    assert backbone_name(str(mixed.parent)) == "mixed"
    shutil.copy(mixed, tmp_path / "a.gguf")
    shutil.copy(mixed, tmp_path / "b.gguf")
    with pytest.raises(UserError, match=r"several GGUF files \(a.gguf, b.gguf\): give the path of one"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_only_files_of_a_folder_count(kind: str, mixed: Path, tmp_path: Path, cache: Path) -> None:
    entry = tmp_path / "models" / "model.gguf"
    if kind == "folder":
        entry.mkdir(parents=True)
    else:
        entry.parent.mkdir()
        entry.symlink_to(tmp_path / "nowhere.gguf")
    with pytest.raises(UserError, match=r"contains neither .* nor a GGUF file: give a model folder$"):
        FrozenBackbone(str(entry.parent))
    shutil.copy(mixed, entry.parent / "other.gguf")
    assert resolve(str(entry.parent)) == (str(entry.parent / "other.gguf"), "gguf")


def test_a_file_that_vanished(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"^cannot read .*gone.gguf: No such file or directory; give a readable file$"):
        reading.model_folder(tmp_path / "gone.gguf", "gone")


def test_a_file_of_a_hub_repository(mixed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(monkeypatch, tmp_path / "hub") as hub:
        commit = hub.put("some/models", {"mixed.gguf": mixed.read_bytes()})
        backbone = FrozenBackbone("some/models:mixed.gguf")
        assert backbone.commit == commit
        assert backbone.fingerprint == FrozenBackbone(str(mixed)).fingerprint
        with pytest.raises(UserError, match=r"cannot download other.gguf from the hub repository some/models: .*list"):
            FrozenBackbone("some/models:other.gguf")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub_reachable.cache_clear()
    assert FrozenBackbone("some/models:mixed.gguf").commit == commit
    with pytest.raises(UserError, match="cannot be reached"):
        FrozenBackbone("some/models:third.gguf")


def damaged(path: Path, mixed: Path, llama: Path, kind: str) -> Path:
    data = mixed.read_bytes()
    if kind == "header":
        path.write_bytes(data[:2000])
    elif kind == "cut off":
        path.write_bytes(data[:-64])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    elif kind == "quantisation":
        name = b"output_norm.weight"
        place = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        # Dimensions (a count and one number), then the type.
        path.write_bytes(data[: place + 12] + struct.pack("<I", 999) + data[place + 16 :])
    elif kind == "string":
        key = b"general.architecture"
        # The type of the value and the length of the string, then the string.
        place = data.index(key) + len(key) + 12
        path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
    elif kind == "tokens":
        key = b"tokenizer.ggml.tokens"
        # The types of the value and of its elements, their number and the first length, then the first string.
        place = data.index(key) + len(key) + 24
        path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
    elif kind == "type":
        # The number of parts of a split model as text.
        text = write_gguf(path, llama, facts={"split.count": 1}).read_bytes()
        place = text.index(b"split.count") + 11
        path.write_bytes(text[:place] + struct.pack("<IQ", 8, 1) + b"x" + text[place + 8 :])
    elif kind == "architecture":
        write_gguf(path, llama, architecture="perceptron")
    elif kind == "tensor":
        write_gguf(path, llama, without="blk.1.ffn_up.weight")
    elif kind == "split":
        write_gguf(path, llama, facts={"split.count": 3})
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("header", "is damaged or truncated .*: download it again"),
        ("cut off", "truncated.*: download it again"),
        ("empty", "is not a GGUF file"),
        ("text", "is not a GGUF file"),
        ("quantisation", "quantization type 999, which the installed package gguf does not support"),
        ("string", r"is damaged or truncated \('utf-8' codec can't decode byte 0xff .*\): download it again"),
        ("tokens", r"is damaged or truncated \('utf-8' codec can't decode byte 0xff .*\): download it again"),
        ("type", r"is damaged or truncated \(.*\): download it again"),
        ("architecture", "cannot read .*perceptron.* not supported"),
        ("tensor", r"lacks tensors, which would be randomly initialized: model.layers.1.mlp.up_proj.weight"),
        ("split", "one part of a split model"),
    ],
)
def test_a_file_that_cannot_be_used(
    kind: str, message: str, mixed: Path, llama: Path, tmp_path: Path, cache: Path
) -> None:
    path = damaged(tmp_path / "bad.gguf", mixed, llama, kind)
    with pytest.raises(UserError, match=message) as caught:
        FrozenBackbone(str(path))
    assert len(str(caught.value).splitlines()) == 1
    assert folders(cache) == []


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such GGUF file: .*no.gguf; for a file on the hub use org/repo:file"):
        resolve(str(tmp_path / "no.gguf"))


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named(package: str, mixed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = reading.find_spec
    monkeypatch.setattr(reading, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install 'prompt_transfer\[gguf\]'"):
        FrozenBackbone(str(mixed))


def test_a_disk_without_room_is_told_before_anything_is_written(
    mixed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(mixed)
    monkeypatch.setattr(reading.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"the dequantized model needs \d.* MB, .* PROMPT_TRANSFER_CACHE"):
        FrozenBackbone(str(mixed))
    assert folders(cache) == []


def test_a_disk_that_fills_up_leaves_nothing(mixed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, folder: Path, **_: Any) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.LlamaForCausalLM.save_pretrained", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left.*PROMPT_TRANSFER_CACHE"):
        FrozenBackbone(str(mixed))
    assert folders(cache) == []


def _load_in_process(path: Path, start: Any, said: Any) -> None:
    convert = reading._convert

    def told(*given: Any) -> None:
        said.put("converts")
        convert(*given)

    reading._convert = told  # type: ignore[assignment]
    start.wait()
    said.put(str(reading.model_folder(path, "x")))


def test_two_processes_at_once_make_one_folder(mixed: Path, cache: Path) -> None:
    # Fork, so that neither process imports while the other loads.
    context = multiprocessing.get_context("fork")
    start, said = context.Event(), context.Queue()
    both = [context.Process(target=_load_in_process, args=(mixed, start, said)) for _ in range(2)]
    for process in both:
        process.start()
    start.set()
    words = [said.get(timeout=60) for _ in range(3)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    (folder,) = folders(cache)
    assert sorted(words) == sorted(["converts", str(folder), str(folder)])


def test_what_a_killed_process_left_is_removed(mixed: Path, cache: Path) -> None:
    digest = hashlib.sha256(mixed.read_bytes()).hexdigest()
    left = cache / "gguf" / f"v{reading.FORMAT_VERSION}" / f".{digest}-abc"
    left.mkdir(parents=True)
    FrozenBackbone(str(mixed))
    assert folders(cache) == [left.with_name(digest)]


def test_a_damaged_note_of_a_digest_is_written_again(mixed: Path, cache: Path) -> None:
    FrozenBackbone(str(mixed))
    (note,) = (cache / "gguf" / "digests").iterdir()
    note.write_text("[1]")
    FrozenBackbone(str(mixed))
    assert json.loads(note.read_text())["size"] == os.stat(mixed).st_size  # noqa: PTH116


def test_scaled_rotary_frequencies_that_nobody_reads_are_told(
    llama: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "rope.gguf", llama, rotary=True)
    with pytest.warns(UserWarning, match=r"does not read rope_freqs.weight of rope.gguf"):
        FrozenBackbone(str(path))
